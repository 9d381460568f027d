#include "pilot/worker/remote_channels.hpp"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "pilot/worker/tls_wire.hpp"
#include "proto/base/log.hpp"
#include "proto/channel/fd_bridge.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::pilot {
namespace {

using namespace std::chrono_literals;
using Descriptor = boost::asio::posix::stream_descriptor;

constexpr auto linger = 60s;  // for the last bytes of a worker whose job was forgotten
constexpr std::size_t frame_bytes = 64u << 10;
constexpr std::size_t link_queue_bytes = 1u << 20;  // where forwarding is forbidden, channels leave this much room to others
constexpr auto link_queue_wait = 5ms;
constexpr std::size_t dials_at_once = 8;  // each waits for the daemon's half over a slow line

}  // namespace

struct RemoteChannels::Channel {
  explicit Channel(boost::asio::io_context& io) : linger_timer(io) {}
  std::uint64_t number = 0;
  Attempt attempt;
  std::unique_ptr<channel::FdBridge> bridge;
  std::function<void(const std::string& cause)> on_client_gone;
  std::optional<std::uint64_t> final_offset;  // of the worker's stream
  std::optional<v1::ExitReason> reason;
  bool over = false, forgotten = false;  // over: nothing is left to be delivered
  Timer linger_timer;
};

struct RemoteChannels::Dial {
  unique_fd stop_event{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  void stop() {
    const std::uint64_t one = 1;
    (void)!write(stop_event.get(), &one, sizeof one);
  }
};

// The bytes of a connection as frames of the link: a socket pair stands in for it.
struct RemoteChannels::FrameWire {
  explicit FrameWire(boost::asio::io_context& io) : ours(io), timer(io) {}
  std::uint64_t number = 0;
  std::uint32_t epoch = 0;
  Descriptor ours;
  Timer timer;
  std::uint64_t received = 0, sent = 0;
  std::string waiting;  // bytes to the pair that it did not take yet
  bool writing = false;
};

RemoteChannels::RemoteChannels(boost::asio::io_context& io, Upper upper)
    : io_(io), upper_(std::move(upper)), acceptor_(io, "the socket of the hub's channels") {}

RemoteChannels::~RemoteChannels() {
  for (auto& [number, dial] : dialling_) dial->stop();
  if (dial_threads_) dial_threads_->join();
}

Status RemoteChannels::listen(const std::filesystem::path& socket) {
  return acceptor_.open_at(socket, [this](unique_fd hub) { wait_for_message(std::make_shared<Descriptor>(io_, hub.release())); });
}

void RemoteChannels::wait_for_message(const std::shared_ptr<Descriptor>& connection) {
  connection->async_wait(Descriptor::wait_read,
                         [this, connection, alive = std::weak_ptr<bool>(alive_)](const boost::system::error_code& error) {
                           if (error || alive.expired()) return;
                           auto message = channel::receive_fds(connection->native_handle(), channel::opening_bytes);
                           if (!message) {
                             if (message.error().retry == Retry::yes) wait_for_message(connection);
                             return;
                           }
                           if (message->bytes.empty()) return;
                           auto opening = channel::parse_opening(message->bytes);
                           if (!opening || message->fds.size() != 1) {
                             spdlog::warn("what came to the channel socket is not a channel's connection");
                             return;
                           }
                           attach(*opening, channel::make_socket_wire(std::move(message->fds[0])));
                           wait_for_message(connection);
                         });
}

void RemoteChannels::attach(const channel::Opening& opening, std::unique_ptr<channel::Wire> wire) {
  auto it = channels_.find(opening.channel);
  if (it != channels_.end()) {
    it->second->bridge->accept_wire(std::move(wire), opening);
    return;
  }
  spdlog::info("channel {} is not here (any more): refused", opening.channel);
  auto answer = channel::format_opening(channel::refusal_of(opening));
  const iovec piece{answer.data(), answer.size()};
  (void)wire->write(&piece, 1);  // into an empty buffer
}

void RemoteChannels::add(Attempt attempt, unique_fd worker, std::function<void(const std::string&)> on_client_gone) {
  auto channel = std::make_shared<Channel>(io_);
  channel->number = attempt.job.value;
  channel->attempt = attempt;
  channel->on_client_gone = std::move(on_client_gone);
  // The bridge is destroyed before what its handlers point to, and they do not run after that.
  Channel* raw = channel.get();
  channel::BridgeHandlers handlers;
  handlers.on_ack = [this, raw](std::uint32_t epoch, std::uint64_t received) {
    v1::Frame frame;
    auto& ack = *frame.mutable_channel_ack();
    ack.set_channel(raw->number);
    ack.set_epoch(epoch);
    ack.set_received(received);
    upper_.send(std::move(frame));
  };
  handlers.on_connected = [raw](std::uint32_t epoch) { spdlog::info("channel {}: connection {} is open", raw->number, epoch); };
  handlers.on_wire_broken = [raw](std::uint32_t epoch, const std::string& cause) {
    spdlog::info("channel {}: connection {} ended: {}", raw->number, epoch, cause);
  };
  handlers.on_user_end = [this, raw](std::uint64_t final_offset, bool) {
    raw->final_offset = final_offset;
    send_end(*raw);
  };
  handlers.on_finished = [this, raw] {
    raw->over = true;
    if (raw->on_client_gone && !raw->reason) raw->on_client_gone({});
    if (raw->forgotten) drop(raw->number);
  };
  handlers.on_failed = [this, raw](const Error& error) {
    spdlog::warn("channel {} is lost: {}", raw->number, error.message);
    raw->over = true;
    if (raw->on_client_gone && !raw->reason) raw->on_client_gone("its channel was lost: " + error.message);
    if (raw->forgotten) drop(raw->number);
  };
  channel->bridge = std::make_unique<channel::FdBridge>(
      channel::Side::accepter, channel->number, std::move(worker),
      [&io = io_](std::function<void()> work) { boost::asio::post(io, std::move(work)); }, std::move(handlers));
  channels_[channel->number] = std::move(channel);
}

void RemoteChannels::send_end(Channel& channel) {
  v1::Frame frame;
  auto& end = *frame.mutable_channel_end();
  end.set_channel(channel.number);
  end.set_final_offset(channel.final_offset.value_or(0));
  if (channel.reason) *end.mutable_exit() = *channel.reason;
  upper_.send(std::move(frame));
}

void RemoteChannels::end(Attempt attempt, const v1::ExitReason& reason) {
  auto it = channels_.find(attempt.job.value);
  if (it == channels_.end() || it->second->attempt != attempt) return;
  it->second->reason = reason;
  if (it->second->final_offset) send_end(*it->second);
  it->second->bridge->end_user();
}

void RemoteChannels::forget(Attempt attempt) {
  auto it = channels_.find(attempt.job.value);
  if (it == channels_.end() || it->second->attempt != attempt) return;
  auto channel = it->second;
  channel->forgotten = true;
  if (channel->over) {
    drop(channel->number);
    return;
  }
  channel->linger_timer.expires_after(linger);
  channel->linger_timer.async_wait(
      [this, weak = std::weak_ptr<Channel>(channel), alive = std::weak_ptr<bool>(alive_)](const boost::system::error_code& error) {
        auto late = weak.lock();
        if (!error && late && !alive.expired()) drop(late->number);
      });
}

// Not from inside the bridge's own reaction.
void RemoteChannels::drop(std::uint64_t number) {
  auto it = channels_.find(number);
  if (it == channels_.end()) return;
  boost::asio::post(io_, [channel = it->second] {});
  channels_.erase(it);
  frames_.erase(number);
}

std::optional<ChannelCounts> RemoteChannels::counts(Attempt attempt) const {
  auto it = channels_.find(attempt.job.value);
  if (it == channels_.end() || it->second->attempt != attempt) return std::nullopt;
  return ChannelCounts{0, it->second->bridge->bytes_to_user(), it->second->bridge->bytes_from_user()};
}

// ---- from the link -------------------------------------------------------------------------------------

void RemoteChannels::send_refusal(const v1::ExpectChannel& expect, const Error& error) {
  spdlog::warn("channel {}: {}", expect.channel(), error.text());
  v1::Frame frame;
  auto& refused = *frame.mutable_channel_refused();
  refused.set_channel(expect.channel());
  refused.set_epoch(expect.epoch());
  refused.set_cause(error.message);
  upper_.send(std::move(frame));
}

void RemoteChannels::on_expect(const v1::ExpectChannel& expect) {
  if (expect.dial().empty()) return;  // beside the hub: the socket comes by itself
  if (!context_) {
    auto context = tls::make_context(tls::Role::client, upper_.identity);
    if (!context) return send_refusal(expect, context.error());
    context_ = *context;
  }
  if (!dial_threads_) try {
      dial_threads_.emplace(dials_at_once);
    } catch (const std::system_error& error) {  // the user's limit of processes
      return send_refusal(expect,
                          Error{Code::resource_exhausted, std::string("no thread could be started: ") + error.what(), {}, Retry::yes, {}});
    }
  // An older one of this channel may hang in what was cut: it must not keep the new one waiting.
  auto& newest = dialling_[expect.channel()];
  if (newest) newest->stop();
  newest = std::make_shared<Dial>();
  boost::asio::post(*dial_threads_, [this, alive = std::weak_ptr<bool>(alive_), &io = io_, context = context_, name = upper_.server_name,
                                     expect, dial = newest] {
    auto dialled = std::make_shared<Result<DialledWire>>(dial_wire(expect.dial(), context, name, expect.ticket(), dial->stop_event.get()));
    boost::asio::post(io, [this, alive, dialled, expect, dial] {
      if (alive.expired()) return;
      const auto it = dialling_.find(expect.channel());
      const bool newest = it != dialling_.end() && it->second == dial;
      if (newest) dialling_.erase(it);
      if (*dialled) attach((*dialled)->opening, std::move((*dialled)->wire));
      else if (newest) send_refusal(expect, dialled->error());
    });
  });
}

void RemoteChannels::on_ack(const v1::ChannelAck& ack) {
  if (auto it = channels_.find(ack.channel()); it != channels_.end()) it->second->bridge->on_ack(ack.epoch(), ack.received());
}

void RemoteChannels::on_end(const v1::ChannelEnd& end) {
  if (auto it = channels_.find(end.channel()); it != channels_.end()) it->second->bridge->on_peer_end(end.final_offset());
}

void RemoteChannels::on_link_up() {
  for (auto& [number, channel] : channels_) channel->bridge->renew_ack();
}

void RemoteChannels::on_link_down() { frames_.clear(); }  // these connections were part of the link

void RemoteChannels::on_data(const v1::ChannelData& data) {
  auto& frames = frames_[data.channel()];  // the header comes whole, in the first frame of an epoch
  if (!frames || data.epoch() > frames->epoch) {
    if (data.offset() != 0) return;  // the middle of one that we do not know
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) {
      spdlog::error("{}", errno_error(Code::resource_exhausted, "make a socket pair for a channel").message);
      return;
    }
    frames = std::make_shared<FrameWire>(io_);
    frames->number = data.channel();
    frames->epoch = data.epoch();
    frames->ours.assign(pair[0]);
    unique_fd theirs(pair[1]);
    if (data.data().size() < channel::opening_bytes) {
      spdlog::warn("channel {}: its first frame does not hold the header", data.channel());
      frames_.erase(data.channel());
      return;
    }
    auto opening = channel::parse_opening(std::string_view(data.data()).substr(0, channel::opening_bytes));
    if (!opening || opening->channel != data.channel()) {
      spdlog::warn("channel {}: its first frame is not a channel's header", data.channel());
      frames_.erase(data.channel());
      return;
    }
    frames->received = data.data().size();
    frames->waiting.assign(data.data(), channel::opening_bytes);
    auto kept = frames;
    attach(*opening, channel::make_socket_wire(std::move(theirs)));
    write_frames(kept);
    read_frames(kept);
    return;
  }
  if (data.epoch() < frames->epoch) return;
  if (data.offset() != frames->received) {
    spdlog::warn("channel {}: frames are missing", data.channel());
    frames_.erase(data.channel());
    return;
  }
  frames->received += data.data().size();
  frames->waiting += data.data();
  write_frames(frames);
}

void RemoteChannels::write_frames(const std::shared_ptr<FrameWire>& frames) {
  if (frames->writing) return;
  while (!frames->waiting.empty()) {
    const ssize_t n = ::send(frames->ours.native_handle(), frames->waiting.data(), frames->waiting.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      frames->writing = true;
      frames->ours.async_wait(Descriptor::wait_write,
                              [this, weak = std::weak_ptr<FrameWire>(frames)](const boost::system::error_code& error) {
                                auto here = weak.lock();
                                if (error || !here) return;
                                here->writing = false;
                                write_frames(here);
                              });
      return;
    }
    if (n < 0) {
      frames->waiting.clear();
      return;
    }
    frames->waiting.erase(0, static_cast<std::size_t>(n));
  }
}

void RemoteChannels::read_frames(const std::shared_ptr<FrameWire>& frames) {
  if (upper_.queued_bytes() > link_queue_bytes) {
    frames->timer.expires_after(link_queue_wait);
    frames->timer.async_wait([this, weak = std::weak_ptr<FrameWire>(frames)](const boost::system::error_code& error) {
      auto here = weak.lock();
      if (!error && here) read_frames(here);
    });
    return;
  }
  frames->ours.async_wait(Descriptor::wait_read, [this, weak = std::weak_ptr<FrameWire>(frames)](const boost::system::error_code& error) {
    auto here = weak.lock();
    if (error || !here) return;
    std::string bytes(frame_bytes, '\0');
    const ssize_t n = recv(here->ours.native_handle(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {  // the bridge dropped it: a newer wire, or the end
      here->ours.close();
      return;
    }
    if (n > 0) {
      bytes.resize(static_cast<std::size_t>(n));
      v1::Frame frame;
      auto& data = *frame.mutable_channel_data();
      data.set_channel(here->number);
      data.set_epoch(here->epoch);
      data.set_offset(here->sent);
      data.set_data(std::move(bytes));
      here->sent += static_cast<std::uint64_t>(n);
      upper_.send(std::move(frame));
    }
    read_frames(here);
  });
}

}  // namespace flotilla::pilot
