// Starting a process: posix_spawn (a vfork underneath), never fork.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "pilot/process/environment.hpp"
#include "proto/base/result.hpp"

namespace flotilla::pilot {

enum class Grouping { own_group, own_session };

struct SpawnRequest {
  std::vector<std::string> argv;  // argv[0] is looked up as a shell does it, in PATH of `environment`
  const Environment* environment = nullptr;
  std::string folder;                                 // absolute
  int stdin_fd = -1, stdout_fd = -1, stderr_fd = -1;  // stay the caller's; no other fd reaches the process
  Grouping grouping = Grouping::own_group;
  std::string terminal;  // path of a terminal's slave: takes the place of the three, needs own_session
};

// The absolute path of what would run, or a sentence "cannot run 'foo': not found in PATH on node1".
Result<std::string> find_executable(const std::string& name, const Environment& environment, const std::string& folder,
                                    const std::string& host);

// On failure nothing was started. All signals are at their defaults and unblocked in the process.
Result<pid_t> spawn(const SpawnRequest& request, const std::string& host);

}  // namespace flotilla::pilot
