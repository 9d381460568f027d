// Who descends from whom, by /proc; and ending all of them.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "pilot/core/moment.hpp"
#include "proto/base/process_environment.hpp"

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
bool has_environment(pid_t pid, const std::vector<std::string>& entries);

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

// How long to wait before the n-th look at what does not die. Each look walks through all of /proc.
class DeathWait {
 public:
  std::chrono::milliseconds next() {
    const auto wait = wait_;
    wait_ = std::min(2 * wait_, longest);
    looks_ += looks_ < long_looks + 1;
    return wait;
  }
  bool first_long() const { return looks_ == long_looks; }  // a killed process is gone long before

 private:
  static constexpr std::chrono::milliseconds longest{1000};
  static constexpr int long_looks = 10;
  std::chrono::milliseconds wait_{5};
  int looks_ = 0;
};

// Ends every descendant of this process (a subreaper), and every process whose environment has all of `marks`, itself
// excepted, and `spare`; returns when none is left. SIGKILL, again until it holds. `on_stuck` is told, once, of one that
// stays alive.
void end_all_descendants(const std::vector<std::string>& marks, pid_t spare = 0, const std::function<void(pid_t)>& on_stuck = {});

}  // namespace flotilla::pilot
