#include "daemon/coordinator/unix_listener.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::daemon {
namespace asio = boost::asio;
using asio::local::stream_protocol;

namespace {
constexpr int waiting_connections = 256;
constexpr auto descriptors_pause = std::chrono::milliseconds(100);  // others must close first
}  // namespace

UnixListener::UnixListener(asio::io_context& io, std::filesystem::path path, OnConnection on_connection, std::chrono::milliseconds look)
    : path_(std::move(path)), on_connection_(std::move(on_connection)), look_(look), acceptor_(io), look_timer_(io), pause_timer_(io) {}
UnixListener::~UnixListener() { stop(); }

Status UnixListener::start() {
  if (auto status = bind(); !status) return status;
  look_after();
  return {};
}

void UnixListener::stop() {
  if (!acceptor_.is_open()) return;
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  look_timer_.cancel();
  pause_timer_.cancel();
  paused_ = false;
  unlink(path_.c_str());
}

Status UnixListener::bind() {
  unlink(path_.c_str());
  boost::system::error_code code;
  acceptor_.open(stream_protocol(), code);
  const mode_t before = umask(0177);
  if (!code) acceptor_.bind(path_.string(), code);
  umask(before);
  if (!code) acceptor_.listen(waiting_connections, code);
  if (code) return fail(Code::unavailable, "cannot listen on " + path_.string() + ": " + code.message());
  accept();
  return {};
}

void UnixListener::accept() {
  acceptor_.async_accept([this](boost::system::error_code code, stream_protocol::socket socket) {
    if (code == asio::error::operation_aborted) return;
    if (code) return pause();
    fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
    if (auto status = channel::check_peer_uid(socket.native_handle()); status) on_connection_(unique_fd(socket.release()));
    else spdlog::warn("a connection to {} was refused: {}", path_.string(), status.error().message);
    accept();
  });
}

void UnixListener::pause() {
  paused_ = true;
  pause_timer_.expires_after(descriptors_pause);
  pause_timer_.async_wait([this](boost::system::error_code code) {
    if (!code && std::exchange(paused_, false)) accept();
  });
}

void UnixListener::look_after() {
  look_timer_.expires_after(look_);
  look_timer_.async_wait([this](boost::system::error_code code) {
    if (code) return;
    struct stat info {};
    if (lstat(path_.c_str(), &info) != 0) {
      spdlog::warn("{} is gone; it is bound again", path_.string());
      boost::system::error_code ignored;
      acceptor_.close(ignored);
      pause_timer_.cancel();
      paused_ = false;
      auto bound = make_private_dir(path_.parent_path());
      if (bound) bound = bind();
      if (!bound) spdlog::error("{}", bound.error().text());
    }
    look_after();
  });
}

}  // namespace flotilla::daemon
