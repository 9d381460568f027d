// Who descends from whom, by /proc; and ending all of them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "pilot/core/moment.hpp"

namespace flotilla::pilot {

struct ProcessEntry {
  pid_t pid = 0, parent = 0, group = 0;
  char state = '?';  // 'Z' = dead, not reaped
  Moment started{};  // since boot, to a clock tick (10 ms)
};

// Everything in /proc that can be read.
std::vector<ProcessEntry> list_processes();
// `roots` and everything below them, parents before children. Pure.
std::vector<pid_t> tree_below(const std::vector<ProcessEntry>& all, const std::vector<pid_t>& roots);
// "NAME=value" for each of `entries` is in the environment that the process was started with.
bool has_environment(pid_t pid, const std::vector<std::string>& entries);
bool environment_readable(pid_t pid);

// The children of this process's main thread, orphans that came to it as the subreaper among them.
class Children {
 public:
  Children();
  ~Children();
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;
  const std::vector<pid_t>& list();  // valid until the next call

 private:
  int fd_ = -1;  // /proc/self/task/PID/children; kernels without it: a walk through /proc
  std::vector<pid_t> pids_;
};

// Ends every descendant of this process (a subreaper), and every process whose environment has all of `marks`, itself
// excepted, and `spare`; returns when none is left. SIGKILL, again until it holds.
void end_all_descendants(const std::vector<std::string>& marks, pid_t spare = 0);

}  // namespace flotilla::pilot
