#include "pilot/worker/socket_owner.hpp"

#include <dirent.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>

#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {
namespace {

enum class Lookup { found, absent, unusable };

// One exact question to the kernel, whatever the number of sockets; no privilege is needed.
Lookup ask_sock_diag(const sockaddr_in& local, const sockaddr_in& remote, std::uint64_t& inode) {
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
  inode = reinterpret_cast<const inet_diag_msg*>(NLMSG_DATA(header))->idiag_inode;
  return inode != 0 ? Lookup::found : Lookup::absent;
}

}  // namespace

std::optional<std::uint64_t> parse_tcp_line(const std::string& line, const sockaddr_in& local, const sockaddr_in& remote) {
  unsigned local_address, local_port, remote_address, remote_port;
  unsigned long long inode = 0;
  if (std::sscanf(line.c_str(), " %*d: %8X:%4X %8X:%4X %*X %*X:%*X %*X:%*X %*X %*u %*u %llu", &local_address, &local_port, &remote_address,
                  &remote_port, &inode) != 5)
    return std::nullopt;
  if (local_address != local.sin_addr.s_addr || local_port != ntohs(local.sin_port) || remote_address != remote.sin_addr.s_addr ||
      remote_port != ntohs(remote.sin_port) || inode == 0)
    return std::nullopt;
  return inode;
}

std::optional<std::uint64_t> socket_inode(const sockaddr_in& local, const sockaddr_in& remote) {
  std::uint64_t inode = 0;
  switch (ask_sock_diag(local, remote, inode)) {
    case Lookup::found: return inode;
    case Lookup::absent: return std::nullopt;
    case Lookup::unusable: break;
  }
  std::ifstream table("/proc/self/net/tcp");
  std::string line;
  while (std::getline(table, line))
    if (auto found = parse_tcp_line(line, local, remote)) return found;
  return std::nullopt;
}

pid_t holder_of(std::uint64_t inode, const std::vector<pid_t>& pids) {
  const std::string wanted = "socket:[" + std::to_string(inode) + "]";
  for (pid_t pid : pids) {
    const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
    DIR* fds = opendir(folder.c_str());
    if (!fds) continue;
    bool found = false;
    while (const dirent* item = readdir(fds)) {
      char target[64];
      const ssize_t n = readlinkat(dirfd(fds), item->d_name, target, sizeof target);
      if (n == static_cast<ssize_t>(wanted.size()) && std::memcmp(target, wanted.data(), wanted.size()) == 0) {
        found = true;
        break;
      }
    }
    closedir(fds);
    if (found) return pid;
  }
  return 0;
}

}  // namespace flotilla::pilot
