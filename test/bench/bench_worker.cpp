// The worker of the benchmarks, and the bare relay that ours are compared with. Static: it runs anywhere.
//   bench_worker PORT HOST FLAG         as a worker: connects there
//   bench_worker --listen PORT          at the end of a tunnel: a process for each connection to 127.0.0.1
//   bench_worker --relay ADDRESS PORT HOST TO   a process for each connection, that passes on what comes to ADDRESS:PORT
#include <poll.h>
#include <csignal>

#include "test/bench/wire.hpp"

namespace {

void serve(int fd) {
  std::vector<char> data(1 << 20);
  unsigned char raw[bench::wire::header_size];
  while (bench::read_all(fd, raw, sizeof raw)) {
    const auto asked = bench::wire::parse_header(raw);
    const std::size_t there = bench::wire::body_bytes(asked);
    const bool stop = asked.function_id == bench::wire::stop_id;
    const std::size_t back = stop ? 0 : static_cast<std::size_t>(asked.call_id);
    if (data.size() < sizeof raw + std::max(there, back)) data.resize(sizeof raw + std::max(there, back));
    if (!bench::read_all(fd, data.data() + sizeof raw, there)) break;
    bench::put_header(data.data(), asked.function_id, asked.call_id, back);
    if (!bench::write_all(fd, data.data(), sizeof raw + back) || stop) break;
  }
  close(fd);
}

// Both directions in one thread; what cannot be written at once is written before more is read.
void relay(int a, int b) {
  static char buffer[256 * 1024];
  pollfd both[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
  for (;;) {
    if (poll(both, 2, -1) < 0 && errno != EINTR) return;
    for (int i = 0; i < 2; ++i) {
      if (both[i].revents == 0) continue;
      const ssize_t n = read(both[i].fd, buffer, sizeof buffer);
      if (n <= 0 || !bench::write_all(both[1 - i].fd, buffer, static_cast<std::size_t>(n))) return;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGCHLD, SIG_IGN);
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "--listen" && argc == 3) {
    int port = std::atoi(argv[2]);
    const int listener = bench::listen_on("127.0.0.1", port);
    std::printf("%d\n", port);
    std::fflush(stdout);
    for (;;) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return 1;
      bench::no_delay(fd);
      if (fork() == 0) {
        serve(fd);
        _exit(0);
      }
      close(fd);
    }
  }
  if (mode == "--relay" && argc == 6) {
    int port = std::atoi(argv[3]);
    const int listener = bench::listen_on(argv[2], port);
    std::printf("%d\n", port);
    std::fflush(stdout);
    for (;;) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return 1;
      bench::no_delay(fd);
      if (fork() == 0) {
        relay(fd, bench::connect_to(argv[4], std::atoi(argv[5])));
        _exit(0);
      }
      close(fd);
    }
  }
  if (argc < 4) {
    std::fprintf(stderr, "usage: bench_worker PORT HOST FLAG | --listen PORT | --relay ADDRESS PORT HOST TO\n");
    return 2;
  }
  serve(bench::connect_to(argv[2], std::atoi(argv[1])));
  return 0;
}
