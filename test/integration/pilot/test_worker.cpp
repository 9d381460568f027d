// A worker for tests: `pilot_test_worker MODE port host flag`.
//   echo      sends back what comes; 'q' ends it with 0, 'x' with 9 after a word on stderr, 'c' by a crash
//   spin      takes no notice of the end of its connection
//   never     does not connect
//   fail      says why on stderr and exits with 3
//   intruder  another process (not a descendant) tries first: see the test
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const std::string mode = argv[1];
  if (mode == "fail") {
    std::fprintf(stderr, "libgravity.so: cannot open\n");
    return 3;
  }
  if (mode == "never") {
    for (;;) pause();
  }
  if (mode == "wait") {  // until the file "go" is there
    std::FILE* port = std::fopen("port.tmp", "w");
    std::fprintf(port, "%s\n", argv[2]);
    std::fclose(port);
    std::rename("port.tmp", "port");
    while (access("go", F_OK) != 0) usleep(10'000);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<unsigned short>(std::atoi(argv[2])));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 4;
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  char buffer[65536];
  for (;;) {
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n <= 0) {
      if (mode == "spin") {
        std::signal(SIGTERM, SIG_IGN);
        for (;;) usleep(1000);
      }
      return 5;
    }
    if (n == 1 && buffer[0] == 'q') return 0;
    if (n == 1 && buffer[0] == 'x') {
      std::fprintf(stderr, "the integration diverged\n");
      return 9;
    }
    if (n == 1 && buffer[0] == 'c') {
      std::fprintf(stderr, "about to crash\n");
      std::signal(SIGSEGV, SIG_DFL);  // a sanitizer's handler would tell a story of its own
      std::raise(SIGSEGV);
    }
    for (ssize_t done = 0; done < n;) done += write(fd, buffer + done, static_cast<std::size_t>(n - done));
  }
}
