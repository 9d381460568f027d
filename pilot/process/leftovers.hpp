// What pilots leave on a node when they and their guards die together, or the node reboots: folders, sockets, processes without a
// guard. The next pilot of the same instance there clears it away.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace flotilla::pilot {

// A pilot's folder says whose it is, in its file `owner`. A folder without one stays (one that is kept for its user, say).
struct Owner {
  std::string instance;             // hex
  std::string pilot, node;          // numbers
  std::string machine, boot, pids;  // this node, this boot of it, this namespace of process ids
  pid_t guard = 0, process = 0;
  std::string guard_started, process_started;  // /proc/PID/stat's start times: process ids are used again
  std::filesystem::path runtime_dir;
};

// Of this process, whose guard is `guard`.
Owner own_owner(const std::string& instance, const std::string& pilot, const std::string& node, pid_t guard,
                const std::filesystem::path& runtime_dir);
std::string format_owner(const Owner& owner);
std::optional<Owner> parse_owner(const std::string& text);

// Is it surely dead? `here`: who asks. What another machine or another namespace of process ids has made, is not judged. Pure,
// but for `alive`: is there a process with this number and start time?
bool surely_dead(const Owner& owner, const Owner& here, bool (*alive)(pid_t, const std::string& started));
bool process_alive(pid_t pid, const std::string& started);

// Clears away what dead pilots of the instance of `here` have left below `pilots` (SCRATCH/pilots). Returns what was removed.
std::vector<std::filesystem::path> sweep_leftovers(const std::filesystem::path& pilots, const Owner& here);

}  // namespace flotilla::pilot
