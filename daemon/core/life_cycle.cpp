#include "daemon/core/life_cycle.hpp"

namespace flotilla::daemon {
namespace {
template <class Table, class State, class Event>
std::optional<State> look_up(const Table& table, State from, Event event) {
  for (const auto& transition : table)
    if (transition.from == from && transition.event == event) return transition.to;
  return std::nullopt;
}
}  // namespace

std::optional<v1::JobState> next(v1::JobState from, JobEvent event) { return look_up(job_transitions, from, event); }
std::optional<v1::PilotState> next(v1::PilotState from, PilotEvent event) { return look_up(pilot_transitions, from, event); }

const char* word(v1::JobState state) {
  switch (state) {
    case v1::JOB_SUBMITTED: return "submitted";
    case v1::JOB_QUEUED: return "queued";
    case v1::JOB_DISPATCHED: return "dispatched";
    case v1::JOB_RUNNING: return "running";
    case v1::JOB_FINISHED: return "finished";
    case v1::JOB_FAILED: return "failed";
    case v1::JOB_CANCELED: return "canceled";
    default: return "unknown";
  }
}
const char* word(v1::PilotState state) {
  switch (state) {
    case v1::PILOT_SUBMITTED: return "submitted";
    case v1::PILOT_STARTING: return "starting";
    case v1::PILOT_RUNNING: return "running";
    case v1::PILOT_UNREACHABLE: return "unreachable";
    case v1::PILOT_DRAINING: return "draining";
    case v1::PILOT_FINISHED: return "finished";
    case v1::PILOT_FAILED: return "failed";
    default: return "unknown";
  }
}
const char* word(v1::HubState state) {
  switch (state) {
    case v1::HUB_NONE: return "none";
    case v1::HUB_CONNECTING: return "connecting";
    case v1::HUB_AUTHENTICATING: return "authenticating";
    case v1::HUB_UPLOADING: return "uploading";
    case v1::HUB_STARTING: return "starting";
    case v1::HUB_CONNECTED: return "connected";
    case v1::HUB_UNREACHABLE: return "unreachable";
    case v1::HUB_FAILED: return "failed";
    default: return "unknown";
  }
}
const char* word(JobEvent event) {
  switch (event) {
    case JobEvent::accepted: return "accepted";
    case JobEvent::placed: return "placed";
    case JobEvent::queue_timeout: return "queue_timeout";
    case JobEvent::cancel: return "cancel";
    case JobEvent::started: return "started";
    case JobEvent::retracted: return "retracted";
    case JobEvent::ended_ok: return "ended_ok";
    case JobEvent::ended_bad: return "ended_bad";
    case JobEvent::ended_canceled: return "ended_canceled";
    case JobEvent::pilot_lost: return "pilot_lost";
  }
  return "unknown";
}
const char* word(PilotEvent event) {
  switch (event) {
    case PilotEvent::launch: return "launch";
    case PilotEvent::canceled: return "canceled";
    case PilotEvent::node_joined: return "node_joined";
    case PilotEvent::launch_failed: return "launch_failed";
    case PilotEvent::stopped: return "stopped";
    case PilotEvent::link_lost: return "link_lost";
    case PilotEvent::drain: return "drain";
    case PilotEvent::ended: return "ended";
    case PilotEvent::died: return "died";
    case PilotEvent::lease_over: return "lease_over";
  }
  return "unknown";
}

}  // namespace flotilla::daemon
