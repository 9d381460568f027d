#include "hub/sweep.hpp"

#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>

#include "hub/spawn.hpp"
#include "proto/base/paths.hpp"

namespace flotilla::hub {
namespace {

constexpr int rounds = 5;  // a process may fork while we look; a fork bomb is not ours to win against

bool has_entry(const std::string& environment, const std::string& entry) {
  for (std::size_t at = 0; at < environment.size();) {
    const std::size_t end = std::min(environment.find('\0', at), environment.size());
    if (environment.compare(at, end - at, entry) == 0) return true;
    at = end + 1;
  }
  return false;
}

}  // namespace

int sweep(const std::string& instance_hex, NodeId node) {
  const std::string wanted[] = {"FLOTILLA_INSTANCE=" + instance_hex, "FLOTILLA_PILOT=" + std::to_string(node.pilot.value),
                                "FLOTILLA_NODE=" + std::to_string(node.node)};
  int killed = 0;
  for (int round = 0; round < rounds; ++round) {
    bool any = false;
    DIR* const all = opendir("/proc");
    if (!all) return killed;
    while (const dirent* entry = readdir(all)) {
      const int pid = std::atoi(entry->d_name);
      if (pid <= 1 || pid == getpid()) continue;
      const auto environment = read_file("/proc/" + std::string(entry->d_name) + "/environ", 1u << 22);
      if (!environment) continue;  // somebody else's, or gone
      bool match = true;
      for (const auto& word : wanted) match = match && has_entry(*environment, word);
      if (!match) continue;
      any = true;
      if (kill(pid, SIGKILL) == 0) ++killed;
    }
    closedir(all);
    if (!any) break;
  }
  return killed;
}

}  // namespace flotilla::hub
