#include "daemon/transport/user_channel.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>

namespace flotilla::daemon {
namespace {

// How often one direction goes on before the others on the same thread get their turn.
constexpr int rounds = 8;

bool is_wait(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

}  // namespace

// Frames of the link are taken without limit; the endpoint's ring bounds what is under way.
class UserChannel::FrameWire final : public ChannelWire {
 public:
  explicit FrameWire(std::function<void(std::uint64_t, std::string)> send) : send_(std::move(send)) {}
  long write(const iovec* pieces, int count) override {
    std::string data;
    for (int i = 0; i < count; ++i) data.append(static_cast<const char*>(pieces[i].iov_base), pieces[i].iov_len);
    const auto size = data.size();
    send_(sent_, std::move(data));
    sent_ += size;
    return static_cast<long>(size);
  }
  void wake() override {}  // its thread is the io thread, which acknowledgements come to

  std::uint64_t received = 0;
  std::string waiting;  // came in, not yet taken; the peer's ring bounds it

 private:
  std::function<void(std::uint64_t, std::string)> send_;
  std::uint64_t sent_ = 0;
};

UserChannel::UserChannel(boost::asio::io_context& io, std::uint64_t number, unique_fd user, UserChannelEvents events)
    : io_(io), number_(number), events_(std::move(events)), user_(std::move(user)), endpoint_(channel::Side::opener, number) {}

UserChannel::~UserChannel() = default;

void UserChannel::tell(std::function<void(const UserChannelEvents&)> what) {
  boost::asio::post(io_, [self = shared_from_this(), what = std::move(what)] {
    if (!self->silent_) what(self->events_);
  });
}

void UserChannel::send_ack() {
  if (endpoint_.epoch() == 0) return;
  const auto received = endpoint_.take_ack();
  tell([epoch = endpoint_.epoch(), received](const UserChannelEvents& events) {
    if (events.on_ack) events.on_ack(epoch, received);
  });
}

void UserChannel::lost(const Error& error) {
  endpoint_.disconnect();
  wire_ = nullptr;
  ::shutdown(user_.get(), SHUT_RDWR);
  user_closed_ = true;
  if (!over_)
    tell([error](const UserChannelEvents& events) {
      if (events.on_failed) events.on_failed(error);
    });
  over_ = true;
}

void UserChannel::broken(const std::string& cause) {
  const auto epoch = endpoint_.epoch();
  endpoint_.disconnect();
  wire_ = nullptr;
  wire_blocked_ = false;
  if (endpoint_.user_ended() && endpoint_.peer_ended()) over_ = true;
  if (!over_)
    tell([epoch, cause](const UserChannelEvents& events) {
      if (events.on_broken) events.on_broken(epoch, cause);
    });
  watch();
}

void UserChannel::end_of_user(bool hung_up) {
  const bool told_end = endpoint_.user_ended(), told_gone = user_hung_up_;
  user_hung_up_ = user_hung_up_ || hung_up;
  endpoint_.on_user_end();
  if (user_hung_up_) {
    endpoint_.discard_incoming();
    user_closed_ = true;
    user_blocked_ = false;
  }
  tell([offset = endpoint_.taken(), end = !told_end, gone = user_hung_up_ && !told_gone](const UserChannelEvents& events) {
    if (end && events.on_user_end) events.on_user_end(offset);
    if (gone && events.on_user_gone) events.on_user_gone();
  });
}

// It takes nothing any more; what it wrote before may still be there to be read.
void UserChannel::user_broken() {
  endpoint_.discard_incoming();
  user_blocked_ = false;
  if (endpoint_.user_ended()) end_of_user(true);
}

bool UserChannel::flush() {
  while (wire_ && !wire_blocked_ && endpoint_.has_wire_out()) {
    const auto out = endpoint_.wire_out();
    const long written = wire_->write(out.pieces.data(), out.count);
    if (written < 0) return false;  // its thread finds out and detaches
    if (written == 0) wire_blocked_ = true;
    else endpoint_.on_written(static_cast<std::size_t>(written));
  }
  if (wire_ && !announced_ && endpoint_.connected()) {
    announced_ = true;
    // What was said on an earlier link may be lost; the header has told the peer what we received.
    if (endpoint_.user_ended())
      tell([offset = endpoint_.taken()](const UserChannelEvents& events) {
        if (events.on_user_end) events.on_user_end(offset);
      });
  }
  return wire_ != nullptr;
}

bool UserChannel::deliver() {
  for (;;) {
    const auto bytes = endpoint_.deliverable();
    if (bytes.iov_len == 0) break;
    if (user_closed_) {
      endpoint_.discard_incoming();
      break;
    }
    const long count = ::send(user_.get(), bytes.iov_base, bytes.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0) {
      if (errno == EINTR) continue;
      if (is_wait(errno)) {
        user_blocked_ = true;
        return false;
      }
      user_broken();
      break;
    }
    endpoint_.on_delivered(static_cast<std::size_t>(count));
    to_user_.fetch_add(static_cast<std::uint64_t>(count), std::memory_order_relaxed);
  }
  user_blocked_ = false;
  return true;
}

void UserChannel::pump_user(short revents) {
  for (int round = 0; round < rounds && !user_closed_ && !endpoint_.user_ended(); ++round) {
    const auto space = endpoint_.user_space();
    if (space.empty()) return;
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
      end_of_user(revents & POLLHUP);
      return;
    }
    endpoint_.on_user_bytes(static_cast<std::size_t>(count));
    from_user_.fetch_add(static_cast<std::uint64_t>(count), std::memory_order_relaxed);
    flush();
    if (static_cast<std::size_t>(count) < space.bytes()) return;
  }
}

void UserChannel::settle() {
  if (over_) return;
  if (endpoint_.peer_ended() && !peer_end_passed_) {
    peer_end_passed_ = true;
    if (!user_closed_) ::shutdown(user_.get(), SHUT_WR);
  }
  if (endpoint_.ack_due()) send_ack();
  if (endpoint_.finished()) over_ = true;
}

short UserChannel::wanted_events() const {
  if (user_closed_) return 0;
  short events = 0;
  if (!endpoint_.user_ended() && endpoint_.wants_user_bytes()) events |= POLLIN;
  if (user_blocked_) events |= POLLOUT;
  return events;
}

Status UserChannel::attach(ChannelWire* wire, std::uint32_t epoch, std::string_view ticket) {
  std::lock_guard lock(mutex_);
  if (over_) return fail(Code::failed_precondition, "channel " + std::to_string(number_) + " has ended");
  if (auto opened = endpoint_.open(epoch, ticket); !opened) return opened;
  frames_.reset();
  wire_ = wire;
  wire_blocked_ = announced_ = false;
  flush();
  return {};
}

void UserChannel::detach(ChannelWire* wire, const std::string& cause) {
  std::lock_guard lock(mutex_);
  if (wire_ == wire) broken(cause);
}

bool UserChannel::attached(const ChannelWire* wire) const {
  std::lock_guard lock(mutex_);
  return wire_ == wire;
}

short UserChannel::user_events() const {
  std::lock_guard lock(mutex_);
  return wanted_events();
}

void UserChannel::on_user_ready(short revents) {
  std::lock_guard lock(mutex_);
  if (user_closed_) return;
  if (user_blocked_ && (revents & (POLLOUT | POLLERR | POLLHUP))) deliver();
  if (revents & (POLLIN | POLLERR | POLLHUP)) pump_user(revents);
  settle();
}

std::size_t UserChannel::on_wire_bytes(const ChannelWire* from, std::string_view bytes) {
  std::lock_guard lock(mutex_);
  if (wire_ != from) return bytes.size();
  std::size_t taken = 0;
  while (taken < bytes.size() && wire_) {
    const auto space = endpoint_.wire_space();
    if (space.iov_len == 0) {
      if (!deliver()) break;
      if (endpoint_.wire_space().iov_len == 0) break;
      continue;
    }
    const bool header = !endpoint_.connected();
    const auto count = std::min(space.iov_len, bytes.size() - taken);
    std::memcpy(space.iov_base, bytes.data() + taken, count);
    taken += count;
    if (auto status = endpoint_.on_wire_bytes(count); !status) {
      lost(status.error());
      return bytes.size();
    }
    if (header) {
      if (endpoint_.connected()) flush();
    } else if (!deliver()) {
      break;
    }
    if (endpoint_.ack_due()) send_ack();
  }
  settle();
  return taken;
}

void UserChannel::on_wire_writable(const ChannelWire* wire) {
  std::lock_guard lock(mutex_);
  if (wire_ != wire) return;
  wire_blocked_ = false;
  flush();
}

void UserChannel::forwarding_failed(std::uint32_t epoch, const std::string& ticket) {
  tell([epoch, ticket](const UserChannelEvents& events) {
    if (events.on_no_forwarding) events.on_no_forwarding(epoch, ticket);
  });
}

bool UserChannel::owes() const {
  std::lock_guard lock(mutex_);
  return endpoint_.ack_owed() && endpoint_.epoch() != 0;
}

void UserChannel::on_quiet() {
  std::lock_guard lock(mutex_);
  if (endpoint_.ack_owed()) send_ack();
  endpoint_.trim();
}

void UserChannel::on_ack(std::uint32_t epoch, std::uint64_t received) {
  std::lock_guard lock(mutex_);
  const bool was_full = !endpoint_.wants_user_bytes();
  if (auto status = endpoint_.on_ack(epoch, received); !status) lost(status.error());
  settle();
  if (was_full && wire_ && endpoint_.wants_user_bytes()) wire_->wake();
  watch();
}

void UserChannel::on_peer_end(std::uint64_t final_offset) {
  std::lock_guard lock(mutex_);
  if (over_) return;
  if (auto status = endpoint_.on_peer_end(final_offset); !status) lost(status.error());
  settle();
}

Status UserChannel::attach_frames(std::uint32_t epoch, std::string_view ticket, std::function<void(std::uint64_t, std::string)> send) {
  std::lock_guard lock(mutex_);
  if (over_) return fail(Code::failed_precondition, "channel " + std::to_string(number_) + " has ended");
  if (auto opened = endpoint_.open(epoch, ticket); !opened) return opened;
  frames_ = std::make_unique<FrameWire>(std::move(send));
  wire_ = frames_.get();
  wire_blocked_ = announced_ = false;
  flush();
  watch();
  return {};
}

void UserChannel::on_frame(std::uint32_t epoch, std::uint64_t offset, std::string_view bytes) {
  std::string all;
  {
    std::lock_guard lock(mutex_);
    if (!frames_ || wire_ != frames_.get() || epoch != endpoint_.epoch()) return;
    if (offset != frames_->received) {
      broken("frames of the channel are missing");
      return;
    }
    frames_->received += bytes.size();
    frames_->waiting.append(bytes);
    all.swap(frames_->waiting);
  }
  take_frames(std::move(all));
}

bool UserChannel::uses_frames() const {
  std::lock_guard lock(mutex_);
  return frames_ && wire_ == frames_.get();
}

void UserChannel::detach_frames(const std::string& cause) {
  std::lock_guard lock(mutex_);
  if (frames_ && wire_ == frames_.get()) broken(cause);
  frames_.reset();
}

// Without a wire of another thread the io thread looks after the user: to hand out the last bytes, and for frames.
void UserChannel::watch() {
  if (!io_events() || watch_posted_) return;
  watch_posted_ = true;
  boost::asio::post(io_, [self = shared_from_this()] { self->watch_on_io(); });
}

short UserChannel::io_events() const {
  if (silent_ || user_closed_ || (wire_ && wire_ != frames_.get())) return 0;
  // Without a wire nothing is read: the user's bytes wait in its socket.
  return static_cast<short>(wanted_events() & (wire_ ? POLLIN | POLLOUT : POLLOUT));
}

void UserChannel::watch_on_io() {
  std::lock_guard lock(mutex_);
  watch_posted_ = false;
  const short events = io_events();
  if (!events) {
    watcher_.reset();
    watching_ = 0;
    return;
  }
  // Made when wanted only: what is registered with the io thread's poll wakes it at every byte.
  if (!watcher_) {
    const int copy = ::fcntl(user_.get(), F_DUPFD_CLOEXEC, 3);
    if (copy < 0) return;
    watcher_ = std::make_unique<boost::asio::posix::stream_descriptor>(io_, copy);
  }
  using descriptor = boost::asio::posix::stream_descriptor;
  for (const auto& [event, kind] : {std::pair(POLLIN, descriptor::wait_read), std::pair(POLLOUT, descriptor::wait_write)}) {
    if (!(events & event) || (watching_ & event)) continue;
    watching_ = static_cast<short>(watching_ | event);
    watcher_->async_wait(kind, [self = shared_from_this(), event = event](boost::system::error_code error) {
      if (!error) self->on_io_ready(static_cast<short>(event));
    });
  }
}

void UserChannel::on_io_ready(short event) {
  std::string rest;
  {
    std::lock_guard lock(mutex_);
    watching_ = static_cast<short>(watching_ & ~event);
    if (!(io_events() & event)) {
      watch();
      return;
    }
  }
  // poll() tells a closed socket from a half-closed one.
  pollfd polled{user_.get(), event, 0};
  if (::poll(&polled, 1, 0) > 0) on_user_ready(polled.revents);
  {
    std::lock_guard lock(mutex_);
    if (frames_) rest.swap(frames_->waiting);
  }
  take_frames(std::move(rest));
}

// `waiting` was swapped out; the io thread alone puts something into it.
void UserChannel::take_frames(std::string bytes) {
  const auto taken = bytes.empty() ? 0 : on_wire_bytes(frames_.get(), bytes);  // the io thread alone changes frames_
  std::lock_guard lock(mutex_);
  if (frames_) frames_->waiting.insert(0, bytes, taken);
  watch();
}

void UserChannel::close() {
  silent_ = true;
  std::lock_guard lock(mutex_);
  watcher_.reset();
  over_ = true;
  user_closed_ = true;
  endpoint_.disconnect();
  wire_ = nullptr;
  endpoint_.discard_incoming();
  ::shutdown(user_.get(), SHUT_RDWR);
}

}  // namespace flotilla::daemon
