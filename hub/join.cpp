#include "hub/join.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <thread>

namespace flotilla::hub {
namespace {

constexpr std::size_t buffer_bytes = 256u << 10;

bool write_all(int to, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t n = write(to, data, size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {  // somebody made the other end's description non-blocking
      pollfd wait{to, POLLOUT, 0};
      poll(&wait, 1, -1);
      continue;
    }
    if (n <= 0) return false;
    data += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

// Returns when `from` has ended or `to` takes no more.
bool copy(int from, int to) {
  const auto buffer = std::make_unique<char[]>(buffer_bytes);
  for (;;) {
    const ssize_t n = read(from, buffer.get(), buffer_bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      pollfd wait{from, POLLIN, 0};
      poll(&wait, 1, -1);
      continue;
    }
    if (n <= 0) return true;
    if (!write_all(to, buffer.get(), static_cast<std::size_t>(n))) return false;
  }
}

}  // namespace

void join_and_exit(int in, int out, int socket, WhenInputEnds when) {
  std::thread([=] {
    copy(in, socket);
    if (when == WhenInputEnds::leave) _exit(0);
    shutdown(socket, SHUT_WR);
    // Nothing more to read that would tell: POLLERR (pipe) or POLLHUP (socket) says that nobody wants the answer.
    pollfd wait{out, 0, 0};
    while (poll(&wait, 1, -1) < 0 && errno == EINTR) {}
    _exit(0);
  }).detach();
  copy(socket, out);
  _exit(0);
}

}  // namespace flotilla::hub
