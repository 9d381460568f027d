// The daemon's ends of resumable channels. One for each worker on a remote resource; it outlives connections.
// All methods on the io thread; the bytes move on data threads.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "flotilla/v1/link.pb.h"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

struct ChannelCounters {
  std::uint64_t bytes_to_worker = 0, bytes_from_worker = 0;
};

class ChannelTable {
 public:
  virtual ~ChannelTable() = default;
  // `user`: the daemon's half of the socket pair whose other half the client got.
  virtual void add(std::uint64_t channel, unique_fd user) = 0;
  // From frames of the link.
  virtual void on_ack(const v1::ChannelAck& ack) = 0;
  virtual void on_data(const v1::ChannelData& data) = 0;  // fallback without forwarding
  virtual void on_end(const v1::ChannelEnd& end) = 0;     // reads the last bytes, then closes the user's end
  // Opens it as frames of the link, where no connection can be had; nothing where that is so already.
  virtual void open_frames(std::uint64_t channel, std::uint32_t epoch, const std::string& ticket) = 0;
  // The pilot's link was made anew: a channel whose bytes went over it as frames has to be opened again.
  virtual void on_link_renewed(std::uint64_t channel) = 0;
  // Ends the user's side at once (worker or client gone, pilot lost).
  virtual void remove(std::uint64_t channel) = 0;
  virtual ChannelCounters counters(std::uint64_t channel) const = 0;
  // Frames to be sent to the channel's peer (acks, data in fallback).
  std::function<void(std::uint64_t channel, v1::Frame)> send_frame;
  // The connection under a channel broke while its link lives: the owner opens it again (ExpectChannel, open_channel).
  std::function<void(std::uint64_t channel)> on_broken;
  // The user's end was closed by the client.
  std::function<void(std::uint64_t channel)> on_user_gone;
  // The channel cannot go on, though user and worker may be alive (the pilot does not know it any more, bytes are gone):
  // the user's end was shut down. Remove it and end its worker.
  std::function<void(std::uint64_t channel, const Error& error)> on_failed;
};

std::unique_ptr<ChannelTable> make_channel_table(boost::asio::io_context& io);

}  // namespace flotilla::daemon
