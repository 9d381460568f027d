#include "daemon/core/scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

namespace flotilla::daemon {
namespace {

struct Room {
  NodeId id;
  const Pilot* pilot;
  std::uint32_t free;
  std::uint32_t capacity;
};

std::vector<Room> rooms(const State& state) {
  std::vector<Room> all;
  for (const auto& [id, pilot] : state.pilots) {
    if (pilot.state != v1::PILOT_RUNNING || pilot.stop_wanted || pilot.drain_wanted) continue;
    for (const auto& [index, node] : pilot.nodes)
      if (node.linked && !node.gone && node.ending.empty())
        all.push_back({NodeId{id, index}, &pilot, node.slots_free(), node.record.slots()});
  }
  return all;
}

// A request class: jobs of the same class fit, or do not fit, alike.
struct Class {
  std::uint32_t slots;
  std::string label;
  std::uint64_t pilot;
  auto operator<=>(const Class&) const = default;
};

}  // namespace

std::vector<Placement> schedule(const State& state) {
  std::vector<Placement> placements;
  if (state.queue.empty()) return placements;
  std::vector<Room> all = rooms(state);
  std::set<Class> blocked;  // nothing of this class fits any more in this round
  std::uint64_t free_total = 0;
  for (const auto& room : all) free_total += room.free;

  for (const JobId id : state.queue) {
    const Job& job = state.jobs.at(id);
    if (job.spec->beside_job()) {
      const Job* host = state.job(JobId{job.spec->beside_job()});
      if (host && placed(host->state)) placements.push_back({id, host->node});
      continue;
    }
    const std::uint32_t slots = job.slots();
    if (slots && free_total == 0) {
      if (std::none_of(all.begin(), all.end(), [](const Room& room) { return room.free > 0; })) {
        // Only jobs without slots (shells) could still start; they are rare: look on.
        if (blocked.size() > 64) break;
      }
    }
    Class request{slots, job.spec->label(), job.spec->pilot()};
    if (blocked.contains(request)) continue;
    Room* chosen = nullptr;
    Room* held = nullptr;
    for (Room& room : all) {
      if (room.capacity < slots || !admits(*job.spec, *room.pilot)) continue;
      if (room.free >= slots) {
        chosen = &room;
        break;
      }
      // The node that needs the fewest slots to come free is kept for this job.
      if (!held || slots - room.free < slots - held->free) held = &room;
    }
    if (chosen) {
      chosen->free -= slots;
      free_total -= slots;
      placements.push_back({id, chosen->id});
      continue;
    }
    if (held) {
      free_total -= held->free;
      held->free = 0;
    }
    blocked.insert(std::move(request));
  }
  return placements;
}

Why why(const State& state, const Job& job) {
  Why answer;
  if (ended(job.state)) {
    answer.sentence = fmt::format("job {} {}: {}", job.id.value, word(job.state),
                                  job.exit.message().empty() ? "exit code 0" : job.exit.message());
    return answer;
  }
  if (placed(job.state)) {
    const auto pilot = state.pilots.find(job.node.pilot);
    const bool cut = pilot != state.pilots.end() && pilot->second.state == v1::PILOT_UNREACHABLE;
    answer.sentence = fmt::format("job {} is {} on pilot {}{}", job.id.value, word(job.state), job.node.pilot.value,
                                  job.host.empty() ? "" : " (" + job.host + ")");
    if (cut) answer.sentence += "; the link to it is cut since then, and the job goes on there";
    return answer;
  }
  const std::uint32_t slots = job.slots();
  const std::string& label = job.spec->label();
  std::size_t matching = 0, starting = 0, unreachable = 0, too_small = 0, busy = 0;
  for (const auto& [id, pilot] : state.pilots) {
    if (ended(pilot.state)) continue;
    if (!admits(*job.spec, pilot)) {
      if (job.spec->pilot() && job.spec->pilot() != id.value)
        answer.details.push_back(fmt::format("pilot {} on {}: is not pilot {}", id.value, pilot.spec.resource(), job.spec->pilot()));
      else
        answer.details.push_back(fmt::format("pilot {} on {}: label '{}' is not '{}'", id.value, pilot.spec.resource(), pilot.spec.label(), label));
      continue;
    }
    ++matching;
    if (pilot.state == v1::PILOT_UNREACHABLE) {
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
      for (const auto& [index, node] : pilot.nodes) {
        if (node.gone) continue;
        widest = std::max(widest, node.record.slots());
        free = std::max(free, node.slots_free());
      }
      if (widest < slots) {
        ++too_small;
        answer.details.push_back(fmt::format("pilot {} on {}: its nodes have {} slots, {} are asked for", id.value,
                                             pilot.spec.resource(), widest, slots));
      } else {
        ++busy;
        answer.details.push_back(fmt::format("pilot {} on {}: {} of {} slots free on its emptiest node, {} asked for",
                                             id.value, pilot.spec.resource(), free, widest, slots));
      }
    }
  }
  if (job.spec->beside_job())
    answer.sentence = fmt::format("waits for job {} to run", job.spec->beside_job());
  else if (matching == 0 && job.spec->pilot())
    answer.sentence = fmt::format("it was asked to run on pilot {} alone, which {}", job.spec->pilot(),
                                  label.empty() ? "is not there any more" : fmt::format("is not there any more, or has not the label '{}'", label));
  else if (matching == 0 && label.empty())
    answer.sentence = "no pilot is there; start one: flotilla pilot start RESOURCE";
  else if (matching == 0 && state.resources.contains(label))
    answer.sentence = fmt::format("no pilot is on resource '{0}'; start one: flotilla pilot start {0}", label);
  else if (matching == 0)
    answer.sentence = fmt::format("no pilot has the label '{0}' and no resource that name; start one: flotilla pilot start RESOURCE --label {0}", label);
  else if (busy)
    answer.sentence = fmt::format("all slots that it could use are taken ({} asked for)", slots);
  else if (starting)
    answer.sentence = "its pilot is still starting";
  else if (unreachable)
    answer.sentence = "the link to its pilot is cut";
  else if (too_small)
    answer.sentence = fmt::format("no node has {0} slots; start a pilot that has (flotilla pilot start RESOURCE --slots {0}) or ask for less", slots);
  else
    answer.sentence = "the pilots that it could use are ending";
  answer.transient = job.spec->beside_job() || busy || starting;
  return answer;
}

}  // namespace flotilla::daemon
