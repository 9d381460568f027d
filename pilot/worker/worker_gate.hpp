// The port that one worker connects back to: on loopback, for the process tree that was started, once.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "pilot/worker/acceptor.hpp"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {

class WorkerGate {
 public:
  // Asked at each connection.
  std::function<std::vector<pid_t>()> members;
  // Once; then nothing listens any more. The socket blocks, without Nagle's delay.
  std::function<void(unique_fd)> on_connected;

  static Result<std::unique_ptr<WorkerGate>> open(boost::asio::io_context& io);
  std::uint16_t port() const { return port_; }

 private:
  explicit WorkerGate(boost::asio::io_context& io) : acceptor_(io, "the port of a worker") {}
  void on_connection(unique_fd fd);

  Acceptor acceptor_;
  std::uint16_t port_ = 0;
};

}  // namespace flotilla::pilot
