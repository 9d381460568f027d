// A unix socket for this user's programs. Who connects must have our uid; when descriptors run out it waits until others have
// closed some; a socket that was removed (a cleaner of /tmp) is bound again.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <filesystem>
#include <functional>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

class UnixListener {
 public:
  // Close-on-exec.
  using OnConnection = std::function<void(unique_fd)>;
  static constexpr std::chrono::milliseconds look_interval{30'000};  // is the socket's file still there?
  UnixListener(boost::asio::io_context& io, std::filesystem::path path, OnConnection on_connection,
               std::chrono::milliseconds look = look_interval);
  ~UnixListener();
  UnixListener(const UnixListener&) = delete;
  UnixListener& operator=(const UnixListener&) = delete;

  // Takes the place of a file that is there.
  Status start();
  void stop();  // and removes the file
  const std::filesystem::path& path() const { return path_; }

 private:
  Status bind();
  void accept();
  void pause();
  void look_after();

  std::filesystem::path path_;
  OnConnection on_connection_;
  const std::chrono::milliseconds look_;
  boost::asio::local::stream_protocol::acceptor acceptor_;
  boost::asio::steady_timer look_timer_, pause_timer_;
  bool paused_ = false;
};

}  // namespace flotilla::daemon
