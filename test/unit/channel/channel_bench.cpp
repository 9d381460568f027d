// What an end of a resumable channel costs: two bridges between client and worker (as daemon and pilot), against two bare
// relays (poll, read, write) in their place, in the same run, in turns. Prints medians and their ratio.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "proto/channel/fd_bridge.hpp"

using namespace flotilla;
using namespace flotilla::channel;
using Clock = std::chrono::steady_clock;

namespace {

std::pair<unique_fd, unique_fd> sockets() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
  return {unique_fd(pair[0]), unique_fd(pair[1])};
}
void send_all(int fd, const char* at, std::size_t size) {
  while (size) {
    const auto count = ::send(fd, at, size, MSG_NOSIGNAL);
    if (count <= 0) return;
    at += count;
    size -= static_cast<std::size_t>(count);
  }
}
bool read_all(int fd, char* at, std::size_t size) {
  while (size) {
    const auto count = ::recv(fd, at, size, 0);
    if (count <= 0) return false;
    at += count;
    size -= static_cast<std::size_t>(count);
  }
  return true;
}

// One thread, both directions, 256 KiB at once.
void bare_relay(int a, int b) {
  std::vector<char> buffer(256 << 10);
  pollfd polled[2]{{a, POLLIN, 0}, {b, POLLIN, 0}};
  for (;;) {
    if (::poll(polled, 2, -1) < 0) return;
    for (int i : {0, 1})
      if (polled[i].revents) {
        const auto count = ::recv(polled[i].fd, buffer.data(), buffer.size(), 0);
        if (count <= 0) return;
        send_all(polled[1 - i].fd, buffer.data(), static_cast<std::size_t>(count));
      }
  }
}

// The worker: reads `in` bytes, answers `out` bytes.
void worker(int fd, std::size_t in, std::size_t out) {
  std::vector<char> buffer(std::max(in, out));
  while (read_all(fd, buffer.data(), in)) send_all(fd, buffer.data(), out);
}

struct Measured {
  double median_us;
  double p99_us;
};
Measured calls(int fd, std::size_t in, std::size_t out, int count) {
  std::vector<char> buffer(std::max(in, out), 'x');
  std::vector<double> took;
  for (int i = 0; i < count + count / 10; ++i) {
    const auto start = Clock::now();
    send_all(fd, buffer.data(), in);
    read_all(fd, buffer.data(), out);
    if (i >= count / 10) took.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::sort(took.begin(), took.end());
  return {took[took.size() / 2], took[took.size() * 99 / 100]};
}

Measured through_relays(std::size_t in, std::size_t out, int count) {
  auto [client, a] = sockets();
  auto [b, c] = sockets();
  auto [d, w] = sockets();
  std::thread threads[]{std::thread(bare_relay, a.get(), b.get()), std::thread(bare_relay, c.get(), d.get()),
                        std::thread(worker, w.get(), in, out)};
  const auto result = calls(client.get(), in, out, count);
  for (int fd : {client.get(), a.get(), b.get(), c.get(), d.get(), w.get()}) ::shutdown(fd, SHUT_RDWR);
  for (auto& thread : threads) thread.join();
  return result;
}

Measured through_bridges(std::size_t in, std::size_t out, int count) {
  auto [client, daemon_user] = sockets();
  auto [w, pilot_user] = sockets();
  std::mutex mutex;
  std::condition_variable ready;
  std::deque<std::function<void()>> queue;
  const Post post = [&](std::function<void()> what) {
    std::lock_guard lock(mutex);
    queue.push_back(std::move(what));
    ready.notify_one();
  };
  std::unique_ptr<FdBridge> daemon, pilot;
  BridgeHandlers of_daemon, of_pilot;
  of_daemon.on_ack = [&](auto epoch, auto received) { pilot->on_ack(epoch, received); };
  of_pilot.on_ack = [&](auto epoch, auto received) { daemon->on_ack(epoch, received); };
  daemon = std::make_unique<FdBridge>(Side::opener, 1, std::move(daemon_user), post, of_daemon);
  pilot = std::make_unique<FdBridge>(Side::accepter, 1, std::move(pilot_user), post, of_pilot);
  auto [a, b] = sockets();
  daemon->open_wire(make_socket_wire(std::move(a)), 1, std::string(ticket_bytes, 'k'));
  char header[opening_bytes];
  read_all(b.get(), header, sizeof header);
  pilot->accept_wire(make_socket_wire(std::move(b)), *parse_opening({header, sizeof header}));
  bool stop = false;
  std::thread loop([&] {
    std::unique_lock lock(mutex);
    for (;;) {
      ready.wait(lock, [&] { return stop || !queue.empty(); });
      if (stop) return;
      auto what = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      what();
      lock.lock();
    }
  });
  std::thread far(worker, w.get(), in, out);
  const auto result = calls(client.get(), in, out, count);
  ::shutdown(w.get(), SHUT_RDWR);
  far.join();
  {
    std::lock_guard lock(mutex);
    stop = true;
    ready.notify_one();
  }
  loop.join();
  return result;
}

void compare(const char* name, std::size_t in, std::size_t out, int count) {
  std::vector<double> relays, bridges, relays_p99, bridges_p99;
  for (int round = 0; round < 5; ++round) {
    const auto bare = through_relays(in, out, count), ours = through_bridges(in, out, count);
    relays.push_back(bare.median_us);
    bridges.push_back(ours.median_us);
    relays_p99.push_back(bare.p99_us);
    bridges_p99.push_back(ours.p99_us);
  }
  const auto median = [](std::vector<double>& all) {
    std::sort(all.begin(), all.end());
    return all[all.size() / 2];
  };
  const double bare = median(relays), ours = median(bridges);
  std::printf("%-28s relays %9.1f us (p99 %9.1f)  bridges %9.1f us (p99 %9.1f)  ratio %.2f", name, bare, median(relays_p99), ours,
              median(bridges_p99), ours / bare);
  if (in + out > 1 << 20)
    std::printf("  (%.2f against %.2f GB/s)", static_cast<double>(in + out) / ours / 1e3, static_cast<double>(in + out) / bare / 1e3);
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    const bool bare = argv[1][0] == 'r';
    for (int i = 0; i < 4; ++i) (bare ? through_relays : through_bridges)(64 << 20, 44, 8);
    return 0;
  }
  compare("call, 44 bytes", 44, 44, 5000);
  compare("call, 4 KiB", 4096, 4096, 5000);
  compare("call, 64 KiB", 64 << 10, 64 << 10, 1000);
  compare("put 1 MiB", 1 << 20, 44, 300);
  compare("put 64 MiB", 64 << 20, 44, 8);
  compare("get 64 MiB", 44, 64 << 20, 8);
}
