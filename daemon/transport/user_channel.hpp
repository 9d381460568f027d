// The daemon's end of one resumable channel: proto/channel's endpoint, the user's socket, and whatever wire lies under it at
// the time. Driven by the thread that the wire belongs to (ssh connections), or by the io thread (no wire, or frames of the
// link in its place). All methods may be called from any thread: a mutex that is almost never contended.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/channel/endpoint.hpp"

namespace flotilla::daemon {

// Where bytes go out. Called under the channel's mutex by the thread that drives it.
class ChannelWire {
 public:
  // Bytes taken; 0: none now, on_wire_writable() will be called; -1: broken, detach() will be called.
  virtual long write(const iovec* pieces, int count) = 0;
  // Its thread may be waiting with wishes (user_events()) that are no longer ours. From any thread, under the channel's mutex.
  virtual void wake() = 0;

 protected:
  ~ChannelWire() = default;
};

// What a channel tells its owner; run on the io thread, never after UserChannel::close().
struct UserChannelEvents {
  std::function<void(std::uint32_t epoch, std::uint64_t received)> on_ack;  // send ChannelAck
  std::function<void(std::uint64_t final_offset)> on_user_end;              // send ChannelEnd
  std::function<void()> on_user_gone;                                       // the user takes nothing any more
  std::function<void(std::uint32_t epoch, const std::string& cause)> on_broken;
  std::function<void(std::uint32_t epoch, const std::string& ticket)> on_no_forwarding;  // frames must do
  std::function<void(const Error&)> on_failed;                                           // the channel cannot go on
};

class UserChannel : public std::enable_shared_from_this<UserChannel> {
 public:
  UserChannel(boost::asio::io_context& io, std::uint64_t number, unique_fd user, UserChannelEvents events);

  ~UserChannel();

  std::uint64_t number() const { return number_; }

  // ---- the thread of a wire
  // Displaces the present wire. `wire` must live until detach() or until it is displaced (displaced() says so).
  // refused: an old epoch, or the channel is over.
  Status attach(ChannelWire* wire, std::uint32_t epoch, std::string_view ticket);
  void detach(ChannelWire* wire, const std::string& cause);
  bool attached(const ChannelWire* wire) const;
  int user_fd() const { return user_.get(); }  // stays open while this object lives
  short user_events() const;                   // what the user's socket is to be polled for; 0 = nothing
  void on_user_ready(short revents);
  // Returns how much was taken; the rest is to be offered again after on_user_ready(). What comes from a displaced wire is dropped.
  std::size_t on_wire_bytes(const ChannelWire* from, std::string_view bytes);
  void on_wire_writable(const ChannelWire* wire);
  // No wire could be had: forwarding is forbidden there, or the hub's socket is not where it should be.
  void forwarding_failed(std::uint32_t epoch, const std::string& ticket);
  // The wire was quiet for a while: acknowledges what is owed, gives memory back. True: something was owed.
  void on_quiet();
  bool owes() const;

  // ---- the io thread
  void on_ack(std::uint32_t epoch, std::uint64_t received);
  void on_peer_end(std::uint64_t final_offset);
  // In place of a wire: bytes of a connection as frames of the link. `send` gets (offset in this connection, bytes).
  Status attach_frames(std::uint32_t epoch, std::string_view ticket, std::function<void(std::uint64_t, std::string)> send);
  void on_frame(std::uint32_t epoch, std::uint64_t offset, std::string_view bytes);
  void detach_frames(const std::string& cause);
  bool uses_frames() const;
  void close();  // ends the user's side; no event follows

  std::uint64_t bytes_from_user() const { return from_user_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_to_user() const { return to_user_.load(std::memory_order_relaxed); }

 private:
  class FrameWire;

  void tell(std::function<void(const UserChannelEvents&)> what);
  // All below: under mutex_.
  bool flush();
  void pump_user(short revents);
  bool deliver();
  void user_broken();
  void end_of_user(bool hung_up);
  void lost(const Error& error);
  void broken(const std::string& cause);
  void send_ack();
  void settle();
  short wanted_events() const;
  void watch();
  short io_events() const;  // what the io thread waits for
  // The io thread:
  void watch_on_io();
  void on_io_ready(short event);
  void take_frames(std::string bytes);

  boost::asio::io_context& io_;
  const std::uint64_t number_;
  const UserChannelEvents events_;
  const unique_fd user_;

  mutable std::mutex mutex_;
  channel::Endpoint endpoint_;
  ChannelWire* wire_ = nullptr;
  std::unique_ptr<FrameWire> frames_;
  bool wire_blocked_ = false, user_blocked_ = false, user_hung_up_ = false, user_closed_ = false;
  bool announced_ = false;  // the headers were exchanged on this wire, and it was noted
  bool peer_end_passed_ = false, over_ = false;
  bool watch_posted_ = false;
  short watching_ = 0;
  std::unique_ptr<boost::asio::posix::stream_descriptor> watcher_;  // io thread
  std::atomic<bool> silent_{false};
  std::atomic<std::uint64_t> from_user_{0}, to_user_{0};
};

}  // namespace flotilla::daemon
