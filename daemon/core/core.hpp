// All decisions of the daemon, as functions of the state and of what came in. No clock, socket, thread or file in here: time and
// random secrets come in, effects go out in the Outbox. The shell journals `events` (already applied to the state), commits,
// and only then sends `frames`, carries out the rest and answers.
#pragma once

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "daemon/core/scheduler.hpp"
#include "daemon/core/state.hpp"
#include "flotilla/v1/link.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::daemon {

struct FrameTo {
  NodeId node;
  v1::Frame frame;
};

struct Outbox {
  std::vector<v1::Event> events;
  std::vector<FrameTo> frames;
  std::vector<PilotId> launches;       // to be started by their driver, the hub is there (or the resource is local)
  std::vector<PilotId> stop_launches;  // a start under way that is to be ended
  std::set<std::string> wanted_hubs;   // resources whose hub is needed
  std::set<std::string> left_hubs;     // of resources that are gone, or elsewhere now: their hubs end, before others are wanted
  std::set<std::string> other_ways;    // resources whose hub is the same and reached otherwise from now on
  std::set<std::string> changed_resources;
  std::set<PilotId> changed_pilots;
  std::set<JobId> changed_jobs;
  std::vector<JobId> ended_jobs;         // their ends are in `events`
  std::vector<JobId> connected_workers;  // may now be handed to their clients
};

struct CoreSettings {
  std::int64_t pilot_idle_ms = -1;
  std::int64_t pilot_cutoff_ms = 24ll * 3600 * 1000;
  // After a hub is there again (or, locally, the daemon): how long its pilots have to register before they are given up.
  std::int64_t rejoin_grace_ms = 15'000;
  // And each node more of the same resource: they come back through one hub, a handshake each.
  std::int64_t rejoin_each_ms = 20;
  // A pilot that is cut off ends itself after its cut-off. Its hub may notice the cut 35 s after us, its jobs have a kill grace: this
  // much later it is surely gone.
  std::int64_t lease_margin_ms = 90'000;
  // A dead pilot whose link broke no longer before than this had begun nothing that it did not report.
  std::int64_t unheard_limit_ms = 5'000;
  // After the daemon was killed: how long clients have to come back to the jobs that end with them. They take up to 20 s.
  std::int64_t client_grace_ms = 60'000;
};

// Before a local pilot that died is started again, which happened `failures` times already without one that lasted.
constexpr std::int64_t local_replacement_pause_ms(unsigned failures) {
  constexpr std::int64_t first = 10'000, longest = 600'000;
  return failures == 0 ? 0 : failures > 6 ? longest : std::min(longest, first << (failures - 1));
}

// A pilot that could not be told to end: it does so by itself, at the latest then.
struct LeftBehind {
  PilotId pilot;
  std::int64_t ends_by_ms = 0;  // wall clock
};

class Core {
 public:
  Core(CoreSettings settings, std::function<std::string()> new_secret);

  const State& state() const { return state_; }
  // At the start: one event of the journal.
  bool replay(const v1::Event& event) { return apply(state_, event); }
  // After the last one: nothing is linked, what was running is unreachable until it registers.
  void restored(Now now, Outbox& out);
  // After restored(), when the last daemon was killed: its clients may have died with it, and jobs that end with their client would go on
  // for nobody. Those that nobody comes back to are canceled.
  void await_clients(Now now);

  // ---- the user's words ------------------------------------------------------------------------
  Status add_resource(v1::ResourceSpec spec, bool replace, Now now, Outbox& out);
  // What runs behind a link that is cut is left behind.
  Result<std::vector<LeftBehind>> remove_resource(const std::string& name, bool force, Now now, Outbox& out);
  Result<PilotId> start_pilot(v1::PilotSpec spec, Now now, Outbox& out);
  Status stop_pilot(PilotId id, bool drain, const std::string& reason, Now now, Outbox& out);
  // All or none.
  Result<std::vector<JobId>> submit(std::vector<v1::JobSpec> specs, Now now, Outbox& out);
  Status cancel(JobId id, v1::ExitKind kind, const std::string& message, Now now, Outbox& out);
  Status signal(JobId id, int signal, Now now, Outbox& out);
  // One that never ran and has ended.
  void forget_pilot(PilotId id, Now now, Outbox& out);
  // Its client let go of it, or somebody else took it over: it does not end with its client.
  void release_job(JobId id, Now now, Outbox& out);
  // Its client is there again. False: it was not waited for.
  bool client_came_back(JobId id) { return awaited_.erase(id) == 1; }

  // ---- what hubs and pilots say ------------------------------------------------------------------
  void on_hub_state(const std::string& resource, v1::HubState state, const std::string& message, double fraction, Now now, Outbox& out);
  // `nodes` in the hello are reported by on_node_joined before this.
  void on_hub_connected(const std::string& resource, const v1::Hello& hello, Now now, Outbox& out);
  void on_hub_lost(const std::string& resource, const std::string& cause, bool needs_user, Now now, Outbox& out);
  void on_round_trip(const std::string& resource, std::int64_t microseconds, Outbox& out);
  void on_launch_report(v1::LaunchReport report, Now now, Outbox& out);
  // The answer is for the node; with `error` set it is refused. `trusted`: a hub vouches for it, else its secret must fit.
  v1::Welcome on_node_joined(const v1::PilotHello& hello, bool trusted, Now now, Outbox& out);
  void on_node_unlinked(NodeId id, const std::string& cause, Now now, Outbox& out);  // it may come back
  // It will not. `process_dead`: with all that it had started; without it only its link is known to be gone.
  void on_node_left(NodeId id, const std::string& cause, Now now, Outbox& out, bool process_dead = true);
  void on_pilot_ending(NodeId id, const std::string& reason, bool failed, Now now, Outbox& out);
  void on_attempt_running(NodeId from, const v1::AttemptRunning& report, Now now, Outbox& out);
  void on_worker_connected(NodeId from, const v1::WorkerConnected& report, Now now, Outbox& out);
  void on_attempt_retracted(NodeId from, const v1::AttemptRetracted& report, Now now, Outbox& out);
  void on_attempt_ended(NodeId from, const v1::AttemptEnded& report, Now now, Outbox& out);
  void on_node_status(NodeId from, const v1::NodeStatus& status, Now now, Outbox& out);

  // ---- time and scheduling -----------------------------------------------------------------------
  // Places what can be placed. Called once for all that came in.
  void place(Now now, Outbox& out);
  bool placing_wanted() const { return dirty_; }
  void on_tick(Now now, Outbox& out);
  // Is there anything that only time can decide?
  bool needs_ticks() const;

  void set_channel_stats(JobId id, const v1::ChannelStats& stats);

 private:
  void emit(v1::Event event, Now now, Outbox& out);
  void change_pilot(Pilot& pilot, PilotEvent event, const std::string& message, Now now, Outbox& out);
  void end_job(Job& job, JobEvent event, v1::ExitReason exit, std::uint64_t out_bytes, std::uint64_t err_bytes, Now now, Outbox& out);
  enum class Prefilled { lost, queued_again };
  void lose_attempts(NodeId id, Node& node, Prefilled prefilled, v1::ExitKind kind, const std::string& message, Now now, Outbox& out);
  void note_node(PilotId pilot, const Node& node, bool gone, Now now, Outbox& out);
  void settle_pilot(Pilot& pilot, Now now, Outbox& out);
  void end_tied(Now now, Outbox& out);
  void forget_retractions(Node& node);
  std::map<std::string, std::int64_t> rejoin_graces() const;  // of each resource, in milliseconds
  void launch(Pilot& pilot, Now now, Outbox& out);
  void send_start(const Job& job, Outbox& out);
  void send_cancel(const Job& job, Outbox& out);
  void send_retract(Job& job, NodeId to, Outbox& out);
  // Back to the queue: it had not begun. Ends it instead when its time in the queue is over.
  void requeue(Job& job, const std::string& reason, Now now, Outbox& out);
  void end_wait_at_limit(Job& job, Now now, Outbox& out);
  void reconcile(NodeId id, Node& node, const v1::PilotHello& hello, Now now, Outbox& out);
  v1::PilotSettings settings_of(const Pilot& pilot) const;
  Job* find(JobId id);

  CoreSettings settings_;
  std::function<std::string()> new_secret_;
  State state_;
  std::set<JobId> awaited_;  // jobs whose clients have not come back yet
  std::int64_t awaited_since_boot_ms_ = 0;
  bool dirty_ = false;
};

}  // namespace flotilla::daemon
