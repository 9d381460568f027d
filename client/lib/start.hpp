// Finding the daemon, and starting it when it does not run.
#pragma once

#include <filesystem>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::detail {

// A connected socket of the daemon, whose owner is this user. Starts the daemon with `program daemon start` when there is none
// and `start` says so; `program` empty = $FLOTILLA_PROGRAM, else `flotilla` from PATH.
Result<unique_fd> reach_daemon(const std::filesystem::path& socket, bool start, const std::string& program);

}  // namespace flotilla::detail
