#include "pilot/worker/acceptor.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "proto/base/log.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::pilot {
namespace {
constexpr auto retry_pause = std::chrono::milliseconds(100);
}

Acceptor::Acceptor(boost::asio::io_context& io, std::string what) : listener_(io), retry_(io), what_(std::move(what)) {}

void Acceptor::open(unique_fd listener, Connections connections, OnConnection on_connection) {
  close();
  flags_ = SOCK_CLOEXEC | (connections == Connections::do_not_block ? SOCK_NONBLOCK : 0);
  listener_.assign(listener.release());
  on_connection_ = std::make_shared<OnConnection>(std::move(on_connection));
  wait();
}

Status Acceptor::open_at(const std::filesystem::path& path, OnConnection on_connection) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = path.string();
  if (name.size() >= sizeof address.sun_path)
    return fail(Code::invalid_argument, "the socket path " + name + " is too long", "set FLOTILLA_RUNTIME_DIR to a shorter place");
  std::memcpy(address.sun_path, name.c_str(), name.size() + 1);
  unique_fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  unlink(name.c_str());
  if (!fd || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || chmod(name.c_str(), 0600) != 0 ||
      listen(fd.get(), SOMAXCONN) != 0)
    return fail(errno_error(Code::resource_exhausted, "listen on " + name));
  open(std::move(fd), Connections::do_not_block, [on_connection = std::move(on_connection)](unique_fd connection) {
    if (auto ours = channel::check_peer_uid(connection.get()); ours) on_connection(std::move(connection));
    else spdlog::warn("{}", ours.error().message);
  });
  return {};
}

void Acceptor::close() {
  on_connection_.reset();
  retry_.cancel();
  listener_.close();
}

void Acceptor::wait() {
  listener_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                       [this, open = std::weak_ptr<OnConnection>(on_connection_)](const boost::system::error_code& error) {
                         if (!error && !open.expired()) take();
                       });
}

void Acceptor::take() {
  for (const std::weak_ptr<OnConnection> open = on_connection_;;) {
    const auto handler = open.lock();
    if (!handler) return;
    unique_fd fd(accept4(listener_.native_handle(), nullptr, nullptr, flags_));
    if (fd) {
      auto call = *handler;
      call(std::move(fd));
      continue;
    }
    if (errno == ECONNABORTED || errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return wait();
    spdlog::warn("{} cannot take a connection: {}", what_, std::strerror(errno));
    retry_.expires_after(retry_pause);
    retry_.async_wait([this, open](const boost::system::error_code& error) {
      if (!error && !open.expired()) take();
    });
    return;
  }
}

}  // namespace flotilla::pilot
