#include "daemon/core/core.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "daemon/core/validate.hpp"
#include "proto/base/hex.hpp"
#include "proto/base/text.hpp"

namespace flotilla::daemon {
namespace {

v1::AttemptId wire(const Job& job) {
  v1::AttemptId id;
  id.set_job(job.id.value);
  id.set_attempt(job.attempt);
  return id;
}

v1::ExitReason reason(v1::ExitKind kind, std::string message) {
  v1::ExitReason exit;
  exit.set_kind(kind);
  exit.set_message(std::move(message));
  return exit;
}

JobEvent ending(const v1::ExitReason& exit) {
  switch (exit.kind()) {
    case v1::EXITED: return exit.code() == 0 ? JobEvent::ended_ok : JobEvent::ended_bad;
    case v1::CLIENT_GONE: return JobEvent::ended_ok;
    case v1::CANCELED_BY_USER: return JobEvent::ended_canceled;
    case v1::PILOT_LOST: return JobEvent::pilot_lost;
    default: return JobEvent::ended_bad;
  }
}

// Another machine, or other files on it: hub and pilots of the one are nothing to the other.
bool moved(const v1::ResourceSpec& from, const v1::ResourceSpec& to) {
  return from.driver() != to.driver() || from.location() != to.location() || from.scratch_dir() != to.scratch_dir();
}

// The same hub, to be reached otherwise.
bool goes_other_way(const v1::ResourceSpec& from, const v1::ResourceSpec& to) {
  const auto options = [](const v1::ResourceSpec& spec) { return std::map(spec.options().begin(), spec.options().end()); };
  return from.gateway() != to.gateway() || from.transport() != to.transport() || options(from) != options(to);
}

}  // namespace

Core::Core(CoreSettings settings, std::function<std::string()> new_secret) : settings_(settings), new_secret_(std::move(new_secret)) {}

Job* Core::find(JobId id) {
  const auto it = state_.jobs.find(id);
  return it == state_.jobs.end() ? nullptr : &it->second;
}

void Core::emit(v1::Event event, Now now, Outbox& out) {
  event.set_at_ms(now.wall_ms);
  make_utf8(event);  // it could not be read again
  apply(state_, event);
  out.events.push_back(std::move(event));
}

void Core::change_pilot(Pilot& pilot, PilotEvent event, const std::string& message, Now now, Outbox& out) {
  const auto to = next(pilot.state, event);
  if (!to) return;
  v1::Event change;
  change.mutable_pilot_changed()->set_pilot(pilot.id.value);
  change.mutable_pilot_changed()->set_state(*to);
  change.mutable_pilot_changed()->set_message(message);
  emit(std::move(change), now, out);
  out.changed_pilots.insert(pilot.id);
  if (*to == v1::PILOT_UNREACHABLE) pilot.unreachable_since_boot_ms = now.boot_ms;
  dirty_ = true;
}

void Core::end_job(Job& job, JobEvent event, v1::ExitReason exit, std::uint64_t out_bytes, std::uint64_t err_bytes, Now now, Outbox& out) {
  const auto to = next(job.state, event);
  if (!to) return;
  v1::Event end;
  auto* ended = end.mutable_job_ended();
  ended->set_job(job.id.value);
  ended->set_attempt(job.attempt);
  ended->set_state(*to);
  *ended->mutable_exit() = std::move(exit);
  ended->set_stdout_bytes(out_bytes);
  ended->set_stderr_bytes(err_bytes);
  if (job.node.pilot) out.changed_pilots.insert(job.node.pilot);
  emit(std::move(end), now, out);
  out.changed_jobs.insert(job.id);
  out.ended_jobs.push_back(job.id);
  dirty_ = true;
}

void Core::requeue(Job& job, const std::string& why_so, Now now, Outbox& out) {
  v1::Event event;
  event.mutable_job_requeued()->set_job(job.id.value);
  event.mutable_job_requeued()->set_reason(why_so);
  if (job.node.pilot) out.changed_pilots.insert(job.node.pilot);
  emit(std::move(event), now, out);
  out.changed_jobs.insert(job.id);
  dirty_ = true;
  end_wait_at_limit(job, now, out);
}

void Core::end_wait_at_limit(Job& job, Now now, Outbox& out) {
  const std::int64_t limit = job.spec->queue_timeout_ms();
  if (limit && now.wall_ms - job.queued_ms >= limit)
    end_job(job, JobEvent::queue_timeout,
            reason(v1::QUEUE_TIMEOUT,
                   fmt::format("it waited {} s in the queue, its limit: {}", limit / 1000.0, why(state_, job, now).sentence)),
            0, 0, now, out);
}

void Core::lose_attempts(NodeId, Node& node, Prefilled prefilled, v1::ExitKind kind, const std::string& message, Now now, Outbox& out) {
  // The ones that waited first: what ends makes room for them.
  const std::deque<JobId> waiting = node.prefilled;
  if (prefilled == Prefilled::queued_again)
    for (const JobId id : waiting)
      if (Job* job = find(id); job && job->canceling == v1::EXIT_NONE) requeue(*job, message, now, out);
  const std::set<JobId> attempts = node.attempts;  // end_job changes the set
  for (const JobId id : attempts)
    if (Job* job = find(id)) {
      auto exit = reason(kind, message);
      exit.set_host(node.record.host());
      end_job(*job, kind == v1::PILOT_LOST ? JobEvent::pilot_lost : JobEvent::ended_bad, std::move(exit), job->stdout_bytes,
              job->stderr_bytes, now, out);
    }
}

v1::PilotSettings Core::settings_of(const Pilot& pilot) const {
  v1::PilotSettings settings;
  settings.set_idle_ms(pilot.spec.idle_ms() ? pilot.spec.idle_ms() : settings_.pilot_idle_ms);
  settings.set_cutoff_ms(pilot.spec.cutoff_ms() ? pilot.spec.cutoff_ms() : settings_.pilot_cutoff_ms);
  settings.set_time_ms(pilot.spec.time_ms());
  const auto resource = state_.resources.find(pilot.spec.resource());
  settings.set_debug(pilot.spec.debug() || (resource != state_.resources.end() && resource->second.spec.debug()));
  return settings;
}

void Core::restored(Now now, Outbox& out) {
  for (auto& [id, pilot] : state_.pilots) {
    if (pilot.state == v1::PILOT_RUNNING || pilot.state == v1::PILOT_DRAINING)
      change_pilot(pilot, PilotEvent::link_lost, "the daemon was started again and waits for it", now, out);
    pilot.unreachable_since_boot_ms = now.boot_ms;
    for (auto& [index, node] : pilot.nodes) {
      node.linked = false;
      node.watched = false;
      node.unlinked_boot_ms = now.boot_ms;
    }
    if (!ended(pilot.state)) {
      const auto resource = state_.resources.find(pilot.spec.resource());
      if (resource == state_.resources.end()) continue;
      if (!resource->second.local()) out.wanted_hubs.insert(pilot.spec.resource());
      else if (pilot.state == v1::PILOT_SUBMITTED) launch(pilot, now, out);
      else if (pilot.state == v1::PILOT_STARTING) pilot.unwatched_start_boot_ms = now.boot_ms;
    }
  }
  // A worker lives for its client. Those that waited, and those whose channel ended in the daemon that died, have none any more;
  // a local worker whose socket was handed over has.
  std::vector<JobId> orphans;
  for (const auto& [id, job] : state_.jobs) {
    if (!job.worker() || ended(job.state)) continue;
    const auto pilot = state_.pilots.find(job.node.pilot);
    const auto resource = pilot == state_.pilots.end() ? state_.resources.end() : state_.resources.find(pilot->second.spec.resource());
    if (!job.connected || resource == state_.resources.end() || !resource->second.local()) orphans.push_back(id);
  }
  for (const JobId id : orphans)
    (void)cancel(id, v1::CLIENT_GONE, "the daemon was started again; its client's channel ended with the old one", now, out);
  dirty_ = true;
}

void Core::await_clients(Now now) {
  awaited_since_boot_ms_ = now.boot_ms;
  for (const auto& [id, job] : state_.jobs)
    if (!ended(job.state) && job.spec->cancel_with_client() && !job.released) awaited_.insert(id);
}

void Core::release_job(JobId id, Now now, Outbox& out) {
  awaited_.erase(id);
  const Job* job = find(id);
  if (!job || ended(job->state) || job->released || !job->spec->cancel_with_client()) return;
  v1::Event event;
  event.set_job_released(id.value);
  emit(std::move(event), now, out);
}

// ---- resources ---------------------------------------------------------------------------------------

Status Core::add_resource(v1::ResourceSpec spec, bool replace, Now now, Outbox& out) {
  if (auto status = check_resource(spec, state_.resources); !status) return status;
  const auto there = state_.resources.find(spec.name());
  if (there != state_.resources.end() && !replace)
    return fail(Code::already_exists, fmt::format("resource '{}' is already there", spec.name()),
                "add --replace to change it, or choose another name");
  const std::string name = spec.name();
  if (there != state_.resources.end()) {
    Resource& before = there->second;
    const bool elsewhere = moved(before.spec, spec);
    for (const auto& [id, pilot] : state_.pilots)
      if (elsewhere && !ended(pilot.state) && pilot.spec.resource() == name)
        return fail(Code::failed_precondition,
                    fmt::format("pilot {} runs on resource '{}': its location, driver and scratch_dir cannot change", id.value, name),
                    fmt::format("stop it first: flotilla pilot stop {}", id.value));
    if (elsewhere && !before.local()) {
      out.left_hubs.insert(name);
      const auto created_ms = before.created_ms;
      before = Resource{};  // of a hub there nothing is known yet
      before.created_ms = created_ms;
    } else if (!before.local() && goes_other_way(before.spec, spec)) {
      out.other_ways.insert(name);
    }
  }
  v1::Event event;
  *event.mutable_resource_added() = std::move(spec);
  emit(std::move(event), now, out);
  out.changed_resources.insert(name);
  return {};
}

Result<std::vector<LeftBehind>> Core::remove_resource(const std::string& name, bool force, Now now, Outbox& out) {
  const auto resource = state_.resources.find(name);
  if (resource == state_.resources.end())
    return fail(Code::not_found, fmt::format("there is no resource '{}'", name), "flotilla resource list shows them");
  if (name == "local") return fail(Code::failed_precondition, "resource 'local' is this machine and stays");
  for (const auto& [other, r] : state_.resources)
    if (r.spec.gateway() == name)
      return fail(Code::failed_precondition, fmt::format("resource '{}' is reached through '{}'", other, name),
                  fmt::format("remove or change '{}' first", other));
  std::vector<LeftBehind> left;
  const bool reached = resource->second.local() || resource->second.hub_state == v1::HUB_CONNECTED;
  for (auto& [id, pilot] : state_.pilots) {
    if (ended(pilot.state) || pilot.spec.resource() != name) continue;
    if (!force)
      return fail(Code::failed_precondition, fmt::format("pilot {} is {} on resource '{}'", id.value, word(pilot.state), name),
                  fmt::format("stop it first (flotilla pilot stop {}), or use --force", id.value));
    if (!reached && pilot.state != v1::PILOT_SUBMITTED) {
      const std::int64_t alone = pilot.unreachable_since_boot_ms ? now.boot_ms - pilot.unreachable_since_boot_ms : 0;
      left.push_back({id, now.wall_ms + settings_of(pilot).cutoff_ms() - alone});
    }
    (void)stop_pilot(id, false, "its resource was removed", now, out);
    for (auto& [index, node] : pilot.nodes) {
      lose_attempts(NodeId{id, index}, node, Prefilled::lost, v1::PILOT_LOST, fmt::format("resource '{}' was removed", name), now, out);
      node.gone = true;
      node.linked = false;
    }
    for (const auto event : {PilotEvent::canceled, PilotEvent::stopped, PilotEvent::ended})
      change_pilot(pilot, event, "its resource was removed", now, out);
  }
  v1::Event event;
  if (!resource->second.local()) out.left_hubs.insert(name);
  event.set_resource_removed(name);
  emit(std::move(event), now, out);
  out.changed_resources.insert(name);
  return left;
}

// ---- pilots ------------------------------------------------------------------------------------------

Result<PilotId> Core::start_pilot(v1::PilotSpec spec, Now now, Outbox& out) {
  if (auto status = check_pilot(spec, state_); !status) return fail(status.error());
  const PilotId id{state_.last_pilot + 1};
  v1::Event event;
  event.mutable_pilot_submitted()->set_pilot(id.value);
  *event.mutable_pilot_submitted()->mutable_spec() = std::move(spec);
  event.mutable_pilot_submitted()->set_secret(to_hex(new_secret_()));  // a text: it travels as JSON
  emit(std::move(event), now, out);
  out.changed_pilots.insert(id);
  Pilot& pilot = state_.pilots.at(id);
  const Resource& resource = state_.resources.at(pilot.spec.resource());
  if (resource.local() || resource.hub_state == v1::HUB_CONNECTED) {
    launch(pilot, now, out);
  } else {
    pilot.message = "waits for the hub of " + pilot.spec.resource();
    out.wanted_hubs.insert(pilot.spec.resource());
  }
  return id;
}

void Core::launch(Pilot& pilot, Now now, Outbox& out) {
  change_pilot(pilot, PilotEvent::launch, "", now, out);
  out.launches.push_back(pilot.id);
}

Status Core::stop_pilot(PilotId id, bool drain, const std::string& why_stopped, Now now, Outbox& out) {
  const auto it = state_.pilots.find(id);
  if (it == state_.pilots.end())
    return fail(Code::not_found, fmt::format("there is no pilot {}", id.value), "flotilla pilot list shows them");
  Pilot& pilot = it->second;
  if (ended(pilot.state)) return {};
  v1::Event told;
  told.mutable_pilot_told()->set_pilot(id.value);
  told.mutable_pilot_told()->set_stop(!drain);
  told.mutable_pilot_told()->set_drain(drain);
  told.mutable_pilot_told()->set_reason(why_stopped);
  emit(std::move(told), now, out);
  out.changed_pilots.insert(id);
  if (pilot.state == v1::PILOT_SUBMITTED) {
    change_pilot(pilot, PilotEvent::canceled, why_stopped, now, out);
    return {};
  }
  if (pilot.state == v1::PILOT_STARTING) {
    out.stop_launches.push_back(id);
    change_pilot(pilot, PilotEvent::stopped, why_stopped, now, out);
    return {};
  }
  for (const auto& [index, node] : pilot.nodes) {
    if (!node.linked) continue;
    v1::Frame frame;
    if (drain) frame.mutable_drain_pilot();
    else frame.mutable_end_pilot()->set_reason(why_stopped);
    out.frames.push_back({NodeId{id, index}, std::move(frame)});
  }
  if (drain) change_pilot(pilot, PilotEvent::drain, "drains: " + why_stopped, now, out);
  dirty_ = true;
  return {};
}

void Core::forget_pilot(PilotId id, Now now, Outbox& out) {
  const auto it = state_.pilots.find(id);
  if (it == state_.pilots.end() || !ended(it->second.state) || it->second.running_ms) return;
  v1::Event event;
  event.set_pilot_forgotten(id.value);
  emit(std::move(event), now, out);
  out.changed_pilots.insert(id);
}

void Core::on_launch_report(v1::LaunchReport report, Now now, Outbox& out) {
  make_utf8(report);
  const auto it = state_.pilots.find(PilotId{report.pilot()});
  if (it == state_.pilots.end() || ended(it->second.state)) return;
  Pilot& pilot = it->second;
  Node& node = pilot.nodes[report.node()];
  if (node.linked) return;  // it is there, whatever its launcher says
  node.record.set_index(report.node());
  if (!report.host().empty()) node.record.set_host(report.host());
  out.changed_pilots.insert(pilot.id);
  switch (report.stage()) {
    case v1::LaunchReport::STARTING:
    case v1::LaunchReport::STARTED:
      node.record.set_message(report.message());
      if (node.gone) note_node(pilot.id, node, false, now, out);
      if (pilot.state == v1::PILOT_STARTING) pilot.message = report.message();
      return;
    case v1::LaunchReport::FAILED:
    case v1::LaunchReport::ENDED: {
      std::string message = report.message();
      if (message.empty()) message = fmt::format("exit code {} on {}", report.exit_code(), report.host());
      std::string tail = report.stderr_tail();
      while (tail.ends_with('\n')) tail.pop_back();
      if (!message.ends_with(tail)) message += ": " + tail;  // its last line may be the cause
      node.record.set_message(message);
      note_node(pilot.id, node, true, now, out);
      settle_pilot(pilot, now, out);
      return;
    }
    default: return;
  }
}

void Core::note_node(PilotId pilot, const Node& node, bool gone, Now now, Outbox& out) {
  v1::Event event;
  auto* changed = event.mutable_node_changed();
  changed->set_pilot(pilot.value);
  *changed->mutable_node() = node.record;
  changed->set_incarnation(node.incarnation);
  changed->set_beside_hub(node.beside_hub);
  changed->set_runtime_dir(node.runtime_dir);
  changed->set_gone(gone);
  emit(std::move(event), now, out);
}

// Ends a pilot none of whose nodes is left.
void Core::settle_pilot(Pilot& pilot, Now now, Outbox& out) {
  if (ended(pilot.state) || pilot.nodes.empty()) return;
  std::size_t gone = 0;
  std::string failure, ending_reason;
  for (const auto& [index, node] : pilot.nodes) {
    if (!node.gone) return;
    ++gone;
    if (!node.ending.empty() && !node.ending_failed) ending_reason = node.ending;
    else failure += (failure.empty() ? "" : "; ") + (node.record.message().empty() ? node.ending : node.record.message());
  }
  if (pilot.state == v1::PILOT_STARTING && gone < pilot.node_count()) return;  // the others may still come
  if (pilot.state == v1::PILOT_SUBMITTED || pilot.state == v1::PILOT_STARTING) {
    change_pilot(pilot, PilotEvent::launch_failed, failure.empty() ? ending_reason : failure, now, out);
    return;
  }
  if (!ending_reason.empty() || pilot.stop_wanted)
    change_pilot(pilot, PilotEvent::ended, ending_reason.empty() ? pilot.stop_reason : ending_reason, now, out);
  else change_pilot(pilot, PilotEvent::died, failure, now, out);
}

// ---- hubs ---------------------------------------------------------------------------------------------

void Core::on_hub_state(const std::string& name, v1::HubState hub_state, const std::string& said, double fraction, Now now, Outbox& out) {
  const std::string message = to_utf8(said);
  const auto it = state_.resources.find(name);
  if (it == state_.resources.end()) return;
  Resource& resource = it->second;
  if (resource.hub_state != hub_state) resource.hub_since_ms = now.wall_ms;
  resource.hub_state = hub_state;
  resource.hub_message = message;
  resource.upload_fraction = fraction;
  out.changed_resources.insert(name);
  for (auto& [id, pilot] : state_.pilots)
    if (pilot.state == v1::PILOT_SUBMITTED && pilot.spec.resource() == name) {
      pilot.message = message;
      out.changed_pilots.insert(id);
    }
}

void Core::on_hub_connected(const std::string& name, const v1::Hello& hello, Now now, Outbox& out) {
  const auto it = state_.resources.find(name);
  if (it == state_.resources.end()) return;
  Resource& resource = it->second;
  resource.hub_host = hello.host();
  resource.hub_build = hello.build();
  resource.hub_pid = hello.pid();
  on_hub_state(name, v1::HUB_CONNECTED, "", -1, now, out);
  std::set<std::uint64_t> launched(hello.hub().launches().begin(), hello.hub().launches().end());
  for (auto& [id, pilot] : state_.pilots) {
    if (pilot.spec.resource() != name || ended(pilot.state)) continue;
    for (auto& [index, node] : pilot.nodes)
      if (!node.linked) node.unlinked_boot_ms = now.boot_ms;
    if (pilot.state == v1::PILOT_SUBMITTED || (pilot.state == v1::PILOT_STARTING && !launched.contains(id.value))) {
      if (pilot.state == v1::PILOT_STARTING) out.launches.push_back(id);
      else launch(pilot, now, out);
    }
  }
  // A start that was given up while the hub could not be told.
  for (const std::uint64_t id : launched)
    if (const auto pilot = state_.pilots.find(PilotId{id});
        pilot != state_.pilots.end() && pilot->second.spec.resource() == name && ended(pilot->second.state))
      out.stop_launches.push_back(pilot->first);
  dirty_ = true;
}

void Core::on_round_trip(const std::string& name, std::int64_t microseconds, Outbox& out) {
  const auto it = state_.resources.find(name);
  if (it == state_.resources.end() || microseconds <= 0) return;
  it->second.round_trip_us = microseconds;
  out.changed_resources.insert(name);
}

void Core::on_hub_lost(const std::string& name, const std::string& cause, bool needs_user, Now now, Outbox& out) {
  const auto it = state_.resources.find(name);
  if (it == state_.resources.end()) return;
  it->second.round_trip_us = 0;
  on_hub_state(name, needs_user ? v1::HUB_FAILED : v1::HUB_UNREACHABLE, cause, -1, now, out);
  for (auto& [id, pilot] : state_.pilots) {
    if (pilot.spec.resource() != name || ended(pilot.state)) continue;
    bool any = false;
    for (auto& [index, node] : pilot.nodes) {
      any |= node.linked;
      node.linked = false;
      node.watched = false;
      forget_retractions(node);
      for (const JobId job : node.attempts) out.changed_jobs.insert(job);
    }
    if (any) change_pilot(pilot, PilotEvent::link_lost, "the link to its hub is cut: " + cause, now, out);
    if (pilot.state == v1::PILOT_STARTING) {
      pilot.message = "the link to its hub is cut: " + cause;
      out.changed_pilots.insert(id);
    }
    // Nobody knows when the user will look: who waits for it is told. A start under way is called off when the hub is back.
    if (needs_user && (pilot.state == v1::PILOT_SUBMITTED || pilot.state == v1::PILOT_STARTING))
      change_pilot(pilot, PilotEvent::launch_failed, cause, now, out);
  }
}

// ---- nodes --------------------------------------------------------------------------------------------

v1::Welcome Core::on_node_joined(const v1::PilotHello& hello, bool trusted, Now now, Outbox& out) {
  v1::Welcome welcome;
  const NodeId id{PilotId{hello.pilot()}, hello.node()};
  const auto it = state_.pilots.find(id.pilot);
  if (it == state_.pilots.end()) {
    welcome.set_error(fmt::format("pilot {} is not known here", hello.pilot()));
    return welcome;
  }
  Pilot& pilot = it->second;
  if (ended(pilot.state)) {
    welcome.set_error(fmt::format("pilot {} has ended: {}", hello.pilot(), pilot.message));
    return welcome;
  }
  if (!trusted && (pilot.secret.empty() || hello.secret() != pilot.secret)) {
    welcome.set_error(fmt::format("pilot {}: the join secret does not fit", hello.pilot()));
    return welcome;
  }
  Node& node = pilot.nodes[hello.node()];
  const bool same = node.incarnation == hello.incarnation();
  if (!same || node.gone || node.record.host() != hello.host() || node.record.slots() != hello.slots()) {
    v1::Event event;
    auto* changed = event.mutable_node_changed();
    changed->set_pilot(hello.pilot());
    changed->set_incarnation(hello.incarnation());
    changed->set_beside_hub(hello.beside_hub());
    changed->set_boot_id(hello.boot_id());
    changed->set_runtime_dir(hello.runtime_dir());
    auto* record = changed->mutable_node();
    record->set_index(hello.node());
    record->set_host(hello.host());
    record->set_slots(hello.slots());
    record->set_pid(hello.pid());
    record->set_processors(hello.processors());
    record->set_memory_bytes(hello.memory_bytes());
    emit(std::move(event), now, out);
  }
  node.linked = true;
  node.watched = true;
  node.maybe_alive = false;
  node.ends_boot_ms = hello.ends_in_ms() ? now.boot_ms + hello.ends_in_ms() : 0;
  node.ending.clear();
  node.record.clear_message();
  if (pilot.state == v1::PILOT_SUBMITTED) change_pilot(pilot, PilotEvent::launch, "", now, out);
  change_pilot(pilot, PilotEvent::node_joined, "", now, out);
  out.changed_pilots.insert(id.pilot);
  reconcile(id, node, hello, now, out);
  if (pilot.stop_wanted) {
    v1::Frame frame;
    frame.mutable_end_pilot()->set_reason(pilot.stop_reason);
    out.frames.push_back({id, std::move(frame)});
  } else if (pilot.drain_wanted || hello.draining()) {
    v1::Frame frame;
    frame.mutable_drain_pilot();
    out.frames.push_back({id, std::move(frame)});
    change_pilot(pilot, PilotEvent::drain, "drains", now, out);
  }
  *welcome.mutable_pilot() = settings_of(pilot);
  welcome.set_debug(welcome.pilot().debug());
  dirty_ = true;
  return welcome;
}

// What was asked back over a link that is gone is decided anew.
void Core::forget_retractions(Node& node) {
  for (const JobId id : node.prefilled) {
    state_.retracting.erase(id);
    find(id)->retract_to = {};
  }
}

// PROTOCOL.md 2.1: acts on the difference between what the node holds and what stands here.
void Core::reconcile(NodeId id, Node& node, const v1::PilotHello& hello, Now now, Outbox& out) {
  std::set<JobId> held;
  forget_retractions(node);
  // Ends first: they make room for what runs since then.
  std::vector<const v1::AttemptReport*> reports;
  for (const auto& report : hello.inventory()) reports.push_back(&report);
  std::stable_partition(reports.begin(), reports.end(), [](const auto* report) { return ended(report->state()); });
  for (const auto* each : reports) {
    const auto& report = *each;
    Job* job = find(JobId{report.id().job()});
    const bool current = job && job->attempt == report.id().attempt() && job->node == id && placed(job->state);
    if (ended(report.state())) {
      v1::AttemptEnded end;
      *end.mutable_id() = report.id();
      *end.mutable_exit() = report.exit();
      end.set_stdout_bytes(report.stdout_bytes());
      end.set_stderr_bytes(report.stderr_bytes());
      if (current) held.insert(job->id);
      on_attempt_ended(id, end, now, out);
      continue;
    }
    if (!current) {
      v1::Frame frame;
      *frame.mutable_cancel_attempt()->mutable_id() = report.id();
      frame.mutable_cancel_attempt()->set_kind(v1::CANCELED_BY_USER);
      frame.mutable_cancel_attempt()->set_message("it is no longer wanted");
      out.frames.push_back({id, std::move(frame)});
      continue;
    }
    held.insert(job->id);
    if (report.state() == v1::JOB_RUNNING) {
      v1::AttemptRunning running;
      *running.mutable_id() = report.id();
      running.set_pid(report.pid());
      running.set_folder(report.folder());
      running.set_host(hello.host());
      on_attempt_running(id, running, now, out);
      if (report.connected()) {
        v1::WorkerConnected connected;
        *connected.mutable_id() = report.id();
        connected.set_hand_over_socket(report.hand_over_socket());
        on_worker_connected(id, connected, now, out);
      }
    }
    if (job->canceling != v1::EXIT_NONE) send_cancel(*job, out);
    out.changed_jobs.insert(job->id);
  }
  std::vector<JobId> attempts;  // as they were sent: the pilot starts them in that order
  for (const JobId job_id : node.attempts)
    if (!find(job_id)->prefilled) attempts.push_back(job_id);
  attempts.insert(attempts.end(), node.prefilled.begin(), node.prefilled.end());
  for (const JobId job_id : attempts) {
    if (held.contains(job_id)) continue;
    Job* job = find(job_id);
    if (!job) continue;
    if (job->canceling != v1::EXIT_NONE) {
      end_job(*job, JobEvent::ended_canceled, reason(job->canceling, job->canceling_message), 0, 0, now, out);
    } else if (job->state == v1::JOB_DISPATCHED) {
      send_start(*job, out);  // the order was lost on the way; idempotent
    } else {
      auto exit =
          reason(v1::PILOT_LOST, fmt::format("pilot {} on {} was started again and no longer has the job", id.pilot.value, hello.host()));
      exit.set_host(hello.host());
      end_job(*job, JobEvent::pilot_lost, std::move(exit), job->stdout_bytes, job->stderr_bytes, now, out);
    }
  }
}

void Core::on_node_unlinked(NodeId id, const std::string& cause, Now now, Outbox& out) {
  Node* node = state_.node(id);
  if (!node || !node->linked) return;
  node->linked = false;
  node->unlinked_boot_ms = now.boot_ms;
  forget_retractions(*node);
  Pilot& pilot = state_.pilots.at(id.pilot);
  out.changed_pilots.insert(id.pilot);
  for (const JobId job : node->attempts) out.changed_jobs.insert(job);
  const bool any_linked = std::any_of(pilot.nodes.begin(), pilot.nodes.end(), [](const auto& n) { return n.second.linked; });
  if (!any_linked) change_pilot(pilot, PilotEvent::link_lost, cause, now, out);
}

void Core::on_node_left(NodeId id, const std::string& cause, Now now, Outbox& out, bool process_dead) {
  Node* node = state_.node(id);
  if (!node || node->gone) return;
  Pilot& pilot = state_.pilots.at(id.pilot);
  node->maybe_alive = !process_dead && node->ending.empty();
  const bool heard = node->watched && (node->linked || now.boot_ms - node->unlinked_boot_ms <= settings_.unheard_limit_ms);
  const auto prefilled = process_dead && heard ? Prefilled::queued_again : Prefilled::lost;
  node->linked = false;
  const bool as_told = !node->ending.empty() && !node->ending_failed;
  const std::string host = node->record.host();
  if (!as_told) node->record.set_message(node->ending.empty() ? cause : node->ending);
  note_node(id.pilot, *node, true, now, out);
  if (as_told) {
    lose_attempts(id, *node, prefilled, v1::PILOT_ENDED, fmt::format("pilot {} on {} ended: {}", id.pilot.value, host, node->ending), now,
                  out);
  } else {
    lose_attempts(id, *node, prefilled, v1::PILOT_LOST, fmt::format("pilot {} on {} was lost: {}", id.pilot.value, host, cause), now, out);
  }
  out.changed_pilots.insert(id.pilot);
  settle_pilot(pilot, now, out);
  dirty_ = true;
}

void Core::on_pilot_ending(NodeId id, const std::string& why_ending, bool failed, Now, Outbox& out) {
  Node* node = state_.node(id);
  if (!node) return;
  node->ending = why_ending.empty() ? "it ended" : why_ending;
  node->ending_failed = failed;
  out.changed_pilots.insert(id.pilot);
}

void Core::on_node_status(NodeId from, const v1::NodeStatus& status, Now, Outbox& out) {
  if (Node* node = state_.node(from)) {
    node->record.set_load(status.load());
    out.changed_pilots.insert(from.pilot);
  }
}

// ---- jobs ---------------------------------------------------------------------------------------------

Result<std::vector<JobId>> Core::submit(std::vector<v1::JobSpec> specs, Now now, Outbox& out) {
  for (std::size_t i = 0; i < specs.size(); ++i)
    if (auto status = check_job(specs[i], state_); !status) {
      Error error = status.error();
      if (specs.size() > 1) error.message = fmt::format("job {} of {}: {}", i + 1, specs.size(), error.message);
      return fail(std::move(error));
    }
  std::vector<JobId> ids;
  for (auto& spec : specs) {
    const JobId id{state_.last_job + 1};
    v1::Event event;
    event.mutable_job_submitted()->set_job(id.value);
    *event.mutable_job_submitted()->mutable_spec() = std::move(spec);
    emit(std::move(event), now, out);
    out.changed_jobs.insert(id);
    ids.push_back(id);
  }
  dirty_ = true;
  return ids;
}

void Core::send_start(const Job& job, Outbox& out) {
  v1::Frame frame;
  auto* start = frame.mutable_start_attempt();
  *start->mutable_id() = wire(job);
  *start->mutable_spec() = *job.spec;
  if (job.worker()) {
    start->set_channel_ticket(job.ticket);
    const Pilot& pilot = state_.pilots.at(job.node.pilot);
    const auto resource = state_.resources.find(pilot.spec.resource());
    start->set_remote_channel(resource == state_.resources.end() || !resource->second.local());
  }
  if (job.spec->beside_job())
    if (const Job* host = state_.job(JobId{job.spec->beside_job()})) *start->mutable_beside() = wire(*host);
  out.frames.push_back({job.node, std::move(frame)});
}

void Core::send_cancel(const Job& job, Outbox& out) {
  v1::Frame frame;
  auto* cancel = frame.mutable_cancel_attempt();
  *cancel->mutable_id() = wire(job);
  cancel->set_kind(job.canceling);
  cancel->set_message(job.canceling_message);
  cancel->set_grace_ms(job.spec->kill_grace_ms());
  out.frames.push_back({job.node, std::move(frame)});
}

void Core::send_retract(Job& job, NodeId to, Outbox& out) {
  job.retract_to = to;
  state_.retracting.insert(job.id);
  v1::Frame frame;
  *frame.mutable_retract_attempt()->mutable_id() = wire(job);
  out.frames.push_back({job.node, std::move(frame)});
}

void Core::on_attempt_retracted(NodeId from, const v1::AttemptRetracted& report, Now now, Outbox& out) {
  Job* job = find(JobId{report.id().job()});
  if (!job || job->attempt != report.id().attempt() || job->node != from || job->state != v1::JOB_DISPATCHED) return;
  if (report.begun()) {  // what it becomes is told by itself
    state_.retracting.erase(job->id);
    job->retract_to = {};
    dirty_ = true;
  } else if (job->canceling != v1::EXIT_NONE) {
    end_job(*job, JobEvent::ended_canceled, reason(job->canceling, job->canceling_message), 0, 0, now, out);
  } else {
    requeue(*job, fmt::format("pilot {} gave it back", from.pilot.value), now, out);
  }
}

void Core::place(Now now, Outbox& out) {
  dirty_ = false;
  const Plan plan = schedule(state_, now);
  for (const auto& placement : plan.placements) {
    Job& job = *find(placement.job);
    v1::Event event;
    auto* placed = event.mutable_job_dispatched();
    placed->set_job(job.id.value);
    placed->set_attempt(job.attempt + 1);
    placed->set_pilot(placement.node.pilot.value);
    placed->set_node(placement.node.node);
    placed->set_prefilled(placement.prefilled);
    emit(std::move(event), now, out);
    if (job.worker()) job.ticket = new_secret_();
    out.changed_jobs.insert(job.id);
    out.changed_pilots.insert(placement.node.pilot);
    send_start(job, out);
  }
  for (const auto& retraction : plan.retractions) send_retract(*find(retraction.job), retraction.to, out);
  // A job beside another that has ended meanwhile can never start.
  const std::set<JobId> beside = state_.queue.beside();
  for (const JobId id : beside) {
    Job& job = *find(id);
    const Job* host = state_.job(JobId{job.spec->beside_job()});
    if (!host || ended(host->state))
      end_job(job, JobEvent::queue_timeout, reason(v1::START_FAILED, fmt::format("job {} has ended", job.spec->beside_job())), 0, 0, now,
              out);
  }
  end_tied(now, out);
}

// Neither can one that is tied to a pilot which has ended, or turned out to be too small for it.
void Core::end_tied(Now now, Outbox& out) {
  std::vector<std::pair<JobId, std::string>> stuck;
  for (const auto& [request, jobs] : state_.queue.classes()) {
    if (!request.pilot) continue;
    const auto pilot = state_.pilots.find(PilotId{request.pilot});
    const Status fits = pilot == state_.pilots.end() ? Status(fail(Code::not_found, "it is not there any more"))
                                                     : check_tie(*state_.jobs.at(*jobs.begin()).spec, pilot->second);
    if (!fits)
      for (const JobId id : jobs) stuck.emplace_back(id, fits.error().message);
  }
  for (const auto& [id, cause] : stuck)
    end_job(*find(id), JobEvent::queue_timeout,
            reason(v1::START_FAILED, fmt::format("it was to run on pilot {} alone: {}", find(id)->spec->pilot(), cause)), 0, 0, now, out);
}

Status Core::cancel(JobId id, v1::ExitKind kind, const std::string& message, Now now, Outbox& out) {
  Job* job = find(id);
  if (!job) return fail(Code::not_found, fmt::format("there is no job {}", id.value), "flotilla job list shows them");
  if (ended(job->state)) return {};
  if (job->state == v1::JOB_QUEUED) {
    end_job(*job, JobEvent::cancel, reason(kind, message), 0, 0, now, out);
    return {};
  }
  if (job->canceling != v1::EXIT_NONE) {
    send_cancel(*job, out);
    return {};
  }
  v1::Event event;
  event.mutable_job_canceling()->set_job(id.value);
  event.mutable_job_canceling()->set_kind(kind);
  event.mutable_job_canceling()->set_message(message);
  emit(std::move(event), now, out);
  out.changed_jobs.insert(id);
  const Node* node = state_.node(job->node);
  if (node && node->linked) send_cancel(*job, out);  // else when it registers again
  return {};
}

Status Core::signal(JobId id, int signal, Now, Outbox& out) {
  Job* job = find(id);
  if (!job) return fail(Code::not_found, fmt::format("there is no job {}", id.value), "flotilla job list shows them");
  if (!placed(job->state) || job->prefilled)
    return fail(Code::failed_precondition, fmt::format("job {} is {}, not running", id.value, word(job->state)));
  const Node* node = state_.node(job->node);
  if (!node || !node->linked)
    return fail(Code::unavailable, fmt::format("job {} runs on a pilot whose link is cut", id.value), "try again when it is back",
                Retry::yes);
  v1::Frame frame;
  *frame.mutable_signal_attempt()->mutable_id() = wire(*job);
  frame.mutable_signal_attempt()->set_signal(signal);
  out.frames.push_back({job->node, std::move(frame)});
  return {};
}

void Core::on_attempt_running(NodeId from, const v1::AttemptRunning& report, Now now, Outbox& out) {
  Job* job = find(JobId{report.id().job()});
  if (!job || job->attempt != report.id().attempt() || job->node != from || !placed(job->state)) return;
  if (job->state == v1::JOB_RUNNING && job->pid == report.pid()) return;
  v1::Event event;
  auto* running = event.mutable_job_running();
  running->set_job(job->id.value);
  running->set_attempt(job->attempt);
  running->set_pid(report.pid());
  running->set_folder(report.folder());
  running->set_host(report.host());
  emit(std::move(event), now, out);
  out.changed_jobs.insert(job->id);
  if (!state_.queue.beside().empty()) dirty_ = true;
}

void Core::on_worker_connected(NodeId from, const v1::WorkerConnected& report, Now now, Outbox& out) {
  Job* job = find(JobId{report.id().job()});
  if (!job || job->attempt != report.id().attempt() || job->node != from || !placed(job->state)) return;
  if (!job->connected) {
    v1::Event event;
    auto* running = event.mutable_job_running();
    running->set_job(job->id.value);
    running->set_attempt(job->attempt);
    running->set_pid(job->pid);
    running->set_folder(job->folder);
    running->set_host(job->host);
    running->set_connected(true);
    running->set_hand_over_socket(report.hand_over_socket());
    emit(std::move(event), now, out);
    out.changed_jobs.insert(job->id);
  }
  out.connected_workers.push_back(job->id);
}

void Core::on_attempt_ended(NodeId from, const v1::AttemptEnded& report, Now now, Outbox& out) {
  Job* job = find(JobId{report.id().job()});
  if (!job || job->attempt != report.id().attempt() || job->node != from || !placed(job->state)) {
    // Not current: the pilot need not keep it. (An end that stands here already is forgotten when its output is in.)
    if (job && job->attempt == report.id().attempt() && job->node == from && ended(job->state)) {
      out.ended_jobs.push_back(job->id);
      return;
    }
    v1::Frame frame;
    *frame.mutable_forget_attempt()->mutable_id() = report.id();
    out.frames.push_back({from, std::move(frame)});
    return;
  }
  v1::ExitReason exit = report.exit();
  if (const Node* node = state_.node(from); node && exit.host().empty()) exit.set_host(node->record.host());
  end_job(*job, ending(exit), exit, report.stdout_bytes(), report.stderr_bytes(), now, out);
}

void Core::set_channel_stats(JobId id, const v1::ChannelStats& stats) {
  if (Job* job = find(id)) job->channel = stats;
}

// ---- time -----------------------------------------------------------------------------------------------

bool Core::needs_ticks() const {
  if (!state_.queue.timed().empty() || !state_.prefilled.timed().empty() || !awaited_.empty()) return true;
  for (const auto& [id, pilot] : state_.pilots) {
    if (ended(pilot.state)) continue;
    if (pilot.state == v1::PILOT_UNREACHABLE || (pilot.state == v1::PILOT_STARTING && pilot.unwatched_start_boot_ms)) return true;
    for (const auto& [index, node] : pilot.nodes)
      if (!node.linked && !node.gone && !node.incarnation.empty()) return true;
  }
  return false;
}

std::map<std::string, std::int64_t> Core::rejoin_graces() const {
  std::map<std::string, std::int64_t> graces;
  for (const auto& [id, pilot] : state_.pilots) {
    if (ended(pilot.state)) continue;
    auto& grace = graces.try_emplace(pilot.spec.resource(), settings_.rejoin_grace_ms).first->second;
    for (const auto& [index, node] : pilot.nodes) grace += node.gone ? 0 : settings_.rejoin_each_ms;
  }
  return graces;
}

void Core::on_tick(Now now, Outbox& out) {
  if (!awaited_.empty() && now.boot_ms - awaited_since_boot_ms_ >= settings_.client_grace_ms)
    for (const JobId id : std::exchange(awaited_, {}))
      (void)cancel(id, v1::CANCELED_BY_USER, "its client did not come back after the daemon was killed", now, out);
  const std::set<JobId> queued = state_.queue.timed();
  for (const JobId id : queued) end_wait_at_limit(*find(id), now, out);
  const std::set<JobId> prefilled = state_.prefilled.timed();
  for (const JobId id : prefilled) {
    Job& job = *find(id);
    const Node* node = state_.node(job.node);
    // Whether it has begun, its pilot alone knows; when it gives it back, requeue() ends it.
    if (now.wall_ms - job.queued_ms >= job.spec->queue_timeout_ms() && node && node->linked && !state_.retracting.contains(id))
      send_retract(job, {}, out);
  }
  const auto graces = rejoin_graces();
  for (auto& [id, pilot] : state_.pilots) {
    if (ended(pilot.state)) continue;
    const std::int64_t grace = graces.at(pilot.spec.resource());
    if (pilot.state == v1::PILOT_STARTING && pilot.unwatched_start_boot_ms &&
        now.boot_ms - pilot.unwatched_start_boot_ms >= settings_.rejoin_grace_ms) {
      change_pilot(pilot, PilotEvent::launch_failed, "the daemon was started again while it started, and it did not register", now, out);
      continue;
    }
    const auto resource = state_.resources.find(pilot.spec.resource());
    const bool upper_there =
        resource != state_.resources.end() && !resource->second.local() && resource->second.hub_state == v1::HUB_CONNECTED;
    const std::int64_t lease = settings_of(pilot).cutoff_ms() + settings_.lease_margin_ms;
    for (auto& [index, node] : pilot.nodes) {
      if (node.linked || node.gone || node.incarnation.empty()) continue;
      if (upper_there && now.boot_ms - node.unlinked_boot_ms >= grace) {
        on_node_left(NodeId{id, index}, fmt::format("it did not register again within {} s with its hub, which is there", grace / 1000),
                     now, out, false);
      } else if (pilot.state == v1::PILOT_UNREACHABLE && now.boot_ms - pilot.unreachable_since_boot_ms >= lease) {
        lose_attempts(NodeId{id, index}, node, Prefilled::lost, v1::PILOT_LOST,
                      fmt::format("pilot {} was out of reach for longer than its cut-off", id.value), now, out);
        node.gone = true;
      }
    }
    if (pilot.state == v1::PILOT_UNREACHABLE && now.boot_ms - pilot.unreachable_since_boot_ms >= lease)
      change_pilot(pilot, PilotEvent::lease_over, "out of reach for longer than its cut-off: it has ended itself", now, out);
  }
}

}  // namespace flotilla::daemon
