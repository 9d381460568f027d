// Where a pilot may write on its node.
//   SCRATCH/logs/<instance>-pilot-P.N.log       its log (rotated)
//   SCRATCH/blobs/<sha256>                      input files, shared by all pilots of the user on this node
//   SCRATCH/pilots/<instance>-P.N-<incarnation> job folders and waiting output; removed with the pilot, or by the next one there
// SCRATCH is the first of these that can be written: the resource's scratch_dir, ~/.cache/flotilla,
// /tmp/flotilla-UID, /dev/shm/flotilla-UID.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla::pilot {

// The first one in which a file can be made. The error names each and why not.
Result<std::filesystem::path> choose_scratch(const std::vector<std::filesystem::path>& candidates);
// Of the logs of pilots in a folder the newest ones stay, and those that were written to lately: they may be of pilots that run
// (a home directory is shared by many nodes). Returns how many pilots' logs were removed.
constexpr std::size_t kept_pilot_logs = 64;
constexpr std::chrono::hours kept_log_age{7 * 24};
std::size_t remove_old_logs(const std::filesystem::path& dir, std::size_t keep, std::chrono::seconds age);

}  // namespace flotilla::pilot
