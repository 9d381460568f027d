// What the daemon knows. The journalled part is the replay of events (replay.cpp); what is marked "not journalled"
// is learnt again from hubs and pilots after a restart.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/core/life_cycle.hpp"
#include "flotilla/v1/event.pb.h"
#include "flotilla/v1/types.pb.h"
#include "proto/base/ids.hpp"

namespace flotilla::daemon {

struct Now {
  std::int64_t wall_ms = 0;  // for people and the journal
  std::int64_t boot_ms = 0;  // for durations; also counts while the machine sleeps
};

struct Resource {
  v1::ResourceSpec spec;
  std::int64_t created_ms = 0;
  // not journalled
  v1::HubState hub_state = v1::HUB_NONE;
  std::string hub_message;
  std::string hub_host, hub_build;
  std::uint32_t hub_pid = 0;
  std::int64_t hub_since_ms = 0;
  double upload_fraction = -1;
  std::int64_t round_trip_us = 0;  // over the link, as measured last; 0 = not yet

  bool local() const { return spec.driver() == "local"; }
};

struct Node {
  v1::PilotNode record;     // slots_used is derived
  std::string incarnation;  // "" = never joined
  std::string runtime_dir;
  bool beside_hub = false;
  bool gone = false;  // ended, died or failed to start: it will not come back as this incarnation
  // not journalled
  bool linked = false;                // joined over a link that lives
  std::int64_t ends_boot_ms = 0;      // when its time is up, 0 = never; known while it is linked
  std::int64_t unlinked_boot_ms = 0;  // since when it is not, while its hub (or the daemon, locally) is there
  bool maybe_alive = false;           // gone, but nobody saw its process end
  std::string ending;                 // what it said before it ended
  bool ending_failed = false;
  std::set<JobId> attempts;      // placed here
  std::uint32_t slots_used = 0;  // by those of them that are not prefilled
  std::deque<JobId> prefilled;   // those that wait here for a slot, in the order in which the pilot will start them
  bool watched = false;          // linked without a break since it joined, or it was until `unlinked_boot_ms`

  std::uint32_t slots_free() const { return record.slots() > slots_used ? record.slots() - slots_used : 0; }
};

struct Pilot {
  PilotId id;
  v1::PilotSpec spec;
  v1::PilotState state = v1::PILOT_SUBMITTED;
  std::string message;
  std::string secret;
  std::map<std::uint32_t, Node> nodes;
  std::int64_t submitted_ms = 0, starting_ms = 0, running_ms = 0, ended_ms = 0;
  std::uint64_t jobs_done = 0;
  bool stop_wanted = false, drain_wanted = false;
  std::string stop_reason;
  // not journalled
  std::int64_t unreachable_since_boot_ms = 0;
  std::int64_t unwatched_start_boot_ms = 0;  // a local start whose daemon died: nobody will report on it

  std::uint32_t node_count() const { return spec.node_count() ? spec.node_count() : 1; }
};

std::uint32_t slots_of(const v1::JobSpec& spec);

struct Job {
  JobId id;
  std::shared_ptr<const v1::JobSpec> spec;
  v1::JobState state = v1::JOB_SUBMITTED;
  std::uint32_t attempt = 0;
  NodeId node;
  std::string host, folder, hand_over_socket;
  std::uint32_t pid = 0;
  bool connected = false;
  v1::ExitReason exit;
  std::int64_t submitted_ms = 0, queued_ms = 0, dispatched_ms = 0, running_ms = 0, ended_ms = 0;
  std::uint64_t stdout_bytes = 0, stderr_bytes = 0;
  v1::ExitKind canceling = v1::EXIT_NONE;  // a cancel that the pilot has to carry out
  std::string canceling_message;
  bool released = false;   // its client let go of it: it does not end with its client any more
  bool prefilled = false;  // dispatched to a node that has no room for it yet
  // not journalled
  NodeId retract_to;   // it was asked back, for this node
  std::string ticket;  // a worker's channel
  v1::ChannelStats channel;

  std::uint32_t slots() const { return slots_of(*spec); }
  bool worker() const { return spec->has_worker(); }
};

// Jobs of the same class fit, or do not fit, alike: a scheduling round costs classes, not jobs.
struct RequestClass {
  std::uint32_t slots = 0;
  std::string label;
  std::uint64_t pilot = 0;
  bool may_prefill = false;
  std::int64_t time_limit_ms = 0;
  auto operator<=>(const RequestClass&) const = default;
};
RequestClass class_of(const Job& job);

// Waiting jobs, in order of submission within each class.
class JobQueue {
 public:
  using Classes = std::map<RequestClass, std::set<JobId>>;
  void insert(const Job& job);
  void erase(const Job& job);
  bool contains(const Job& job) const;
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const Classes& classes() const { return classes_; }        // without those in beside()
  const std::set<JobId>& beside() const { return beside_; }  // wait for another job to run
  const std::set<JobId>& timed() const { return timed_; }    // have a queue time-out
  bool operator==(const JobQueue&) const = default;

 private:
  Classes classes_;
  std::set<JobId> beside_, timed_;
  std::size_t size_ = 0;
};

struct State {
  std::map<std::string, Resource> resources;
  std::map<PilotId, Pilot> pilots;
  std::map<JobId, Job> jobs;
  JobQueue queue;              // state `queued`
  JobQueue prefilled;          // dispatched, and waiting at their node
  std::set<JobId> retracting;  // of these, those that were asked back; not journalled
  std::uint64_t last_pilot = 0, last_job = 0;

  Node* node(NodeId id);
  const Node* node(NodeId id) const;
  const Job* job(JobId id) const;
};

// Applies one event; the only way in which the journalled part changes. Events that do not fit (a defect, or a journal that
// was tampered with) are refused: false.
bool apply(State& state, const v1::Event& event);

// What users see.
v1::Resource describe(const Resource& resource);
v1::Pilot describe(const State& state, const Pilot& pilot);
v1::Job describe(const State& state, const Job& job);

// Does the job's label admit this pilot?
bool admits(const v1::JobSpec& job, const Pilot& pilot);

}  // namespace flotilla::daemon
