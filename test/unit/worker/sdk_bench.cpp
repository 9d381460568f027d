// What the SDK costs: a call of the C++ side on a C++ worker against a bare ping-pong of the same bytes over the same kind of socket, and
// arrays against bare reads and writes. Prints ratios of one run; both processes on one processor, on two, and where the kernel puts them.
#include <flotilla/code.hpp>
#include <flotilla/worker.hpp>

#include <sched.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <numeric>

using namespace flotilla;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int calls = 20'000, warm_up = 2'000, rounds = 9;
constexpr std::size_t request_bytes = wire::header_size + 8,
                      reply_bytes = wire::header_size + 4 + 8;  // one double there, code and double back
constexpr std::size_t row_count = 1'000'000;                    // of seven columns

void pin(int cpu) {
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

void connected_pair(int (&pair)[2], bool tcp) {
  if (!tcp) {
    ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    return;
  }
  int server = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ::bind(server, reinterpret_cast<sockaddr*>(&address), size);
  ::listen(server, 1);
  ::getsockname(server, reinterpret_cast<sockaddr*>(&address), &size);
  pair[0] = ::socket(AF_INET, SOCK_STREAM, 0);
  ::connect(pair[0], reinterpret_cast<sockaddr*>(&address), size);
  pair[1] = ::accept(server, nullptr, nullptr);
  ::close(server);
  int one = 1;
  for (int fd : pair) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

void read_all(int fd, void* data, std::size_t bytes) {
  while (bytes > 0) {
    ssize_t n = ::recv(fd, data, bytes, 0);
    if (n <= 0) ::_exit(0);
    data = static_cast<char*>(data) + n;
    bytes -= static_cast<std::size_t>(n);
  }
}
void write_all(int fd, const void* data, std::size_t bytes) {
  while (bytes > 0) {
    ssize_t n = ::send(fd, data, bytes, MSG_NOSIGNAL);
    if (n <= 0) ::_exit(0);
    data = static_cast<const char*>(data) + n;
    bytes -= static_cast<std::size_t>(n);
  }
}

// Runs `serve` in a child on the pair's other end, and `use` here; the child ends with the socket.
template <class Serve, class Use>
void with_child(bool tcp, int cpu_here, int cpu_child, Serve serve, Use use) {
  int pair[2];
  connected_pair(pair, tcp);
  cpu_set_t before;
  sched_getaffinity(0, sizeof before, &before);
  pid_t child = ::fork();
  if (child == 0) {
    ::close(pair[0]);
    pin(cpu_child);
    serve(pair[1]);
    ::_exit(0);
  }
  ::close(pair[1]);
  pin(cpu_here);
  use(pair[0]);
  ::close(pair[0]);
  ::waitpid(child, nullptr, 0);
  sched_setaffinity(0, sizeof before, &before);
}

template <class Act>
double median_us(Act act) {
  for (int i = 0; i < warm_up; ++i) act();
  std::vector<double> each;
  for (int i = 0; i < calls; ++i) {
    auto from = Clock::now();
    act();
    each.push_back(std::chrono::duration<double, std::micro>(Clock::now() - from).count());
  }
  std::nth_element(each.begin(), each.begin() + calls / 2, each.end());
  return each[calls / 2];
}

template <class Act>
double best_mb_per_s(std::size_t bytes, Act act) {
  double best = 0;
  for (int i = 0; i < rounds; ++i) {
    auto from = Clock::now();
    act();
    best = std::max(best, static_cast<double>(bytes) / 1e6 / std::chrono::duration<double>(Clock::now() - from).count());
  }
  return best;
}

}  // namespace

int main() {
  WorkerProgram program;
  std::vector<double> source(row_count);
  program.function("echo", [](double in, double& out) { return out = in, 0; });
  using In = std::span<const double>;
  using Out = std::span<double>;
  program.function("put", [](In, In, In, In, In, In, In) { return 0; });
  program.function("get", [](Out, Out, Out, Out, Out, Out, Out) { return 0; });
  std::vector<double> columns[7];
  for (auto& column : columns) column.assign(row_count, 1.5);
  std::vector<char> bulk(7 * row_count * 8, 1);

  struct {
    const char* name;
    int here, child;
  } places[] = {{"one processor", 0, 0}, {"two processors", 0, 1}, {"not pinned", -1, -1}};
  for (bool tcp : {false, true}) {
    for (auto& place : places) {
      double bare = 0, sdk = 0, bare_put = 0, sdk_put = 0, bare_get = 0, sdk_get = 0;
      with_child(
          tcp, place.here, place.child,
          [&](int fd) {
            char buffer[256];
            while (true) read_all(fd, buffer, request_bytes), write_all(fd, buffer, reply_bytes);
          },
          [&](int fd) {
            char buffer[256] = {};
            bare = median_us([&] { write_all(fd, buffer, request_bytes), read_all(fd, buffer, reply_bytes); });
          });
      with_child(
          tcp, place.here, place.child,
          [&](int fd) {  // there: all bytes, then one back; and one there, all bytes back
            char byte;
            for (int i = 0; i < rounds; ++i) read_all(fd, bulk.data(), bulk.size()), write_all(fd, "x", 1);
            while (true) read_all(fd, &byte, 1), write_all(fd, bulk.data(), bulk.size());
          },
          [&](int fd) {
            char byte;
            bare_put = best_mb_per_s(bulk.size(), [&] { write_all(fd, bulk.data(), bulk.size()), read_all(fd, &byte, 1); });
            bare_get = best_mb_per_s(bulk.size(), [&] { write_all(fd, "x", 1), read_all(fd, bulk.data(), bulk.size()); });
          });
      with_child(
          tcp, place.here, place.child, [&](int fd) { program.serve(fd); },
          [&](int fd) {
            RemoteCode code(fd);
            sdk = median_us([&] { code.call<double>("echo", 1.5); });
            auto& c = columns;
            sdk_put = best_mb_per_s(bulk.size(), [&] { code.call("put", c[0], c[1], c[2], c[3], c[4], c[5], c[6]); });
            sdk_get = best_mb_per_s(
                bulk.size(), [&] { code.call("get", into(c[0]), into(c[1]), into(c[2]), into(c[3]), into(c[4]), into(c[5]), into(c[6])); });
            code.stop();
          });
      std::printf(
          "%-10s %-15s call %6.1f us, bare %6.1f, ratio %.2f | put %5.0f MB/s, bare %5.0f, ratio %.2f | get %5.0f, bare %5.0f, ratio "
          "%.2f\n",
          tcp ? "tcp" : "socketpair", place.name, sdk, bare, sdk / bare, sdk_put, bare_put, sdk_put / bare_put, sdk_get, bare_get,
          sdk_get / bare_get);
    }
  }
}
