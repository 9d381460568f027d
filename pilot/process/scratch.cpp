#include "pilot/process/scratch.hpp"

#include <unistd.h>

#include <algorithm>
#include <map>

#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"

namespace flotilla::pilot {
namespace fs = std::filesystem;

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

std::size_t remove_old_logs(const fs::path& dir, std::size_t keep, std::chrono::seconds age) {
  struct Log {
    fs::file_time_type written = fs::file_time_type::min();
    std::vector<fs::path> files;  // it and what was rotated
  };
  std::map<std::string, Log> logs;
  std::error_code problem;
  for (fs::directory_iterator entry(dir, problem), end; !problem && entry != end; entry.increment(problem)) {
    // <instance>-pilot-P.N.log, <instance>-pilot-P.N.1.log
    std::string name = entry->path().filename().string();
    const auto mark = name.find("-pilot-");
    if (mark == std::string::npos || !name.ends_with(".log")) continue;
    const auto dot = name.find('.', mark);
    name.resize(std::min(name.size(), name.find('.', dot + 1)));
    std::error_code gone;
    const auto written = entry->last_write_time(gone);
    if (gone) continue;
    Log& log = logs[name];
    log.written = std::max(log.written, written);
    log.files.push_back(entry->path());
  }
  std::vector<const Log*> newest;
  for (const auto& [name, log] : logs) newest.push_back(&log);
  std::ranges::sort(newest, std::greater(), &Log::written);
  std::size_t removed = 0;
  const auto oldest = fs::file_time_type::clock::now() - age;
  for (std::size_t i = keep; i < newest.size(); ++i) {
    if (newest[i]->written > oldest) continue;
    for (const auto& file : newest[i]->files) fs::remove(file, problem);
    ++removed;
  }
  return removed;
}

}  // namespace flotilla::pilot
