#include "hub/sweep.hpp"

#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "proto/base/paths.hpp"
#include "proto/base/process_environment.hpp"

namespace flotilla::hub {
namespace {

constexpr int rounds = 5;  // a process may fork while we look; a fork bomb is not ours to win against

}  // namespace

int sweep(const std::string& instance_hex, NodeId node) {
  const std::vector<std::string> wanted = {"FLOTILLA_INSTANCE=" + instance_hex, "FLOTILLA_PILOT=" + std::to_string(node.pilot.value),
                                           "FLOTILLA_NODE=" + std::to_string(node.node)};
  int killed = 0;
  for (int round = 0; round < rounds; ++round) {
    bool any = false;
    DIR* const all = opendir("/proc");
    if (!all) return killed;
    while (const dirent* entry = readdir(all)) {
      const int pid = std::atoi(entry->d_name);
      if (pid <= 1 || pid == getpid()) continue;
      const auto environment = environment_of(pid);
      if (environment.empty()) {  // somebody else's, or gone, or it is looked at again
        any |= is_in_exec(pid);
        continue;
      }
      if (!has_entries(environment, wanted)) continue;
      any = true;
      if (kill(pid, SIGKILL) == 0) ++killed;
    }
    closedir(all);
    if (!any) break;
  }
  return killed;
}

}  // namespace flotilla::hub
