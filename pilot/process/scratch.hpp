// Where a pilot may write on its node.
//   SCRATCH/logs/<instance>-pilot-P.N.log       its log (rotated)
//   SCRATCH/blobs/<sha256>                      input files, shared by all pilots of the user on this node
//   SCRATCH/pilots/<instance>-P.N-<incarnation> job folders and waiting output; removed with the pilot, or by the next one there
// SCRATCH is the first of these that can be written: the resource's scratch_dir, ~/.cache/flotilla,
// /tmp/flotilla-UID, /dev/shm/flotilla-UID.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla::pilot {

std::vector<std::filesystem::path> scratch_candidates(const std::string& scratch_dir, const std::filesystem::path& home, unsigned uid);
// The first one in which a file can be made. The error names each and why not.
Result<std::filesystem::path> choose_scratch(const std::vector<std::filesystem::path>& candidates);

}  // namespace flotilla::pilot
