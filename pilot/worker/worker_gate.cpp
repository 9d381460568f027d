#include "pilot/worker/worker_gate.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>

#include "pilot/worker/socket_owner.hpp"
#include "proto/base/socket_diag.hpp"
#include "proto/base/log.hpp"

namespace flotilla::pilot {

Result<std::unique_ptr<WorkerGate>> WorkerGate::open(boost::asio::io_context& io) {
  unique_fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail(errno_error(Code::resource_exhausted, "make a socket for the worker"));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(fd.get(), 16) != 0 ||
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return fail(errno_error(Code::resource_exhausted, "listen on loopback for the worker"));
  auto gate = std::unique_ptr<WorkerGate>(new WorkerGate(io));
  gate->port_ = ntohs(address.sin_port);
  gate->acceptor_.open(std::move(fd), Acceptor::Connections::block,
                       [raw = gate.get()](unique_fd each) { raw->on_connection(std::move(each)); });
  return gate;
}

void WorkerGate::on_connection(unique_fd fd) {
  const auto peer = peer_end(fd.get());
  if (!peer || holder_of(peer->inode, members()) == 0) {
    spdlog::warn("a connection to a worker's port {} came from a process that was not started for it: closed", port_);
    return;
  }
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  acceptor_.close();
  auto handler = std::move(on_connected);
  handler(std::move(fd));  // the owner may destroy us
}

}  // namespace flotilla::pilot
