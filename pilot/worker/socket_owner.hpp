// Which of some processes holds a socket, by its inode.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

namespace flotilla::pilot {

// The first of `pids` that has the socket open; 0 = none.
pid_t holder_of(std::uint64_t inode, const std::vector<pid_t>& pids);

}  // namespace flotilla::pilot
