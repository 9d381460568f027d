// Which queued job goes where: a function of the state and the moment. First fit in order of submission; a job that is too wide for what is
// free right now holds back one node that could carry it, so that smaller ones behind it cannot starve it. Small jobs that find
// no room wait at a busy node (prefill), so that it has the next one at hand; they are asked back when another has room. A job with
// a time limit goes only where that ends before the pilot does.
#pragma once

#include <string>
#include <vector>

#include "daemon/core/state.hpp"

namespace flotilla::daemon {

// At a node wait at most this many times its slots.
constexpr std::uint32_t prefill_depth = 4;
// Wider than this share of a node is no small job: while it waited in front, slots beside it would stay empty.
constexpr std::uint32_t prefill_widest_share = 8;

struct Placement {
  JobId job;
  NodeId node;
  bool prefilled = false;
};
// It waits at its node while `to` has room for it. The room is kept until the answer.
struct Retraction {
  JobId job;
  NodeId to;
};
struct Plan {
  std::vector<Placement> placements;
  std::vector<Retraction> retractions;
};

Plan schedule(const State& state, Now now);

// One sentence for a queued job, and one for each pilot that stands in the way.
struct Why {
  std::string sentence;
  std::vector<std::string> details;
  bool transient = false;  // what it waits for passes by itself: its pilot starts, or others hold the slots
};
Why why(const State& state, const Job& job, Now now);

}  // namespace flotilla::daemon
