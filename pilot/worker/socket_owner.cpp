#include "pilot/worker/socket_owner.hpp"

#include <dirent.h>
#include <unistd.h>

#include <cstring>
#include <string>

namespace flotilla::pilot {

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
