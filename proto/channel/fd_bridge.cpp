#include "proto/channel/fd_bridge.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace flotilla::channel {
namespace {

// The last bytes of a burst are acknowledged when the wire has been quiet for this long: often enough to give memory back,
// too seldom to cost anything while calls go to and fro.
constexpr long quiet_ns = 200'000'000;
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
    if (count == 1) return ::send(fd_.get(), pieces->iov_base, pieces->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
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
        epoll_(epoll_create1(EPOLL_CLOEXEC)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        quiet_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
    set_no_delay(user_.get());
    watch(wake_.get(), Source::wake, EPOLLIN);
    watch(quiet_.get(), Source::quiet, EPOLLIN);
  }

  void start() {
    // Signals are the business of the program's other threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      thread_ = std::thread([this] { run(); });
    } catch (const std::system_error& error) {  // the user's limit of processes
      threadless_ = true;
      lost(Error{Code::resource_exhausted, std::string("no thread could be started for it: ") + error.what(), {}, Retry::no, {}});
    }
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
    if (threadless_) return what(*this);
    {
      std::lock_guard lock(mutex_);
      commands_.push_back(std::move(what));
    }
    wake();
  }

  // `request`: of the accepter.
  void take_wire(std::unique_ptr<Wire> wire, Status opened, const Opening* request) {
    if (!opened) {
      if (opened.error().code == Code::failed_precondition) return;  // an old epoch: `wire` is closed, the present one stays
      lost(opened.error());
    }
    if (over_) {
      // A connection that is only closed would be made again, and again: the peer is told how it stands. What is finished
      // answers as ever, so that the peer learns what has arrived.
      if (request && (lost_ || !opened)) {
        const auto refusal = format_opening(refusal_of(*request));
        const iovec piece{const_cast<char*>(refusal.data()), refusal.size()};
        (void)wire->write(&piece, 1);  // into an empty buffer
      } else if (request) {
        const Spans out = endpoint_.wire_out();
        (void)wire->write(out.pieces.data(), out.count);
      }
      drop_wire();
      return;
    }
    close_wire();
    wire_ = std::move(wire);
    announced_ = false;
    flush();
  }
  void drop_wire() {
    endpoint_.disconnect();
    close_wire();
  }
  void peer_end(std::uint64_t final_offset) {
    if (auto status = endpoint_.on_peer_end(final_offset); !status) lost(status.error());
  }
  // From any thread. The data thread is woken only when it waits for this; else it looks at its next turn.
  void ack_from_peer(std::uint32_t epoch, std::uint64_t received) {
    {
      std::lock_guard lock(mutex_);
      acks_.push_back({epoch, received});
    }
    ack_came_ = true;
    if (waits_for_ack_) wake();
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

  enum class Source : std::uint32_t { wake, quiet, user, wire };
  void watch(int fd, Source source, std::uint32_t events) {
    epoll_event event{events, {.u32 = static_cast<std::uint32_t>(source)}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  }
  // Keeps what epoll watches in step with what is wished for; a system call only at a change. No wish, no watching: a
  // hung-up peer would wake us again and again.
  void wish(int fd, Source source, std::uint32_t& watched, std::uint32_t events) {
    if (events == watched) return;
    epoll_event event{events, {.u32 = static_cast<std::uint32_t>(source)}};
    epoll_ctl(epoll_.get(), !watched ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, fd, &event);
    watched = events;
  }
  void close_user() {
    if (!user_) return;
    wish(user_.get(), Source::user, user_watched_, 0);
    user_.reset();
  }
  void close_wire() {
    if (!wire_) return;
    wish(wire_->fd(), Source::wire, wire_watched_, 0);
    wire_.reset();
    wire_blocked_ = false;
  }

  template <class Handler, class... Args>
  void tell(Handler BridgeHandlers::*handler, Args... args) {
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
    close_user();
    if (!over_) tell(&BridgeHandlers::on_failed, error);
    over_ = lost_ = true;
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
      close_user();
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

  long receive(const Spans& space) {
    if (space.count == 1) return ::recv(user_.get(), space.pieces[0].iov_base, space.pieces[0].iov_len, MSG_DONTWAIT);
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(space.pieces.data());
    message.msg_iovlen = static_cast<std::size_t>(space.count);
    return ::recvmsg(user_.get(), &message, MSG_DONTWAIT);
  }

  void pump_user() {
    for (int round = 0; round < rounds && user_; ++round) {
      const Spans space = endpoint_.user_space();
      if (space.empty() || endpoint_.user_ended()) return;
      const long count = receive(space);
      if (count < 0) {
        if (errno == EINTR) continue;
        if (!is_wait(errno)) end_of_user(true);
        return;
      }
      if (count == 0) {
        end_of_user(user_events_ & EPOLLHUP);
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

  void take_acks() {
    if (!ack_came_.exchange(false)) return;
    std::vector<PeerAck> acks;
    {
      std::lock_guard lock(mutex_);
      acks.swap(acks_);
    }
    for (const auto& each : acks) ack(each.epoch, each.received);
  }
  // False: it is time to end.
  bool take_commands() {
    std::uint64_t count;
    [[maybe_unused]] auto got = ::read(wake_.get(), &count, sizeof count);
    std::vector<std::function<void(Impl&)>> commands;
    {
      std::lock_guard lock(mutex_);
      commands.swap(commands_);
      if (stopping_) return false;
    }
    for (auto& each : commands) each(*this);
    return true;
  }
  // The timer runs only while something is to be acknowledged, and is set again only when it ran out: nothing of it is in
  // the way of a call.
  void start_quiet_timer() {
    if (timer_runs_) return;
    timer_runs_ = true;
    itimerspec in{};
    in.it_value.tv_nsec = quiet_ns;
    timerfd_settime(quiet_.get(), 0, &in, nullptr);
    received_at_timer_ = endpoint_.received();
  }
  void on_quiet_timer() {
    std::uint64_t count;
    [[maybe_unused]] auto got = ::read(quiet_.get(), &count, sizeof count);
    timer_runs_ = false;
    if (!endpoint_.ack_owed() || endpoint_.received() != received_at_timer_) return;  // not quiet
    send_ack();
    endpoint_.trim();
  }

  void run() {
    for (;;) {
      bool at_once = false;
      if (user_)
        wish(user_.get(), Source::user, user_watched_, (endpoint_.wants_user_bytes() ? EPOLLIN : 0u) | (user_blocked_ ? EPOLLOUT : 0u));
      if (wire_) {
        std::uint32_t events = 0;
        if (endpoint_.wants_wire_bytes()) {
          events |= static_cast<std::uint32_t>(wire_->wait_for_read());  // POLLIN and EPOLLIN are the same, and so on
          at_once = wire_->pending();
        }
        if (wire_blocked_) events |= static_cast<std::uint32_t>(wire_->wait_for_write());
        wish(wire_->fd(), Source::wire, wire_watched_, events);
      }
      if (endpoint_.ack_owed() && endpoint_.epoch()) start_quiet_timer();
      const bool waits_for_ack = endpoint_.user_ended() || !endpoint_.wants_user_bytes();
      if (waits_for_ack_ != waits_for_ack) waits_for_ack_ = waits_for_ack;
      if (waits_for_ack && ack_came_) at_once = true;  // it came before it was said that it is waited for

      epoll_event events[4];
      const int ready = ::epoll_wait(epoll_.get(), events, 4, at_once ? 0 : -1);
      if (ready < 0 && errno != EINTR) {
        lost(errno_error(Code::internal, "cannot wait for a channel's sockets"));
        return;
      }
      user_events_ = 0;
      bool woken = false, wire_ready = at_once;
      for (int i = 0; i < ready; ++i) switch (static_cast<Source>(events[i].data.u32)) {
          case Source::wake: woken = true; break;
          case Source::quiet: on_quiet_timer(); break;
          case Source::user: user_events_ = events[i].events; break;
          case Source::wire: wire_ready = true; break;
        }
      if (wire_ && wire_ready) {
        if (wire_blocked_) flush();
        pump_wire();
      }
      if (user_ && user_events_) {
        if (user_blocked_) deliver();
        pump_user();
      }
      if (woken && !take_commands()) return;
      take_acks();
      settle();
    }
  }

  unique_fd user_;
  std::uint32_t user_events_ = 0, user_watched_ = 0, wire_watched_ = 0;  // epoll's: of this turn; as set
  bool user_blocked_ = false, user_hung_up_ = false;
  std::unique_ptr<Wire> wire_;
  bool wire_blocked_ = false;
  bool announced_ = false;  // on_connected was told for this wire
  bool peer_end_passed_ = false;
  bool over_ = false;  // finished or lost: nothing more is told
  bool lost_ = false;

  Post post_;
  BridgeHandlers handlers_;  // read only; run on the owner's thread
  std::atomic<bool> alive_{true};
  unique_fd epoll_, wake_;
  unique_fd quiet_;
  bool timer_runs_ = false;
  std::uint64_t received_at_timer_ = 0;
  struct PeerAck {
    std::uint32_t epoch;
    std::uint64_t received;
  };
  std::atomic<bool> ack_came_{false}, waits_for_ack_{false};
  std::mutex mutex_;  // guards the three below
  std::vector<PeerAck> acks_;
  std::vector<std::function<void(Impl&)>> commands_;
  bool stopping_ = false;
  std::thread thread_;
  bool threadless_ = false;  // lost from the start: commands run on the owner's thread
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
    impl.take_wire(std::move(*shared), impl.endpoint_.open(epoch, ticket), nullptr);
  });
}
void FdBridge::accept_wire(std::unique_ptr<Wire> wire, const Opening& request) {
  auto shared = std::make_shared<std::unique_ptr<Wire>>(std::move(wire));
  impl_->command([shared, request](Impl& impl) { impl.take_wire(std::move(*shared), impl.endpoint_.accept(request), &request); });
}
void FdBridge::drop_wire() {
  impl_->command([](Impl& impl) { impl.drop_wire(); });
}
void FdBridge::on_ack(std::uint32_t epoch, std::uint64_t received) { impl_->ack_from_peer(epoch, received); }
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
