#include "pilot/process/scratch.hpp"

#include <unistd.h>

#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"

namespace flotilla::pilot {
namespace fs = std::filesystem;

std::vector<fs::path> scratch_candidates(const std::string& scratch_dir, const fs::path& home, unsigned uid) {
  std::vector<fs::path> candidates;
  if (!scratch_dir.empty()) {
    if (scratch_dir == "~" || scratch_dir.starts_with("~/"))
      candidates.push_back(home / (scratch_dir.size() > 2 ? scratch_dir.substr(2) : "."));
    else if (scratch_dir[0] == '/') candidates.emplace_back(scratch_dir);
    else candidates.push_back(home / scratch_dir);
    candidates.back() /= "flotilla";
  }
  if (!home.empty() && home != "/") candidates.push_back(home / ".cache" / "flotilla");
  candidates.push_back("/tmp/flotilla-" + std::to_string(uid));
  candidates.push_back("/dev/shm/flotilla-" + std::to_string(uid));
  return candidates;
}

Result<fs::path> choose_scratch(const std::vector<fs::path>& candidates) {
  Error error{
      Code::resource_exhausted, "no folder to work in can be written", "set scratch_dir of the resource to one that can", Retry::no, {}};
  for (const auto& dir : candidates) {
    auto made = make_private_dir(dir);
    if (made) {
      const fs::path probe = dir / (".probe-" + random_hex(6));
      // A byte must really go there: a full quota shows only then.
      made = write_file(probe, "flotilla\n");
      unlink(probe.c_str());
    }
    if (made) return dir;
    error.faults.push_back(made.error().message);
  }
  return fail(std::move(error));
}

}  // namespace flotilla::pilot
