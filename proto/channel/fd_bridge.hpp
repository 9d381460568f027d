// Joins the user's socket (pilot: the worker's connection; daemon: one half of a socket pair) with a replaceable wire
// through an Endpoint, on a data thread of its own. Methods may be called from any thread; handlers run where `post` runs
// them, in order, and never after the destructor (which must run on the thread that `post` posts to, or after it ended).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/channel/endpoint.hpp"
#include "proto/channel/opening.hpp"
#include "proto/channel/wire.hpp"

namespace flotilla::channel {

struct BridgeHandlers {
  // Send ChannelAck{channel, epoch, received} to the peer. Lost ones do no harm as long as renew_ack() follows a new link.
  std::function<void(std::uint32_t epoch, std::uint64_t received)> on_ack;
  // The headers were exchanged, bytes flow.
  std::function<void(std::uint32_t epoch)> on_connected;
  // The connection with this epoch ended before the channel did. Open the next one; nothing is lost.
  std::function<void(std::uint32_t epoch, const std::string& cause)> on_wire_broken;
  // The user's stream ended at this offset: send ChannelEnd{channel, final_offset}. `hung_up`: it also takes nothing any
  // more (closed, not half-closed; a TCP peer's close looks like a half-close until bytes are sent to it).
  std::function<void(std::uint64_t final_offset, bool hung_up)> on_user_end;
  // Both streams ended; the peer has all of ours, the user all of the peer's. Nothing follows.
  std::function<void()> on_finished;
  // The channel cannot go on (not_found: the peer does not know it any more). The user's socket was shut down.
  std::function<void(const Error&)> on_failed;
};

using Post = std::function<void(std::function<void()>)>;

class FdBridge {
 public:
  FdBridge(Side side, std::uint64_t channel, unique_fd user, Post post, BridgeHandlers handlers);
  ~FdBridge();  // ends the thread, closes user and wire
  FdBridge(const FdBridge&) = delete;
  FdBridge& operator=(const FdBridge&) = delete;

  // Opener: sends the header on `wire` and waits for the answer. Displaces the present wire.
  void open_wire(std::unique_ptr<Wire> wire, std::uint32_t epoch, std::string ticket);
  // Accepter: `request` was read off the wire already. One with an old epoch is closed and nothing else happens.
  void accept_wire(std::unique_ptr<Wire> wire, const Opening& request);
  void drop_wire();  // without on_wire_broken
  // From the link: ChannelAck, ChannelEnd.
  void on_ack(std::uint32_t epoch, std::uint64_t received);
  void on_peer_end(std::uint64_t final_offset);
  // The link is a new one: what was said on the old one may be lost. on_ack runs again, on_user_end too if it had.
  void renew_ack();
  // The user's side is gone by other knowledge (worker reaped, client gone): what was written is still sent, what comes
  // is dropped.
  void end_user();

  std::uint64_t bytes_from_user() const;
  std::uint64_t bytes_to_user() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace flotilla::channel
