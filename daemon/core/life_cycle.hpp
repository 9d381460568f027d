// The life cycles as tables. PROTOCOL.md has the same tables, and a test compares them.
#pragma once

#include <array>
#include <optional>
#include <cstdint>
#include <span>

#include "flotilla/v1/types.pb.h"

namespace flotilla::daemon {

enum class JobEvent {
  accepted,
  placed,
  queue_timeout,
  cancel,
  started,
  retracted,
  ended_ok,
  ended_bad,
  ended_canceled,
  pilot_lost,
};

enum class PilotEvent {
  launch,
  canceled,
  node_joined,
  launch_failed,
  stopped,
  link_lost,
  drain,
  ended,
  died,
  lease_over,
};

template <class State, class Event>
struct Transition {
  State from;
  Event event;
  State to;
};
using JobTransition = Transition<v1::JobState, JobEvent>;
using PilotTransition = Transition<v1::PilotState, PilotEvent>;

inline constexpr std::array job_transitions{
    JobTransition{v1::JOB_SUBMITTED, JobEvent::accepted, v1::JOB_QUEUED},
    JobTransition{v1::JOB_QUEUED, JobEvent::placed, v1::JOB_DISPATCHED},
    JobTransition{v1::JOB_QUEUED, JobEvent::queue_timeout, v1::JOB_FAILED},
    JobTransition{v1::JOB_QUEUED, JobEvent::cancel, v1::JOB_CANCELED},
    JobTransition{v1::JOB_DISPATCHED, JobEvent::started, v1::JOB_RUNNING},
    JobTransition{v1::JOB_DISPATCHED, JobEvent::retracted, v1::JOB_QUEUED},
    JobTransition{v1::JOB_DISPATCHED, JobEvent::ended_ok, v1::JOB_FINISHED},
    JobTransition{v1::JOB_DISPATCHED, JobEvent::ended_bad, v1::JOB_FAILED},
    JobTransition{v1::JOB_DISPATCHED, JobEvent::ended_canceled, v1::JOB_CANCELED},
    JobTransition{v1::JOB_DISPATCHED, JobEvent::pilot_lost, v1::JOB_FAILED},
    JobTransition{v1::JOB_RUNNING, JobEvent::ended_ok, v1::JOB_FINISHED},
    JobTransition{v1::JOB_RUNNING, JobEvent::ended_bad, v1::JOB_FAILED},
    JobTransition{v1::JOB_RUNNING, JobEvent::ended_canceled, v1::JOB_CANCELED},
    JobTransition{v1::JOB_RUNNING, JobEvent::pilot_lost, v1::JOB_FAILED},
};

inline constexpr std::array pilot_transitions{
    PilotTransition{v1::PILOT_SUBMITTED, PilotEvent::launch, v1::PILOT_STARTING},
    PilotTransition{v1::PILOT_SUBMITTED, PilotEvent::canceled, v1::PILOT_FINISHED},
    PilotTransition{v1::PILOT_SUBMITTED, PilotEvent::launch_failed, v1::PILOT_FAILED},
    PilotTransition{v1::PILOT_STARTING, PilotEvent::node_joined, v1::PILOT_RUNNING},
    PilotTransition{v1::PILOT_STARTING, PilotEvent::launch_failed, v1::PILOT_FAILED},
    PilotTransition{v1::PILOT_STARTING, PilotEvent::stopped, v1::PILOT_FINISHED},
    PilotTransition{v1::PILOT_RUNNING, PilotEvent::link_lost, v1::PILOT_UNREACHABLE},
    PilotTransition{v1::PILOT_RUNNING, PilotEvent::drain, v1::PILOT_DRAINING},
    PilotTransition{v1::PILOT_RUNNING, PilotEvent::ended, v1::PILOT_FINISHED},
    PilotTransition{v1::PILOT_RUNNING, PilotEvent::died, v1::PILOT_FAILED},
    PilotTransition{v1::PILOT_UNREACHABLE, PilotEvent::node_joined, v1::PILOT_RUNNING},
    PilotTransition{v1::PILOT_UNREACHABLE, PilotEvent::ended, v1::PILOT_FINISHED},
    PilotTransition{v1::PILOT_UNREACHABLE, PilotEvent::lease_over, v1::PILOT_FAILED},
    PilotTransition{v1::PILOT_UNREACHABLE, PilotEvent::died, v1::PILOT_FAILED},
    PilotTransition{v1::PILOT_DRAINING, PilotEvent::link_lost, v1::PILOT_UNREACHABLE},
    PilotTransition{v1::PILOT_DRAINING, PilotEvent::ended, v1::PILOT_FINISHED},
    PilotTransition{v1::PILOT_DRAINING, PilotEvent::died, v1::PILOT_FAILED},
};

std::optional<v1::JobState> next(v1::JobState from, JobEvent event);
std::optional<v1::PilotState> next(v1::PilotState from, PilotEvent event);

constexpr bool ended(v1::JobState state) { return state >= v1::JOB_FINISHED; }
constexpr bool ended(v1::PilotState state) { return state >= v1::PILOT_FINISHED; }
constexpr bool placed(v1::JobState state) { return state == v1::JOB_DISPATCHED || state == v1::JOB_RUNNING; }

// The words that people read: "running".
const char* word(v1::JobState state);
const char* word(v1::PilotState state);
const char* word(v1::HubState state);
const char* word(JobEvent event);
const char* word(PilotEvent event);

}  // namespace flotilla::daemon
