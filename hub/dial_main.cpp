#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "hub/join.hpp"
#include "proto/base/programs.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla {
namespace {

constexpr int dial_timeout_ms = 10'000;  // less than any ssh client waits for a banner

constexpr const char* usage =
    "usage: flotilla-agent dial HOST PORT\n\n"
    "Connects to a TCP port as this machine reaches it and joins stdin and stdout to it: how a resource behind a gateway is\n"
    "reached where the gateway's sshd forwards nothing.\n";

// 0, or an errno.
int connect_within(int fd, const addrinfo& to, int limit_ms) {
  if (connect(fd, to.ai_addr, to.ai_addrlen) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  pollfd wait{fd, POLLOUT, 0};
  const int ready = poll(&wait, 1, limit_ms);
  if (ready == 0) return ETIMEDOUT;
  if (ready < 0) return errno;
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  return error;
}

}  // namespace

int dial_main(int argc, char** argv) {
  if (argc == 2 && !std::strcmp(argv[1], "--help")) {
    std::fputs(usage, stdout);
    return 0;
  }
  if (argc != 3) {
    std::fputs(usage, stderr);
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(argv[1], argv[2], &hints, &found); error != 0) {
    std::fprintf(stderr, "flotilla-agent: cannot find %s: %s\n", argv[1], gai_strerror(error));
    return 1;
  }
  int error = EHOSTUNREACH;
  unique_fd connected;
  for (const addrinfo* to = found; to && !connected; to = to->ai_next) {
    unique_fd fd(socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, to->ai_protocol));
    if (!fd) continue;
    error = connect_within(fd.get(), *to, dial_timeout_ms);
    if (error == 0) connected = std::move(fd);
  }
  freeaddrinfo(found);
  if (connected) {
    const int on = 1;
    setsockopt(connected.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(connected.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    // join polls where a non-blocking descriptor has nothing.
    hub::join_and_exit(STDIN_FILENO, STDOUT_FILENO, connected.get(), hub::WhenInputEnds::half_close);
  }
  std::fprintf(stderr, "flotilla-agent: cannot connect to %s port %s: %s\n", argv[1], argv[2], std::strerror(error));
  return 1;
}

}  // namespace flotilla
