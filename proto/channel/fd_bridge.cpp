#include "proto/channel/fd_bridge.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

namespace flotilla::channel {
namespace {

// The last bytes of a burst are acknowledged when the wire has been quiet for this long: often enough to give memory back,
// too seldom to cost anything while calls go to and fro.
constexpr int quiet_ms = 200;
// A ring of more than this is given back as soon as it is empty; less is kept for the next burst.
constexpr std::size_t kept_ring_bytes = 1u << 20;
// How often one direction goes on before the other one is looked at again.
constexpr int rounds = 8;

class SocketWire final : public Wire {
 public:
  explicit SocketWire(unique_fd fd) : fd_(std::move(fd)) { set_no_delay(fd_.get()); }
  int fd() const override { return fd_.get(); }
  long read(void* to, std::size_t size) override { return ::recv(fd_.get(), to, size, MSG_DONTWAIT); }
  long write(const iovec* pieces, int count) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(pieces);
    message.msg_iovlen = static_cast<std::size_t>(count);
    return ::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  }

 private:
  unique_fd fd_;
};

bool is_wait(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

}  // namespace

void set_no_delay(int fd) {
  int domain = 0;
  socklen_t size = sizeof domain;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || (domain != AF_INET && domain != AF_INET6)) return;
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

std::unique_ptr<Wire> make_socket_wire(unique_fd fd) { return std::make_unique<SocketWire>(std::move(fd)); }

// The data thread owns everything except what is marked; commands reach it through `commands_` and `wake_`.
class FdBridge::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(Side side, std::uint64_t channel, unique_fd user, Post post, BridgeHandlers handlers)
      : endpoint_(side, channel), user_(std::move(user)), post_(std::move(post)), handlers_(std::move(handlers)),
        wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    set_no_delay(user_.get());
  }

  void start() {
    // Signals are the business of the program's other threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  void stop() {
    alive_ = false;
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake();
    if (thread_.joinable()) thread_.join();
    // Closures that are still queued may hold this object for a while; the sockets end now.
    wire_.reset();
    user_.reset();
    commands_.clear();
  }
  void command(std::function<void(Impl&)> what) {
    {
      std::lock_guard lock(mutex_);
      commands_.push_back(std::move(what));
    }
    wake();
  }

  void take_wire(std::unique_ptr<Wire> wire, Status opened) {
    if (!opened) {
      if (opened.error().code != Code::failed_precondition) lost(opened.error());
      return;  // an old epoch: `wire` is closed, the present one stays
    }
    if (over_) {
      drop_wire();
      return;
    }
    wire_ = std::move(wire);
    wire_blocked_ = false;
    announced_ = false;
    flush();
  }
  void drop_wire() {
    endpoint_.disconnect();
    wire_.reset();
  }
  void peer_end(std::uint64_t final_offset) {
    if (auto status = endpoint_.on_peer_end(final_offset); !status) lost(status.error());
  }
  void ack(std::uint32_t epoch, std::uint64_t received) {
    if (auto status = endpoint_.on_ack(epoch, received); !status) lost(status.error());
    else if (endpoint_.ring_capacity() > kept_ring_bytes) endpoint_.trim();
  }
  void renew() {
    send_ack();
    if (endpoint_.user_ended()) tell_user_end();
  }
  void user_gone() {
    if (!user_) return;
    // What the user wrote before it went is still in the socket, and is read until its end.
    ::shutdown(user_.get(), SHUT_RDWR);
    user_broken();
  }

  Endpoint endpoint_;
  std::atomic<std::uint64_t> bytes_from_user_{0}, bytes_to_user_{0};  // read by any thread

 private:
  void wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] auto written = ::write(wake_.get(), &one, sizeof one);
  }

  template <class Handler, class... Args>
  void tell(Handler BridgeHandlers::* handler, Args... args) {
    if (!(handlers_.*handler)) return;
    post_([self = shared_from_this(), handler, args...] {
      if (self->alive_) (self->handlers_.*handler)(args...);
    });
  }
  void tell_user_end() { tell(&BridgeHandlers::on_user_end, endpoint_.taken(), user_hung_up_); }
  void send_ack() {
    if (endpoint_.epoch() == 0) return;
    const auto received = endpoint_.take_ack();
    tell(&BridgeHandlers::on_ack, endpoint_.epoch(), received);
  }

  void lost(const Error& error) {
    drop_wire();
    if (user_) ::shutdown(user_.get(), SHUT_RDWR);
    user_.reset();
    if (!over_) tell(&BridgeHandlers::on_failed, error);
    over_ = true;
  }
  void wire_broken(std::string cause) {
    drop_wire();
    // With both streams at their end the peer may have known it first, and have closed.
    if (endpoint_.user_ended() && endpoint_.peer_ended()) finish();
    if (!over_) tell(&BridgeHandlers::on_wire_broken, endpoint_.epoch(), std::move(cause));
  }
  void finish() {
    if (over_) return;
    over_ = true;
    tell(&BridgeHandlers::on_finished);
    drop_wire();
  }
  void wire_failed() {
    std::string cause = wire_->failure();
    if (cause.empty()) cause = std::strerror(errno);
    wire_broken(std::move(cause));
  }
  void end_of_user(bool hung_up) {
    const bool ended_before = endpoint_.user_ended();
    user_hung_up_ = user_hung_up_ || hung_up;
    endpoint_.on_user_end();
    if (user_hung_up_) {
      endpoint_.discard_incoming();
      user_.reset();
    }
    if (!ended_before || user_hung_up_) tell_user_end();
  }

  // Everything that can go to the wire now. Returns false when it takes no more, or is none.
  bool flush() {
    while (wire_ && endpoint_.has_wire_out()) {
      const Spans out = endpoint_.wire_out();
      const long written = wire_->write(out.pieces.data(), out.count);
      if (written < 0) {
        if (errno == EINTR) continue;
        if (is_wait(errno)) wire_blocked_ = true;
        else wire_failed();
        return false;
      }
      endpoint_.on_written(static_cast<std::size_t>(written));
    }
    wire_blocked_ = false;
    if (wire_ && !announced_ && endpoint_.connected()) {
      announced_ = true;
      tell(&BridgeHandlers::on_connected, endpoint_.epoch());
    }
    return wire_ != nullptr;
  }

  void pump_user() {
    for (int round = 0; round < rounds && user_; ++round) {
      const Spans space = endpoint_.user_space();
      if (space.empty() || endpoint_.user_ended()) return;
      msghdr message{};
      message.msg_iov = const_cast<iovec*>(space.pieces.data());
      message.msg_iovlen = static_cast<std::size_t>(space.count);
      const long count = ::recvmsg(user_.get(), &message, MSG_DONTWAIT);
      if (count < 0) {
        if (errno == EINTR) continue;
        if (!is_wait(errno)) end_of_user(true);
        return;
      }
      if (count == 0) {
        end_of_user(user_events_ & POLLHUP);
        return;
      }
      endpoint_.on_user_bytes(static_cast<std::size_t>(count));
      bytes_from_user_.fetch_add(static_cast<std::uint64_t>(count), std::memory_order_relaxed);
      if (!wire_blocked_) flush();
      if (static_cast<std::size_t>(count) < space.bytes()) return;
    }
  }

  // Returns true when all that has come in was taken.
  bool deliver() {
    for (;;) {
      const iovec bytes = endpoint_.deliverable();
      if (bytes.iov_len == 0) break;
      const long count = ::send(user_.get(), bytes.iov_base, bytes.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (count < 0) {
        if (errno == EINTR) continue;
        if (is_wait(errno)) {
          user_blocked_ = true;
          return false;
        }
        user_broken();
        return true;
      }
      endpoint_.on_delivered(static_cast<std::size_t>(count));
      bytes_to_user_.fetch_add(static_cast<std::uint64_t>(count), std::memory_order_relaxed);
    }
    user_blocked_ = false;
    return true;
  }
  // It takes nothing any more; what it wrote before may still be there.
  void user_broken() {
    endpoint_.discard_incoming();
    user_blocked_ = false;
    user_hung_up_ = true;
    if (endpoint_.user_ended()) end_of_user(true);
  }

  void pump_wire() {
    for (int round = 0; round < rounds && wire_; ++round) {
      const iovec space = endpoint_.wire_space();
      if (space.iov_len == 0) return;
      const bool header = !endpoint_.connected();
      const long count = wire_->read(space.iov_base, space.iov_len);
      if (count < 0) {
        if (errno == EINTR) continue;
        if (!is_wait(errno)) wire_failed();
        return;
      }
      if (count == 0) {
        wire_broken("the connection was closed");
        return;
      }
      if (auto status = endpoint_.on_wire_bytes(static_cast<std::size_t>(count)); !status) {
        lost(status.error());
        return;
      }
      if (header) {
        if (endpoint_.connected()) flush();
        continue;
      }
      const bool delivered = !user_ || deliver();
      if (endpoint_.ack_due()) send_ack();
      if (!delivered || (static_cast<std::size_t>(count) < space.iov_len && !wire_->pending())) return;
    }
  }

  // After each turn: has something come to its end?
  void settle() {
    if (over_) return;
    if (endpoint_.peer_ended() && !peer_end_passed_) {
      peer_end_passed_ = true;
      if (user_) ::shutdown(user_.get(), SHUT_WR);
    }
    if (endpoint_.ack_due()) send_ack();
    if (endpoint_.finished()) finish();
  }

  void run() {
    enum { wake_at, user_at, wire_at };
    for (;;) {
      pollfd polled[3]{{wake_.get(), POLLIN, 0}, {-1, 0, 0}, {-1, 0, 0}};
      bool at_once = false;
      if (user_) {
        short events = 0;
        if (endpoint_.wants_user_bytes()) events |= POLLIN;
        if (user_blocked_) events |= POLLOUT;
        // Without a wish no poll: a hung-up peer would wake us again and again.
        if (events) polled[user_at] = {user_.get(), events, 0};
      }
      if (wire_) {
        short events = 0;
        if (endpoint_.wants_wire_bytes()) {
          events |= wire_->wait_for_read();
          at_once = wire_->pending();
        }
        if (wire_blocked_) events |= wire_->wait_for_write();
        if (events) polled[wire_at] = {wire_->fd(), events, 0};
      }
      const int timeout = at_once ? 0 : endpoint_.ack_owed() && endpoint_.epoch() ? quiet_ms : -1;
      const int ready = ::poll(polled, 3, timeout);
      if (ready < 0 && errno != EINTR) {
        lost(errno_error(Code::internal, "cannot wait for a channel's sockets"));
        return;
      }
      if (ready == 0 && !at_once) {
        send_ack();
        endpoint_.trim();
        continue;
      }
      if (ready < 0) continue;
      user_events_ = polled[user_at].revents;
      if (wire_ && (polled[wire_at].revents || at_once)) {
        if (wire_blocked_) flush();
        if (wire_) pump_wire();
      }
      if (user_ && user_events_) {
        if (user_blocked_ && (user_events_ & (POLLOUT | POLLERR | POLLHUP))) deliver();
        pump_user();
      }
      if (polled[wake_at].revents) {
        std::uint64_t count;
        [[maybe_unused]] auto got = ::read(wake_.get(), &count, sizeof count);
        std::vector<std::function<void(Impl&)>> commands;
        {
          std::lock_guard lock(mutex_);
          commands.swap(commands_);
          if (stopping_) return;
        }
        for (auto& each : commands) each(*this);
      }
      settle();
    }
  }

  unique_fd user_;
  short user_events_ = 0;
  bool user_blocked_ = false, user_hung_up_ = false;
  std::unique_ptr<Wire> wire_;
  bool wire_blocked_ = false;
  bool announced_ = false;       // on_connected was told for this wire
  bool peer_end_passed_ = false;
  bool over_ = false;            // finished or lost: nothing more is told

  Post post_;
  BridgeHandlers handlers_;      // read only; run on the owner's thread
  std::atomic<bool> alive_{true};
  unique_fd wake_;
  std::mutex mutex_;             // guards the two below
  std::vector<std::function<void(Impl&)>> commands_;
  bool stopping_ = false;
  std::thread thread_;
};

FdBridge::FdBridge(Side side, std::uint64_t channel, unique_fd user, Post post, BridgeHandlers handlers)
    : impl_(std::make_shared<Impl>(side, channel, std::move(user), std::move(post), std::move(handlers))) {
  impl_->start();
}
FdBridge::~FdBridge() { impl_->stop(); }

void FdBridge::open_wire(std::unique_ptr<Wire> wire, std::uint32_t epoch, std::string ticket) {
  // std::function wants what can be copied.
  auto shared = std::make_shared<std::unique_ptr<Wire>>(std::move(wire));
  impl_->command([shared, epoch, ticket = std::move(ticket)](Impl& impl) {
    impl.take_wire(std::move(*shared), impl.endpoint_.open(epoch, ticket));
  });
}
void FdBridge::accept_wire(std::unique_ptr<Wire> wire, const Opening& request) {
  auto shared = std::make_shared<std::unique_ptr<Wire>>(std::move(wire));
  impl_->command([shared, request](Impl& impl) { impl.take_wire(std::move(*shared), impl.endpoint_.accept(request)); });
}
void FdBridge::drop_wire() {
  impl_->command([](Impl& impl) { impl.drop_wire(); });
}
void FdBridge::on_ack(std::uint32_t epoch, std::uint64_t received) {
  impl_->command([epoch, received](Impl& impl) { impl.ack(epoch, received); });
}
void FdBridge::on_peer_end(std::uint64_t final_offset) {
  impl_->command([final_offset](Impl& impl) { impl.peer_end(final_offset); });
}
void FdBridge::renew_ack() {
  impl_->command([](Impl& impl) { impl.renew(); });
}
void FdBridge::end_user() {
  impl_->command([](Impl& impl) { impl.user_gone(); });
}
std::uint64_t FdBridge::bytes_from_user() const { return impl_->bytes_from_user_.load(std::memory_order_relaxed); }
std::uint64_t FdBridge::bytes_to_user() const { return impl_->bytes_to_user_.load(std::memory_order_relaxed); }

}  // namespace flotilla::channel
