// The environment that a process was started with, by /proc: what of ours it belongs to.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace flotilla {

// "NAME=value" between zero bytes. Empty: it has none, it is dead, or it is not ours to see.
std::string environment_of(pid_t pid);
// "NAME=value" for each of `entries` is in it.
bool has_entries(const std::string& environment, const std::vector<std::string>& entries);
// In the midst of exec: the new program's memory is there, its environment not yet, and reads as empty. False for what is not ours
// to see.
bool is_in_exec(pid_t pid);

}  // namespace flotilla
