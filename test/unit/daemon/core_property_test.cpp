// Random histories: whatever comes, in whatever order, capacity holds, an end is final, and replay gives the state.
#include <rapidcheck.h>

#include "test/unit/daemon/harness.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
using flotilla::daemon::test::Harness;

namespace {

void check_invariants(Harness& h, std::map<JobId, v1::JobState>& ends) {
  const State& state = h.core.state();
  for (const auto& [id, pilot] : state.pilots)
    for (const auto& [index, node] : pilot.nodes) {
      std::uint32_t used = 0;
      for (const JobId job : node.attempts) {
        RC_ASSERT(placed(state.jobs.at(job).state));
        RC_ASSERT((state.jobs.at(job).node == NodeId{id, index}));
        used += state.jobs.at(job).slots();
      }
      RC_ASSERT(used == node.slots_used);
      RC_ASSERT(used <= node.record.slots() || node.record.slots() == 0);
    }
  for (const auto& [id, job] : state.jobs) {
    RC_ASSERT(state.queue.contains(id) == (job.state == v1::JOB_QUEUED));
    const auto before = ends.find(id);
    if (before != ends.end()) RC_ASSERT(before->second == job.state);
    if (ended(job.state)) ends[id] = job.state;
  }
}

}  // namespace

TEST_CASE("random histories keep the invariants") {
  CHECK(rc::check("invariants", [] {
    Harness h;
    h.add_remote("far");
    std::map<JobId, v1::JobState> ends;
    std::vector<PilotId> pilots;
    int incarnation = 0;
    const int steps = *rc::gen::inRange(10, 120);
    for (int step = 0; step < steps; ++step) {
      const State& state = h.core.state();
      auto some_job = [&]() -> const Job* {
        if (state.jobs.empty()) return nullptr;
        auto it = state.jobs.begin();
        std::advance(it, *rc::gen::inRange<std::size_t>(0, state.jobs.size()));
        return &it->second;
      };
      auto some_pilot = [&]() -> PilotId { return pilots.empty() ? PilotId{} : pilots[*rc::gen::inRange<std::size_t>(0, pilots.size())]; };
      h.now.wall_ms += *rc::gen::inRange(0, 3000);
      h.now.boot_ms += *rc::gen::inRange(0, 3000);
      switch (*rc::gen::inRange(0, 14)) {
        case 0: pilots.push_back(h.start(*rc::gen::element<std::string>("local", "far"), "p", *rc::gen::inRange(1u, 5u))); break;
        case 1:
        case 2:
          if (const PilotId p = some_pilot(); p) {
            // A fresh process, or the same again with what it held (part of it, as if a report was lost).
            auto hello = h.hello(p, std::max(1u, state.pilots.at(p).spec.slots_per_node()), 0,
                                 *rc::gen::element(std::string("one"), "i" + std::to_string(++incarnation)));
            if (const Node* node = state.node({p, 0}); node && hello.incarnation() == node->incarnation)
              for (const JobId job : node->attempts)
                if (*rc::gen::inRange(0, 4) != 0) {
                  auto* report = hello.add_inventory();
                  *report->mutable_id() = h.attempt(job);
                  report->set_state(*rc::gen::element(v1::JOB_RUNNING, v1::JOB_FINISHED, v1::JOB_DISPATCHED));
                  report->mutable_exit()->set_kind(v1::EXITED);
                }
            (void)h.core.on_node_joined(hello, true, h.now, h.out);
          }
          break;
        case 3:
        case 4:
        case 5: h.submit(h.command(*rc::gen::element<std::string>("", "p", "far"), *rc::gen::inRange(1u, 5u))); break;
        case 6: h.place(); break;
        case 7:
          if (const Job* job = some_job(); job && placed(job->state)) h.report_running(job->id);
          break;
        case 8:
        case 9:
          if (const Job* job = some_job(); job && job->attempt) h.report_end(job->id, v1::EXITED, *rc::gen::inRange(0, 2));
          break;
        case 10:
          if (const Job* job = some_job()) (void)h.core.cancel(job->id, v1::CANCELED_BY_USER, "test", h.now, h.out);
          break;
        case 11:
          if (const PilotId p = some_pilot(); p) {
            if (*rc::gen::arbitrary<bool>()) h.core.on_node_unlinked({p, 0}, "cut", h.now, h.out);
            else h.core.on_node_left({p, 0}, "gone", h.now, h.out);
          }
          break;
        case 12:
          if (*rc::gen::arbitrary<bool>()) h.core.on_hub_lost("far", "cut", false, h.now, h.out);
          else h.connect_hub("far");
          break;
        case 13:
          if (const PilotId p = some_pilot(); p && *rc::gen::inRange(0, 3) == 0)
            (void)h.core.stop_pilot(p, *rc::gen::arbitrary<bool>(), "test", h.now, h.out);
          h.core.on_tick(h.now, h.out);
          break;
      }
      check_invariants(h, ends);
    }
    h.check_replay();
  }));
}
