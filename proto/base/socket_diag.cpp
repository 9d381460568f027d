#include "proto/base/socket_diag.hpp"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "proto/base/unique_fd.hpp"

namespace flotilla {
namespace {

enum class Lookup { found, absent, unusable };

// One exact question to the kernel, whatever the number of sockets; no privilege is needed.
Lookup ask_sock_diag(const sockaddr_in& local, const sockaddr_in& remote, TcpEnd& end) {
  unique_fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  if (!fd) return Lookup::unusable;
  struct {
    nlmsghdr header;
    inet_diag_req_v2 request;
  } question{};
  question.header.nlmsg_len = sizeof question;
  question.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  question.header.nlmsg_flags = NLM_F_REQUEST;
  auto& request = question.request;
  request.sdiag_family = AF_INET;
  request.sdiag_protocol = IPPROTO_TCP;
  request.idiag_states = ~0u;
  request.id.idiag_sport = local.sin_port;
  request.id.idiag_dport = remote.sin_port;
  request.id.idiag_src[0] = local.sin_addr.s_addr;
  request.id.idiag_dst[0] = remote.sin_addr.s_addr;
  request.id.idiag_cookie[0] = request.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  if (send(fd.get(), &question, sizeof question, 0) != static_cast<ssize_t>(sizeof question)) return Lookup::unusable;
  alignas(nlmsghdr) char answer[8192];
  const ssize_t n = recv(fd.get(), answer, sizeof answer, 0);
  if (n < static_cast<ssize_t>(sizeof(nlmsghdr))) return Lookup::unusable;
  const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
  if (header->nlmsg_type == NLMSG_ERROR) {
    const auto* error = reinterpret_cast<const nlmsgerr*>(NLMSG_DATA(header));
    return error->error == -ENOENT ? Lookup::absent : Lookup::unusable;
  }
  if (header->nlmsg_type != SOCK_DIAG_BY_FAMILY) return Lookup::unusable;
  const auto* facts = reinterpret_cast<const inet_diag_msg*>(NLMSG_DATA(header));
  end = {facts->idiag_inode, facts->idiag_uid};
  return end.inode != 0 ? Lookup::found : Lookup::absent;
}

}  // namespace

std::optional<TcpEnd> parse_tcp_line(const std::string& line, const sockaddr_in& local, const sockaddr_in& remote) {
  unsigned local_address, local_port, remote_address, remote_port, uid = 0;
  unsigned long long inode = 0;
  if (std::sscanf(line.c_str(), " %*d: %8X:%4X %8X:%4X %*X %*X:%*X %*X:%*X %*X %u %*u %llu", &local_address, &local_port, &remote_address,
                  &remote_port, &uid, &inode) != 6)
    return std::nullopt;
  if (local_address != local.sin_addr.s_addr || local_port != ntohs(local.sin_port) || remote_address != remote.sin_addr.s_addr ||
      remote_port != ntohs(remote.sin_port) || inode == 0)
    return std::nullopt;
  return TcpEnd{inode, uid};
}

std::optional<TcpEnd> find_tcp_end(const sockaddr_in& local, const sockaddr_in& remote) {
  TcpEnd end;
  switch (ask_sock_diag(local, remote, end)) {
    case Lookup::found: return end;
    case Lookup::absent: return std::nullopt;
    case Lookup::unusable: break;
  }
  std::ifstream table("/proc/self/net/tcp");
  std::string line;
  while (std::getline(table, line))
    if (auto found = parse_tcp_line(line, local, remote)) return found;
  return std::nullopt;
}

std::optional<TcpEnd> peer_end(int fd) {
  sockaddr_in own{}, peer{};
  socklen_t own_size = sizeof own, peer_size = sizeof peer;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_size) != 0 || own.sin_family != AF_INET ||
      getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_size) != 0)
    return std::nullopt;
  return find_tcp_end(peer, own);
}

}  // namespace flotilla
