// Raw connections of channels through the hub. It reads the header of each, to know by its ticket whose it is, and no more:
// to a pilot beside the hub the socket itself is passed, to a node it is relayed over mutual TLS by a thread of its own.
// On the io thread; relays and handshakes run on data threads.
#pragma once

#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "flotilla/v1/link.pb.h"
#include "proto/base/ids.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/tls/stream.hpp"

namespace flotilla::hub {

class Channels {
 public:
  // A connection that was announced cannot be made. Runs inside expect_beside() too.
  using Refuse = std::function<void(const v1::ExpectChannel&, const std::string& cause)>;
  Channels(boost::asio::io_context& io, tls::ContextPtr context, Refuse refuse);
  ~Channels();  // ends all relays and waits for their threads
  Channels(const Channels&) = delete;
  Channels& operator=(const Channels&) = delete;

  // A connection that came to the channel socket (the peer's uid was checked).
  void add_connection(unique_fd fd);
  // The connection with this ticket goes to the pilot whose runtime directory holds `socket`.
  void expect_beside(const v1::ExpectChannel& expect, const std::filesystem::path& socket);
  // ... is relayed to that pilot's node, which is to dial the address that is returned. Listening starts with the first one.
  Result<std::string> expect_node(const v1::ExpectChannel& expect, PilotId pilot, const std::string& address);

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

// The relay's loop, on the caller's thread: `plain` and `secure` are joined until both directions have ended, one breaks, or
// `stop` (an eventfd) is readable. `first` goes to `secure` before all else. Returns why it ended.
std::string relay(unique_fd plain, tls::Stream secure, std::string first, int stop);

}  // namespace flotilla::hub
