// Output that could not be kept (the disk is full): which streams are to be asked for again, and when. Pure.
#pragma once

#include <compare>
#include <optional>
#include <set>
#include <vector>

#include "proto/base/ids.hpp"

namespace flotilla::daemon {

struct JobOutput {
  JobId job;
  unsigned which = 1;  // 1 stdout, 2 stderr
  auto operator<=>(const JobOutput&) const = default;
};

class OutputRetry {
 public:
  // True: it is the first refusal of this stream since it was kept last.
  bool on_refused(JobOutput output) { return refused_.insert(output).second; }
  // `more`: something was written, so there is room again. Returns what else is to be asked for.
  std::vector<JobOutput> on_kept(JobOutput output, bool more) {
    if (!refused_.erase(output) || !more) return {};
    return {refused_.begin(), refused_.end()};
  }
  void forget(JobId job) {
    for (const unsigned which : {1u, 2u}) refused_.erase({job, which});
  }
  // Once in an interval: one tries for all, each in its turn.
  std::optional<JobOutput> next() {
    if (refused_.empty()) return std::nullopt;
    auto it = refused_.upper_bound(last_);
    if (it == refused_.end()) it = refused_.begin();
    return last_ = *it;
  }
  bool empty() const { return refused_.empty(); }

 private:
  std::set<JobOutput> refused_;
  JobOutput last_;
};

}  // namespace flotilla::daemon
