// Which queued job starts where: a function of the state. First fit in order of submission; a job that is too wide for what is
// free right now holds back one node that could carry it, so that smaller ones behind it cannot starve it.
#pragma once

#include <string>
#include <vector>

#include "daemon/core/state.hpp"

namespace flotilla::daemon {

struct Placement {
  JobId job;
  NodeId node;
};

std::vector<Placement> schedule(const State& state);

// One sentence for a queued job, and one for each pilot that stands in the way.
struct Why {
  std::string sentence;
  std::vector<std::string> details;
  bool transient = false;  // what it waits for passes by itself: its pilot starts, or others hold the slots
};
Why why(const State& state, const Job& job);

}  // namespace flotilla::daemon
