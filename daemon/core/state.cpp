#include "daemon/core/state.hpp"

#include <algorithm>

namespace flotilla::daemon {
namespace {

void set_pilot_state(Pilot& pilot, v1::PilotState state, std::int64_t at) {
  pilot.state = state;
  switch (state) {
    case v1::PILOT_STARTING: pilot.starting_ms = at; break;
    case v1::PILOT_RUNNING:
      if (!pilot.running_ms) pilot.running_ms = at;
      break;
    case v1::PILOT_FINISHED:
    case v1::PILOT_FAILED: pilot.ended_ms = at; break;
    default: break;
  }
}

// It waits at its node no longer.
void end_wait(State& state, Node* node, Job& job) {
  if (node) std::erase(node->prefilled, job.id);
  state.prefilled.erase(job);
  state.retracting.erase(job.id);
  job.prefilled = false;
  job.retract_to = {};
}

// As the pilot does it: in order of arrival, nobody overtakes.
void promote(State& state, Node& node) {
  while (!node.prefilled.empty()) {
    Job& job = state.jobs.at(node.prefilled.front());
    if (job.slots() > node.slots_free()) return;
    end_wait(state, &node, job);
    node.slots_used += job.slots();
  }
}

void leave_node(State& state, Job& job) {
  Node* node = state.node(job.node);
  const bool was_there = node && node->attempts.erase(job.id);
  if (job.prefilled) end_wait(state, node, job);
  else if (was_there) node->slots_used -= std::min(node->slots_used, job.slots());
  if (node) promote(state, *node);
}

void enter_node(State& state, Job& job, bool prefilled) {
  Node* node = state.node(job.node);
  if (!node || !node->attempts.insert(job.id).second) return;
  if (!prefilled) {
    node->slots_used += job.slots();
    return;
  }
  job.prefilled = true;
  node->prefilled.push_back(job.id);
  state.prefilled.insert(job);
  promote(state, *node);
}

Job* find(State& state, std::uint64_t id) {
  const auto it = state.jobs.find(JobId{id});
  return it == state.jobs.end() ? nullptr : &it->second;
}
Pilot* find_pilot(State& state, std::uint64_t id) {
  const auto it = state.pilots.find(PilotId{id});
  return it == state.pilots.end() ? nullptr : &it->second;
}

}  // namespace

std::uint32_t slots_of(const v1::JobSpec& spec) {
  if (spec.no_slots() || spec.beside_job()) return 0;
  return std::max(1u, spec.processes()) * std::max(1u, spec.threads());
}

RequestClass class_of(const Job& job) {
  // A worker stays for long and somebody waits at a terminal: neither gains from waiting behind others at a pilot.
  const bool may_prefill = job.spec->has_command() && !job.spec->command().terminal() && job.slots() > 0;
  return {job.slots(), job.spec->label(), job.spec->pilot(), may_prefill, job.spec->time_limit_ms()};
}

void JobQueue::insert(const Job& job) {
  const bool added = job.spec->beside_job() ? beside_.insert(job.id).second : classes_[class_of(job)].insert(job.id).second;
  if (!added) return;
  ++size_;
  if (job.spec->queue_timeout_ms()) timed_.insert(job.id);
}

void JobQueue::erase(const Job& job) {
  if (job.spec->beside_job()) {
    size_ -= beside_.erase(job.id);
  } else if (const auto it = classes_.find(class_of(job)); it != classes_.end()) {
    size_ -= it->second.erase(job.id);
    if (it->second.empty()) classes_.erase(it);
  }
  timed_.erase(job.id);
}

bool JobQueue::contains(const Job& job) const {
  if (job.spec->beside_job()) return beside_.contains(job.id);
  const auto it = classes_.find(class_of(job));
  return it != classes_.end() && it->second.contains(job.id);
}

Node* State::node(NodeId id) {
  const auto pilot = pilots.find(id.pilot);
  if (pilot == pilots.end()) return nullptr;
  const auto node = pilot->second.nodes.find(id.node);
  return node == pilot->second.nodes.end() ? nullptr : &node->second;
}
const Node* State::node(NodeId id) const { return const_cast<State*>(this)->node(id); }
const Job* State::job(JobId id) const {
  const auto it = jobs.find(id);
  return it == jobs.end() ? nullptr : &it->second;
}

bool apply(State& state, const v1::Event& event) {
  const std::int64_t at = event.at_ms();
  switch (event.what_case()) {
    case v1::Event::kResourceAdded: {
      Resource& resource = state.resources[event.resource_added().name()];
      resource.spec = event.resource_added();
      if (!resource.created_ms) resource.created_ms = at;
      return true;
    }
    case v1::Event::kResourceRemoved: return state.resources.erase(event.resource_removed()) == 1;
    case v1::Event::kPilotSubmitted: {
      const auto& made = event.pilot_submitted();
      Pilot pilot;
      pilot.id = PilotId{made.pilot()};
      pilot.spec = made.spec();
      pilot.secret = made.secret();
      pilot.submitted_ms = at;
      state.last_pilot = std::max(state.last_pilot, made.pilot());
      return state.pilots.emplace(pilot.id, std::move(pilot)).second;
    }
    case v1::Event::kPilotChanged: {
      Pilot* pilot = find_pilot(state, event.pilot_changed().pilot());
      if (!pilot) return false;
      set_pilot_state(*pilot, event.pilot_changed().state(), at);
      pilot->message = event.pilot_changed().message();
      if (ended(pilot->state)) pilot->secret.clear();
      return true;
    }
    case v1::Event::kNodeChanged: {
      const auto& changed = event.node_changed();
      Pilot* pilot = find_pilot(state, changed.pilot());
      if (!pilot) return false;
      Node& node = pilot->nodes[changed.node().index()];
      node.record = changed.node();
      node.incarnation = changed.incarnation();
      node.beside_hub = changed.beside_hub();
      node.runtime_dir = changed.runtime_dir();
      node.gone = changed.gone();
      promote(state, node);
      return true;
    }
    case v1::Event::kJobSubmitted: {
      const auto& made = event.job_submitted();
      Job job;
      job.id = JobId{made.job()};
      job.spec = std::make_shared<const v1::JobSpec>(made.spec());
      job.state = v1::JOB_QUEUED;
      job.submitted_ms = job.queued_ms = at;
      state.last_job = std::max(state.last_job, made.job());
      state.queue.insert(job);
      return state.jobs.emplace(job.id, std::move(job)).second;
    }
    case v1::Event::kJobDispatched: {
      const auto& placed = event.job_dispatched();
      Job* job = find(state, placed.job());
      if (!job || !next(job->state, JobEvent::placed)) return false;
      state.queue.erase(*job);
      job->state = v1::JOB_DISPATCHED;
      job->attempt = placed.attempt();
      job->node = NodeId{PilotId{placed.pilot()}, placed.node()};
      job->dispatched_ms = at;
      enter_node(state, *job, placed.prefilled());
      return true;
    }
    case v1::Event::kJobRunning: {
      const auto& running = event.job_running();
      Job* job = find(state, running.job());
      if (!job || job->attempt != running.attempt() || !placed(job->state)) return false;
      if (job->state == v1::JOB_DISPATCHED) job->running_ms = at;
      if (job->prefilled) {  // the pilot knew earlier than we that there is room
        Node* node = state.node(job->node);
        end_wait(state, node, *job);
        if (node) node->slots_used += job->slots();
      }
      job->state = v1::JOB_RUNNING;
      job->pid = running.pid();
      job->folder = running.folder();
      job->host = running.host();
      job->connected = running.connected();
      job->hand_over_socket = running.hand_over_socket();
      return true;
    }
    case v1::Event::kJobEnded: {
      const auto& end = event.job_ended();
      Job* job = find(state, end.job());
      if (!job || ended(job->state) || !ended(end.state())) return false;
      state.queue.erase(*job);
      leave_node(state, *job);
      if (job->node.pilot)
        if (Pilot* pilot = find_pilot(state, job->node.pilot.value)) ++pilot->jobs_done;
      job->state = end.state();
      job->exit = end.exit();
      job->stdout_bytes = end.stdout_bytes();
      job->stderr_bytes = end.stderr_bytes();
      job->ended_ms = at;
      return true;
    }
    case v1::Event::kJobRequeued: {
      Job* job = find(state, event.job_requeued().job());
      if (!job || !placed(job->state)) return false;
      leave_node(state, *job);
      job->state = v1::JOB_QUEUED;
      job->node = {};
      job->host.clear();
      job->folder.clear();
      job->hand_over_socket.clear();
      job->connected = false;
      job->pid = 0;
      job->dispatched_ms = 0;
      // queued_ms stays: its time-out counts from its submission.
      state.queue.insert(*job);
      return true;
    }
    case v1::Event::kPilotTold: {
      Pilot* pilot = find_pilot(state, event.pilot_told().pilot());
      if (!pilot) return false;
      pilot->stop_wanted |= event.pilot_told().stop();
      pilot->drain_wanted |= event.pilot_told().drain();
      pilot->stop_reason = event.pilot_told().reason();
      return true;
    }
    case v1::Event::kJobCanceling: {
      Job* job = find(state, event.job_canceling().job());
      if (!job || !placed(job->state)) return false;
      job->canceling = event.job_canceling().kind();
      job->canceling_message = event.job_canceling().message();
      return true;
    }
    case v1::Event::kJobReleased: {
      Job* job = find(state, event.job_released());
      if (!job) return false;
      job->released = true;
      return true;
    }
    case v1::Event::kPilotForgotten: return state.pilots.erase(PilotId{event.pilot_forgotten()}) == 1;
    case v1::Event::WHAT_NOT_SET: return false;
  }
  return false;
}

v1::Resource describe(const Resource& resource) {
  v1::Resource out;
  *out.mutable_spec() = resource.spec;
  out.set_hub_state(resource.hub_state);
  out.set_hub_message(resource.hub_message);
  out.set_hub_host(resource.hub_host);
  out.set_hub_build(resource.hub_build);
  out.set_hub_pid(resource.hub_pid);
  out.set_hub_since_ms(resource.hub_since_ms);
  out.set_created_ms(resource.created_ms);
  out.set_upload_fraction(resource.upload_fraction);
  out.set_round_trip_us(resource.round_trip_us);
  return out;
}

v1::Pilot describe(const State&, const Pilot& pilot) {
  v1::Pilot out;
  out.set_id(pilot.id.value);
  *out.mutable_spec() = pilot.spec;
  out.set_state(pilot.state);
  out.set_message(pilot.message);
  out.set_submitted_ms(pilot.submitted_ms);
  out.set_starting_ms(pilot.starting_ms);
  out.set_running_ms(pilot.running_ms);
  out.set_ended_ms(pilot.ended_ms);
  if (pilot.spec.time_ms() && pilot.running_ms) out.set_ends_at_ms(pilot.running_ms + pilot.spec.time_ms());
  out.set_jobs_done(pilot.jobs_done);
  for (const auto& [index, node] : pilot.nodes) {
    auto* record = out.add_nodes();
    *record = node.record;
    record->set_index(index);
    record->set_connected(node.linked);
    record->set_slots_used(node.slots_used);
    if (!node.gone) {
      out.set_slots(out.slots() + node.record.slots());
      out.set_slots_used(out.slots_used() + node.slots_used);
    }
    out.set_jobs_running(out.jobs_running() + static_cast<std::uint32_t>(node.attempts.size() - node.prefilled.size()));
  }
  return out;
}

v1::Job describe(const State& state, const Job& job) {
  v1::Job out;
  out.set_id(job.id.value);
  *out.mutable_spec() = *job.spec;
  out.set_state(job.state);
  out.set_attempt(job.attempt);
  out.set_pilot(job.node.pilot.value);
  out.set_node(job.node.node);
  out.set_host(job.host);
  out.set_pid(job.pid);
  out.set_folder(job.folder);
  if (ended(job.state)) {
    *out.mutable_exit() = job.exit;
    out.set_message(job.exit.message());
  }
  out.set_submitted_ms(job.submitted_ms);
  out.set_queued_ms(job.queued_ms);
  out.set_dispatched_ms(job.dispatched_ms);
  out.set_running_ms(job.running_ms);
  out.set_ended_ms(job.ended_ms);
  out.set_stdout_bytes(job.stdout_bytes);
  out.set_stderr_bytes(job.stderr_bytes);
  out.set_connected(job.connected);
  out.set_prefilled(job.prefilled);
  if (job.worker()) *out.mutable_channel() = job.channel;
  if (placed(job.state)) {
    const auto pilot = state.pilots.find(job.node.pilot);
    if (pilot != state.pilots.end() && pilot->second.state == v1::PILOT_UNREACHABLE) {
      out.set_pilot_unreachable(true);
      out.set_message("the link to its pilot is cut; this is the last that was known");
    }
  }
  return out;
}

bool admits(const v1::JobSpec& job, const Pilot& pilot) {
  if (job.pilot() && job.pilot() != pilot.id.value) return false;
  return job.label().empty() || job.label() == pilot.spec.label() || job.label() == pilot.spec.resource();
}

}  // namespace flotilla::daemon
