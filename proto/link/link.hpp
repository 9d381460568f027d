// A Link: one fd (or TLS connection), one gRPC bidi stream of Frames, one write in flight.
// A new connection is a new Link. All methods are called, and all handlers run, on the thread of the io_context
// that was given; gRPC's own threads only post to it.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "flotilla/v1/link.pb.h"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::link {

class Link;
using LinkPtr = std::shared_ptr<Link>;

struct Handlers {
  std::function<void(const LinkPtr&)> on_open;  // server side only: before its first frame
  std::function<void(const LinkPtr&, v1::Frame)> on_frame;
  // Exactly once, last, also after close(). The cause is one sentence.
  std::function<void(const LinkPtr&, const std::string& cause)> on_closed;
  // After room_bytes and more waited to go out: less than half of that does now.
  std::function<void(const LinkPtr&)> on_room;
};
// Who sends bulk stops when queued_bytes() has come to this, and goes on at on_room.
constexpr std::size_t room_bytes = 1u << 20;  // more would be in the way of calls and answers on a slow line

// How soon a silent peer is noticed: after `time` without a sign of life a ping goes out, after `timeout` more the link ends.
struct Keepalive {
  std::chrono::milliseconds time;
  std::chrono::milliseconds timeout;
};
// Inside a cluster: a dead node is told within 5 s.
constexpr Keepalive keepalive_cluster{std::chrono::milliseconds(1500), std::chrono::milliseconds(2000)};
// Over ssh from a laptop: networks stall for seconds, and a reconnect costs an authentication.
constexpr Keepalive keepalive_remote{std::chrono::seconds(15), std::chrono::seconds(20)};

class Link : public std::enable_shared_from_this<Link> {
 public:
  virtual ~Link() = default;
  // Queued; frames go out in order. After close() or the end: dropped.
  virtual void send(v1::Frame frame) = 0;
  virtual std::size_t queued_bytes() const = 0;
  // Ends the link when all that was sent has gone out; abort() ends it at once.
  virtual void close() = 0;
  virtual void abort() = 0;
  // No handler runs after this.
  virtual void detach() = 0;
  // The URI in the peer's certificate; empty without TLS.
  virtual std::string peer_uri() const = 0;
  virtual bool open() const = 0;

  std::uint64_t tag = 0;  // for the owner's use
};

// PEM texts for mutual TLS.
struct TlsIdentity {
  std::string ca;     // certificates that the peer's chain must lead to
  std::string chain;  // own certificate, then the intermediate ones
  std::string private_key;
};

// Accepts links: on fds handed to it, and, with listen_tls, on a TCP port.
class Server {
 public:
  Server(boost::asio::io_context& io, Handlers handlers, Keepalive keepalive);
  ~Server();  // ends its links; their on_closed does not run any more
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // "address:0" picks a port. Must be called before add_fd. Returns the port.
  Result<int> listen_tls(const std::string& address, const TlsIdentity& identity);
  // A connected stream socket whose peer calls connect_fd. Made non-blocking here.
  void add_fd(unique_fd fd);

  class Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// The lower side. Never blocks; a failure shows as on_closed, but for std::system_error where the system has no thread left. Until
// on_closed or detach() it needs the io_context, also when nobody holds it.
LinkPtr connect_fd(boost::asio::io_context& io, unique_fd fd, Handlers handlers, Keepalive keepalive);
// `server_name` is what the server's certificate says (DNS name), whatever the address is.
LinkPtr connect_tls(boost::asio::io_context& io, const std::string& address, const std::string& server_name, const TlsIdentity& identity,
                    Handlers handlers, Keepalive keepalive);

}  // namespace flotilla::link
