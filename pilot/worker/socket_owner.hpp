// Whose a local TCP connection is: by the inode of the peer's socket, and who holds that inode.
#pragma once

#include <netinet/in.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace flotilla::pilot {

// The inode of the socket that has `local` as its own end and `remote` as the other; both IPv4, in this network namespace.
std::optional<std::uint64_t> socket_inode(const sockaddr_in& local, const sockaddr_in& remote);
// One line of /proc/net/tcp, pure: the inode if it is that socket.
std::optional<std::uint64_t> parse_tcp_line(const std::string& line, const sockaddr_in& local, const sockaddr_in& remote);
// The first of `pids` that has the socket open; 0 = none.
pid_t holder_of(std::uint64_t inode, const std::vector<pid_t>& pids);

}  // namespace flotilla::pilot
