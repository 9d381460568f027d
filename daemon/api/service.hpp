// The gRPC service of clients, on a unix socket: accept, the peer's uid, then the connection is gRPC's.
#pragma once

#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <memory>

#include "daemon/coordinator/coordinator.hpp"
#include "proto/base/result.hpp"

namespace flotilla::daemon {

class ClientApi {
 public:
  ClientApi(boost::asio::io_context& io, Coordinator& coordinator);
  ~ClientApi();
  // Binds the socket (0600), and again whenever somebody cleans it away. A socket that something listens on is refused.
  Status listen(const std::filesystem::path& socket);
  // Accepts nobody any more. On the io_context's thread.
  void stop();
  // Then: ends every call; called while another thread runs the io_context, on which the calls end. Blocks until they have.
  void end();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flotilla::daemon
