// Random histories: whatever comes, in whatever order, capacity holds, an end is final, and replay gives the state.
#include <rapidcheck.h>

#include <algorithm>
#include <deque>
#include <functional>

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
        const bool waits = std::count(node.prefilled.begin(), node.prefilled.end(), job) == 1;
        RC_ASSERT(waits == state.jobs.at(job).prefilled);
        if (!waits) used += state.jobs.at(job).slots();
      }
      std::uint32_t waiting = 0;
      for (const JobId job : node.prefilled) {
        RC_ASSERT(node.attempts.contains(job));
        RC_ASSERT(state.jobs.at(job).state == v1::JOB_DISPATCHED);
        waiting += state.jobs.at(job).slots();
      }
      // Nobody waits where there is room for him.
      if (!node.prefilled.empty()) RC_ASSERT(state.jobs.at(node.prefilled.front()).slots() > node.slots_free());
      RC_ASSERT(used == node.slots_used);
      RC_ASSERT(used <= node.record.slots() || node.record.slots() == 0);
    }
  for (const auto& [id, job] : state.jobs) {
    RC_ASSERT(state.queue.contains(job) == (job.state == v1::JOB_QUEUED));
    RC_ASSERT(state.prefilled.contains(job) == job.prefilled);
    RC_ASSERT(!state.retracting.contains(id) || job.prefilled);
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
      switch (*rc::gen::inRange(0, 16)) {
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
                  report->set_state(state.jobs.at(job).prefilled
                                        ? v1::JOB_DISPATCHED
                                        : *rc::gen::element(v1::JOB_RUNNING, v1::JOB_FINISHED, v1::JOB_DISPATCHED));
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
          // A pilot starts what fits, in order: what waits there only when something has ended.
          if (const Job* job = some_job(); job && placed(job->state) && !job->prefilled) h.report_running(job->id);
          break;
        case 8:
        case 9:
          if (const Job* job = some_job(); job && job->attempt) h.report_end(job->id, v1::EXITED, *rc::gen::inRange(0, 2));
          break;
        case 14:
        case 15:
          // The answer to what was asked back, or what a pilot that drains says unasked.
          if (const Job* job = some_job(); job && job->attempt) h.report_retracted(job->id, *rc::gen::inRange(0, 3) == 0);
          break;
        case 10:
          if (const Job* job = some_job()) (void)h.core.cancel(job->id, v1::CANCELED_BY_USER, "test", h.now, h.out);
          break;
        case 11:
          if (const PilotId p = some_pilot(); p) {
            if (*rc::gen::arbitrary<bool>()) h.core.on_node_unlinked({p, 0}, "cut", h.now, h.out);
            else h.core.on_node_left({p, 0}, "gone", h.now, h.out, *rc::gen::arbitrary<bool>());
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

// Pilots as PROTOCOL.md 3 has them: what came first starts first, as soon as it fits. Frames take any time, in order.
TEST_CASE("whatever the order of messages: no slot is taken twice, every job runs once, none starves") {
  CHECK(rc::check("all end", [] {
    struct FakePilot {
      std::uint32_t slots = 0;
      std::deque<v1::Frame> inbox;
      std::deque<std::pair<v1::AttemptId, std::uint32_t>> waiting;
      std::deque<std::pair<v1::AttemptId, std::uint32_t>> running;
      std::deque<std::function<void(Harness&)>> outbox;
      std::uint32_t used() const {
        std::uint32_t sum = 0;
        for (const auto& [id, width] : running) sum += width;
        return sum;
      }
    };
    Harness h;
    std::map<NodeId, FakePilot> pilots;
    std::map<std::uint64_t, int> runs;
    const int pilot_count = *rc::gen::inRange(1, 5);
    for (int i = 0; i < pilot_count; ++i) {
      const unsigned slots = *rc::gen::inRange(1u, 10u);
      pilots[{h.running(slots), 0}].slots = slots;
    }
    std::uint32_t widest = 0;
    for (const auto& [id, pilot] : pilots) widest = std::max(widest, pilot.slots);
    const int count = *rc::gen::inRange(1, 60);
    int submitted = 0;
    auto deliver = [&] {
      for (auto& [to, frame] : std::exchange(h.out.frames, {})) pilots.at(to).inbox.push_back(std::move(frame));
    };
    auto step = [&](NodeId id, FakePilot& pilot, int what) {
      if (what == 0 && !pilot.inbox.empty()) {
        const v1::Frame frame = std::move(pilot.inbox.front());
        pilot.inbox.pop_front();
        if (frame.has_start_attempt()) {
          pilot.waiting.push_back({frame.start_attempt().id(), std::max(1u, frame.start_attempt().spec().processes())});
        } else if (frame.has_retract_attempt()) {
          v1::AttemptRetracted answer;
          *answer.mutable_id() = frame.retract_attempt().id();
          answer.set_begun(!std::erase_if(pilot.waiting, [&](const auto& w) {
            return w.first.job() == answer.id().job() && w.first.attempt() == answer.id().attempt();
          }));
          pilot.outbox.push_back([id, answer](Harness& to) { to.core.on_attempt_retracted(id, answer, to.now, to.out); });
        }
      } else if (what == 1 && !pilot.running.empty()) {
        const auto at = *rc::gen::inRange<std::size_t>(0, pilot.running.size());
        v1::AttemptEnded end;
        *end.mutable_id() = pilot.running[at].first;
        end.mutable_exit()->set_kind(v1::EXITED);
        pilot.running.erase(pilot.running.begin() + static_cast<std::ptrdiff_t>(at));
        pilot.outbox.push_back([id, end](Harness& to) { to.core.on_attempt_ended(id, end, to.now, to.out); });
      } else if (what == 2 && !pilot.outbox.empty()) {
        pilot.outbox.front()(h);
        pilot.outbox.pop_front();
      }
      while (!pilot.waiting.empty() && pilot.used() + pilot.waiting.front().second <= pilot.slots) {
        const v1::AttemptId started = pilot.waiting.front().first;
        pilot.running.push_back(pilot.waiting.front());
        pilot.waiting.pop_front();
        ++runs[started.job()];
        pilot.outbox.push_back([id, started](Harness& to) {
          v1::AttemptRunning running;
          *running.mutable_id() = started;
          running.set_pid(1);
          to.core.on_attempt_running(id, running, to.now, to.out);
        });
      }
    };
    std::map<JobId, v1::JobState> ends;
    for (int turn = 0; turn < 400; ++turn) {
      if (submitted < count && *rc::gen::inRange(0, 3) == 0) {
        ++submitted;
        h.submit(h.command("", *rc::gen::inRange(0, 4) == 0 ? *rc::gen::inRange(1u, widest + 1) : 1));
      }
      auto it = pilots.begin();
      std::advance(it, *rc::gen::inRange<std::size_t>(0, pilots.size()));
      step(it->first, it->second, *rc::gen::inRange(0, 3));
      if (h.core.placing_wanted() && *rc::gen::arbitrary<bool>()) h.place();
      deliver();
      check_invariants(h, ends);
    }
    while (submitted < count) ++submitted, h.submit(h.command());
    // Now all goes on in turns until nothing is left to do.
    for (int round = 0; round < 40 * count; ++round) {
      if (h.core.placing_wanted()) h.place();
      deliver();
      for (auto& [id, pilot] : pilots)
        for (const int what : {0, 0, 2, 2, 1}) step(id, pilot, what);
      deliver();
      check_invariants(h, ends);
    }
    for (const auto& [id, job] : h.core.state().jobs) {
      RC_ASSERT(job.state == v1::JOB_FINISHED);
      RC_ASSERT(runs[id.value] == 1);
    }
    RC_ASSERT(h.core.state().retracting.empty());
    h.check_replay();
  }));
}
