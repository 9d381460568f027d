#include "daemon/core/scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>

namespace flotilla::daemon {
namespace {

struct Room {
  NodeId id;
  const Pilot* pilot;
  std::uint32_t capacity;
  std::uint32_t free;     // for who comes now
  std::uint32_t waiting;  // slots of those prefilled there
  std::int64_t left_ms;   // until its time is up
  bool refills = false;   // so few wait there that more are sent: several at once, not one for each that ends
  bool kept = false;  // for a job that needs more than is free, or for one that was asked back to run here: no other is sent there to wait
};

constexpr std::int64_t no_end = std::numeric_limits<std::int64_t>::max();
std::int64_t left_ms(const Node& node, Now now) { return node.ends_boot_ms ? node.ends_boot_ms - now.boot_ms : no_end; }

std::vector<Room> rooms(const State& state, Now now) {
  std::vector<Room> all;
  for (const auto& [id, pilot] : state.pilots) {
    if (pilot.state != v1::PILOT_RUNNING || pilot.stop_wanted || pilot.drain_wanted) continue;
    for (const auto& [index, node] : pilot.nodes) {
      if (!node.linked || node.gone || !node.ending.empty()) continue;
      Room room{NodeId{id, index}, &pilot, node.record.slots(), node.slots_free(), 0, left_ms(node, now)};
      for (const JobId job : node.prefilled) room.waiting += state.jobs.at(job).slots();
      if (room.waiting) room.free = 0;  // nobody overtakes them
      room.refills = 2 * room.waiting <= prefill_depth * room.capacity;
      all.push_back(room);
    }
  }
  for (const JobId id : state.retracting) {
    const Job& job = state.jobs.at(id);
    for (Room& room : all)
      if (room.id == job.retract_to) {
        room.free -= std::min(room.free, job.slots());
        room.kept = true;
      }
  }
  return all;
}

// The next job of one class.
struct Head {
  JobId job;
  const RequestClass* request;
  const std::set<JobId>* jobs;
  bool prefilled;  // it waits at a node already
  bool operator>(const Head& other) const { return job > other.job; }
};

// Small, and when it will begin does not matter.
bool may_wait_in(const Room& room, const RequestClass& request) {
  return request.slots <= std::max(1u, room.capacity / prefill_widest_share) && (!request.time_limit_ms || room.left_ms == no_end);
}

}  // namespace

Plan schedule(const State& state, Now now) {
  Plan plan;
  for (const JobId id : state.queue.beside()) {
    const Job* host = state.job(JobId{state.jobs.at(id).spec->beside_job()});
    if (host && host->state == v1::JOB_RUNNING) plan.placements.push_back({id, host->node});
  }
  if (state.queue.classes().empty() && state.prefilled.empty()) return plan;
  std::vector<Room> all = rooms(state, now);
  std::priority_queue<Head, std::vector<Head>, std::greater<>> heads;
  for (const auto& [request, jobs] : state.queue.classes()) heads.push({*jobs.begin(), &request, &jobs, false});
  if (std::any_of(all.begin(), all.end(), [](const Room& room) { return room.free > 0; }))
    for (const auto& [request, jobs] : state.prefilled.classes()) heads.push({*jobs.begin(), &request, &jobs, true});

  // In order of submission over all classes. A class of which one finds no place is done: room only becomes less.
  while (!heads.empty()) {
    Head head = heads.top();
    heads.pop();
    const Job& job = state.jobs.at(head.job);
    const RequestClass& request = *head.request;
    const auto go_on = [&] {
      if (const auto next = head.jobs->upper_bound(head.job); next != head.jobs->end()) {
        head.job = *next;
        heads.push(head);
      }
    };
    if (head.prefilled && state.retracting.contains(head.job)) {
      go_on();
      continue;
    }
    Room* chosen = nullptr;
    Room* held = nullptr;
    Room* prefill = nullptr;
    const auto still_needed = [&](const Room& room) { return request.slots + room.waiting - room.free; };
    for (Room& room : all) {
      if (room.capacity < request.slots || room.left_ms < request.time_limit_ms || !admits(*job.spec, *room.pilot)) continue;
      if (room.free >= request.slots) {
        chosen = &room;
        break;
      }
      // The node that needs the fewest slots to come free is kept for this job.
      if (!held || still_needed(room) < still_needed(*held)) held = &room;
      if (request.may_prefill && room.refills && !room.kept && room.free == 0 && may_wait_in(room, request) &&
          room.waiting + request.slots <= prefill_depth * room.capacity &&
          (!prefill || std::uint64_t{room.waiting} * prefill->capacity < std::uint64_t{prefill->waiting} * room.capacity))
        prefill = &room;
    }
    if (head.prefilled) {
      if (!chosen) continue;
      const Node* node = state.node(job.node);
      if (node && node->linked) {
        chosen->free -= request.slots;
        chosen->kept = true;
        plan.retractions.push_back({head.job, chosen->id});
      }
      go_on();
    } else if (chosen) {
      chosen->free -= request.slots;
      plan.placements.push_back({head.job, chosen->id});
      go_on();
    } else if (prefill) {
      prefill->waiting += request.slots;
      plan.placements.push_back({head.job, prefill->id, true});
      go_on();
    } else if (held) {
      held->free = 0;
      held->kept = true;
    }
  }
  return plan;
}

Why why(const State& state, const Job& job, Now now) {
  Why answer;
  if (ended(job.state)) {
    answer.sentence =
        fmt::format("job {} {}: {}", job.id.value, word(job.state), job.exit.message().empty() ? "exit code 0" : job.exit.message());
    return answer;
  }
  if (placed(job.state)) {
    const auto pilot = state.pilots.find(job.node.pilot);
    const Node* node = state.node(job.node);
    const bool cut = (pilot != state.pilots.end() && pilot->second.state == v1::PILOT_UNREACHABLE) || (node && !node->linked);
    answer.sentence = fmt::format("job {} is {} on pilot {}{}", job.id.value, word(job.state), job.node.pilot.value,
                                  job.host.empty() ? "" : " (" + job.host + ")");
    if (job.prefilled) {
      answer.sentence = fmt::format("all slots that it could use are taken; it waits at pilot {}{} and starts there with the next free one",
                                    job.node.pilot.value, node && !node->record.host().empty() ? " (" + node->record.host() + ")" : "");
      if (!cut) answer.sentence += ", or where there is room earlier";
      answer.transient = !cut;
    }
    if (cut) answer.sentence += "; the link to it is cut since then, and the job goes on there";
    return answer;
  }
  const std::uint32_t slots = job.slots();
  const std::string& label = job.spec->label();
  const std::int64_t limit_ms = job.spec->time_limit_ms();
  std::size_t matching = 0, starting = 0, unreachable = 0, too_small = 0, too_late = 0, busy = 0;
  for (const auto& [id, pilot] : state.pilots) {
    if (ended(pilot.state)) continue;
    if (!admits(*job.spec, pilot)) {
      if (job.spec->pilot() && job.spec->pilot() != id.value)
        answer.details.push_back(fmt::format("pilot {} on {}: is not pilot {}", id.value, pilot.spec.resource(), job.spec->pilot()));
      else
        answer.details.push_back(
            fmt::format("pilot {} on {}: label '{}' is not '{}'", id.value, pilot.spec.resource(), pilot.spec.label(), label));
      continue;
    }
    ++matching;
    if (pilot.spec.time_ms() && limit_ms > pilot.spec.time_ms()) {
      ++too_late;
      answer.details.push_back(fmt::format("pilot {} on {}: lasts {} s, the job's time limit is {} s", id.value, pilot.spec.resource(),
                                           pilot.spec.time_ms() / 1000.0, limit_ms / 1000.0));
    } else if (pilot.state == v1::PILOT_UNREACHABLE) {
      ++unreachable;
      answer.details.push_back(fmt::format("pilot {} on {}: its link is cut", id.value, pilot.spec.resource()));
    } else if (pilot.state == v1::PILOT_DRAINING || pilot.stop_wanted || pilot.drain_wanted) {
      answer.details.push_back(fmt::format("pilot {} on {}: takes no new jobs, it is ending", id.value, pilot.spec.resource()));
    } else if (pilot.state != v1::PILOT_RUNNING) {
      ++starting;
      answer.details.push_back(fmt::format("pilot {} on {}: {}{}", id.value, pilot.spec.resource(), word(pilot.state),
                                           pilot.message.empty() ? "" : ", " + pilot.message));
    } else {
      std::uint32_t widest = 0, free = 0;
      std::int64_t left = 0;
      for (const auto& [index, node] : pilot.nodes) {
        if (node.gone) continue;
        widest = std::max(widest, node.record.slots());
        if (node.record.slots() >= slots) left = std::max(left, left_ms(node, now));
        free = std::max(free, node.slots_free());
      }
      if (widest < slots) {
        ++too_small;
        answer.details.push_back(
            fmt::format("pilot {} on {}: its nodes have {} slots, {} are asked for", id.value, pilot.spec.resource(), widest, slots));
      } else if (left < limit_ms) {
        ++too_late;
        answer.details.push_back(fmt::format("pilot {} on {}: ends in {:.0f} s, the job's time limit is {} s", id.value,
                                             pilot.spec.resource(), static_cast<double>(std::max<std::int64_t>(left, 0)) / 1000,
                                             limit_ms / 1000.0));
      } else {
        ++busy;
        answer.details.push_back(fmt::format("pilot {} on {}: {} of {} slots free on its emptiest node, {} asked for", id.value,
                                             pilot.spec.resource(), free, widest, slots));
      }
    }
  }
  if (job.spec->beside_job()) answer.sentence = fmt::format("waits for job {} to run", job.spec->beside_job());
  else if (matching == 0 && job.spec->pilot())
    answer.sentence =
        fmt::format("it was asked to run on pilot {} alone, which {}", job.spec->pilot(),
                    label.empty() ? "is not there any more" : fmt::format("is not there any more, or has not the label '{}'", label));
  else if (matching == 0 && label.empty()) answer.sentence = "no pilot is there; start one: flotilla pilot start RESOURCE";
  else if (matching == 0 && state.resources.contains(label))
    answer.sentence = fmt::format("no pilot is on resource '{0}'; start one: flotilla pilot start {0}", label);
  else if (matching == 0)
    answer.sentence =
        fmt::format("no pilot has the label '{0}' and no resource that name; start one: flotilla pilot start RESOURCE --label {0}", label);
  else if (busy) answer.sentence = fmt::format("all slots that it could use are taken ({} asked for)", slots);
  else if (starting) answer.sentence = "its pilot is still starting";
  else if (unreachable) answer.sentence = "the link to its pilot is cut";
  else if (too_late)
    answer.sentence = fmt::format(
        "no pilot that it could use lasts as long as its time limit ({} s); start one that does (flotilla pilot start RESOURCE --time) or "
        "submit it with less",
        limit_ms / 1000.0);
  else if (too_small)
    answer.sentence =
        fmt::format("no node has {0} slots{1}; start a pilot that has (flotilla pilot start RESOURCE --slots {0}) or ask for less", slots,
                    job.spec->worker().mpi() ? ", and all ranks of a worker are on one node" : "");
  else answer.sentence = "the pilots that it could use are ending";
  answer.transient = job.spec->beside_job() || busy || starting;
  return answer;
}

}  // namespace flotilla::daemon
