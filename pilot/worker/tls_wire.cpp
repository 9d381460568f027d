#include "pilot/worker/tls_wire.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>

#include "proto/base/clock.hpp"

namespace flotilla::pilot {
namespace {

using namespace std::chrono_literals;

constexpr auto connect_limit = 5s;
constexpr auto header_limit = 20s;  // the daemon's half is on its way over a slow line, as the hub waits

class TlsWire final : public channel::Wire {
 public:
  explicit TlsWire(tls::Stream stream) : stream_(std::move(stream)) {}
  int fd() const override { return stream_.fd(); }
  long read(void* to, std::size_t size) override {
    const auto moved = stream_.read(to, size);
    return outcome(moved, wait_read_);
  }
  long write(const iovec* pieces, int count) override {
    long total = 0;
    for (int i = 0; i < count; ++i) {
      const auto* from = static_cast<const char*>(pieces[i].iov_base);
      for (std::size_t done = 0; done < pieces[i].iov_len;) {
        const auto moved = stream_.write(from + done, pieces[i].iov_len - done);
        if (moved.step != tls::Step::done) return total > 0 ? (outcome(moved, wait_write_), total) : outcome(moved, wait_write_);
        done += moved.bytes;
        total += static_cast<long>(moved.bytes);
      }
    }
    return total;
  }
  bool pending() const override { return stream_.pending(); }
  short wait_for_read() const override { return wait_read_; }
  short wait_for_write() const override { return wait_write_; }
  std::string failure() const override { return failure_; }

 private:
  long outcome(const tls::Moved& moved, short& wait) {
    switch (moved.step) {
      case tls::Step::done: return static_cast<long>(moved.bytes);
      case tls::Step::ended: return 0;
      case tls::Step::want_read: wait = POLLIN; break;
      case tls::Step::want_write: wait = POLLOUT; break;
      case tls::Step::failed:
        failure_ = stream_.cause();
        errno = EPROTO;
        return -1;
    }
    errno = EAGAIN;
    return -1;
  }

  tls::Stream stream_;
  short wait_read_ = POLLIN, wait_write_ = POLLOUT;
  std::string failure_;
};

// False: the time is over, or `stop` was signalled.
bool wait_for(int fd, short events, BootClock::time_point until, int stop) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - BootClock::now()).count();
    if (left <= 0) return false;
    pollfd watched[2] = {{fd, events, 0}, {stop, POLLIN, 0}};
    const int ready = poll(watched, 2, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    return ready > 0 && watched[1].revents == 0;
  }
}

Result<unique_fd> connect_tcp(const std::string& address, int stop) {
  const auto colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  const std::string port = colon == std::string::npos ? std::string() : address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;  // the hub gives an address; names do not resolve in a static program everywhere
  addrinfo* found = nullptr;
  if (const int problem = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); problem != 0)
    return fail(Code::invalid_argument, "the hub's data address '" + address + "' is not usable: " + gai_strerror(problem));
  unique_fd fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int begun = fd ? connect(fd.get(), found->ai_addr, found->ai_addrlen) : -1;
  const int error = errno;
  freeaddrinfo(found);
  if (begun != 0 && error != EINPROGRESS) {
    errno = error;
    return fail(errno_error(Code::unavailable, "connect to the hub's data port " + address));
  }
  if (begun != 0) {
    if (!wait_for(fd.get(), POLLOUT, BootClock::now() + connect_limit, stop))
      return fail(Code::timeout, "the hub's data port " + address + " does not answer");
    int outcome = 0;
    socklen_t size = sizeof outcome;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &outcome, &size);
    if (outcome != 0) {
      errno = outcome;
      return fail(errno_error(Code::unavailable, "connect to the hub's data port " + address));
    }
  }
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  channel::set_no_delay(fd.get());
  return fd;
}

}  // namespace

std::unique_ptr<channel::Wire> make_tls_wire(tls::Stream stream) { return std::make_unique<TlsWire>(std::move(stream)); }

Result<DialledWire> dial_wire(const std::string& address, const tls::ContextPtr& context, const std::string& server_name,
                              const std::string& ticket, int stop) {
  pollfd stopped{stop, POLLIN, 0};
  if (poll(&stopped, 1, 0) > 0) return fail(Code::canceled, "it was given up before it began");
  auto fd = connect_tcp(address, stop);
  if (!fd) return fail(fd.error());
  auto stream = tls::Stream::make(context, tls::Role::client, std::move(*fd), server_name);
  if (!stream) return fail(stream.error());
  if (auto shaken = stream->handshake_within(connect_limit); !shaken) return fail(shaken.error());
  const auto until = BootClock::now() + header_limit;
  auto keep_on = [&](const tls::Moved& moved) -> Status {
    if (moved.step == tls::Step::failed) return fail(Code::unavailable, "the hub's data connection broke: " + stream->cause());
    if (moved.step == tls::Step::ended) return fail(Code::unavailable, "the hub closed the data connection");
    if (!wait_for(stream->fd(), moved.step == tls::Step::want_write ? POLLOUT : POLLIN, until, stop))
      return fail(Code::timeout, "the channel's connection did not come together in time");
    return {};
  };
  for (std::size_t done = 0; done < ticket.size();) {
    const auto moved = stream->write(ticket.data() + done, ticket.size() - done);
    if (moved.step == tls::Step::done) done += moved.bytes;
    else if (auto going = keep_on(moved); !going) return fail(going.error());
  }
  std::string header(channel::opening_bytes, '\0');
  for (std::size_t done = 0; done < header.size();) {
    const auto moved = stream->read(header.data() + done, header.size() - done);
    if (moved.step == tls::Step::done) done += moved.bytes;
    else if (auto going = keep_on(moved); !going) return fail(going.error());
  }
  auto opening = channel::parse_opening(header);
  if (!opening) return fail(opening.error());
  return DialledWire{make_tls_wire(std::move(*stream)), *opening};
}

}  // namespace flotilla::pilot
