#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <memory>

#include "hub/channels.hpp"

namespace flotilla::hub {
namespace {

// Big enough that a system call moves much, small enough to stay in a core's cache with its counterpart.
constexpr std::size_t buffer_bytes = 256u << 10;

struct Buffer {
  std::unique_ptr<char[]> bytes = std::make_unique<char[]>(buffer_bytes);
  std::size_t begin = 0, end = 0;
  bool empty() const { return begin == end; }
  std::size_t size() const { return end - begin; }
  std::size_t room() const { return buffer_bytes - end; }
  void take(std::size_t count) {
    begin += count;
    if (begin == end) begin = end = 0;
  }
};

}  // namespace

std::string relay(unique_fd plain, tls::Stream secure, std::string first, int stop) {
  using tls::Step;
  fcntl(plain.get(), F_SETFL, fcntl(plain.get(), F_GETFL) | O_NONBLOCK);
  Buffer up, down;  // plain -> secure, secure -> plain
  std::memcpy(up.bytes.get(), first.data(), first.size());
  up.end = first.size();
  bool plain_ended = false, secure_ended = false;        // nothing more comes from there
  bool secure_finished = false, plain_finished = false;  // nothing more goes there
  std::string broken;                                    // the pilot's side; what it sent before is still passed on
  for (;;) {
    short secure_wants = 0;
    bool moved = false;
    if (up.empty() && !plain_ended) {
      const ssize_t n = recv(plain.get(), up.bytes.get(), buffer_bytes, 0);
      if (n > 0) {
        up.end = static_cast<std::size_t>(n);
        moved = true;
      } else if (n == 0) {
        plain_ended = moved = true;
      } else if (errno != EAGAIN && errno != EINTR) {
        return std::string("the daemon's side broke: ") + std::strerror(errno);
      }
    }
    while (!up.empty()) {
      const auto out = secure.write(up.bytes.get() + up.begin, up.size());
      if (out.step == Step::done) {
        up.take(out.bytes);
        moved = true;
        continue;
      }
      if (out.step == Step::want_write) secure_wants |= POLLOUT;
      else if (out.step == Step::want_read) secure_wants |= POLLIN;
      else return "the pilot's side broke: " + secure.cause();
      break;
    }
    if (plain_ended && up.empty() && !secure_finished) {
      const Step step = secure.finish();
      if (step == Step::done) secure_finished = true;
      else if (step == Step::want_write) secure_wants |= POLLOUT;
      else if (step == Step::want_read) secure_wants |= POLLIN;
      else return "the pilot's side broke: " + secure.cause();
    }
    // As much as is there, so that the daemon's side is woken once for it.
    while (!secure_ended && down.room() > 0) {
      const auto in = secure.read(down.bytes.get() + down.end, down.room());
      if (in.step == Step::done) {
        down.end += in.bytes;
        moved = true;
        continue;
      }
      if (in.step == Step::ended) secure_ended = moved = true;
      else if (in.step == Step::want_read) secure_wants |= POLLIN;
      else if (in.step == Step::want_write) secure_wants |= POLLOUT;
      else {
        broken = "the pilot's side broke: " + secure.cause();
        secure_ended = moved = true;
      }
      break;
    }
    if (!down.empty()) {
      const ssize_t n = send(plain.get(), down.bytes.get() + down.begin, down.size(), MSG_NOSIGNAL);
      if (n > 0) {
        down.take(static_cast<std::size_t>(n));
        moved = true;
      } else if (errno != EAGAIN && errno != EINTR) {
        return std::string("the daemon's side broke: ") + std::strerror(errno);
      }
    }
    if (!broken.empty() && down.empty()) return broken;
    if (secure_ended && down.empty() && !plain_finished) {
      shutdown(plain.get(), SHUT_WR);
      plain_finished = true;
    }
    if (secure_finished && plain_finished) return "both sides have ended";
    if (moved) continue;

    pollfd wait[3] = {{plain.get(), 0, 0}, {secure.fd(), secure_wants, 0}, {stop, POLLIN, 0}};
    if (up.empty() && !plain_ended) wait[0].events |= POLLIN;
    if (!down.empty()) wait[0].events |= POLLOUT;
    // An end that is only waited on for nothing would be reported for ever.
    if (!wait[0].events) wait[0].fd = -1;
    if (!wait[1].events) wait[1].fd = -1;
    if (poll(wait, 3, -1) < 0 && errno != EINTR) return std::string("poll: ") + std::strerror(errno);
    if (wait[2].revents) return "the hub ends";
  }
}

}  // namespace flotilla::hub
