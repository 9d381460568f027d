// Whose the other end of a local TCP connection is, as the kernel says: TCP itself tells nothing of users.
#pragma once

#include <netinet/in.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace flotilla {

struct TcpEnd {
  std::uint64_t inode = 0;
  uid_t uid = 0;
  bool operator==(const TcpEnd&) const = default;
};

// The socket that has `local` as its own end and `remote` as the other; both IPv4, in this network namespace.
std::optional<TcpEnd> find_tcp_end(const sockaddr_in& local, const sockaddr_in& remote);
// One line of /proc/net/tcp, pure: what it says if it is that socket.
std::optional<TcpEnd> parse_tcp_line(const std::string& line, const sockaddr_in& local, const sockaddr_in& remote);
// The other end of the connected IPv4 socket `fd`. None: it has gone, or is on another machine.
std::optional<TcpEnd> peer_end(int fd);

}  // namespace flotilla
