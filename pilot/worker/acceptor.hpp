// Takes the connections of a listening socket, one by one. Without descriptors it waits a moment instead of trying for ever.
#pragma once

#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "proto/base/clock.hpp"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {

class Acceptor {
 public:
  // It may close this, or destroy it.
  using OnConnection = std::function<void(unique_fd)>;

  // `what` is for the log: "the port of a worker".
  Acceptor(boost::asio::io_context& io, std::string what);
  // Instead of what listened before. The socket does not block; whether the connections do, is said.
  enum class Connections { block, do_not_block };
  void open(unique_fd listener, Connections connections, OnConnection on_connection);
  // A unix socket at this path, where nothing else stays. Connections do not block, and come from this user alone.
  Status open_at(const std::filesystem::path& path, OnConnection on_connection);
  void close();

 private:
  void wait();
  void take();

  boost::asio::posix::stream_descriptor listener_;
  boost::asio::basic_waitable_timer<BootClock> retry_;
  std::string what_;
  int flags_ = 0;
  std::shared_ptr<OnConnection> on_connection_;  // none = closed
};

}  // namespace flotilla::pilot
