#include "daemon/coordinator/coordinator.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <fstream>

#include "daemon/coordinator/channel_giver.hpp"
#include "daemon/coordinator/hubs.hpp"
#include "daemon/coordinator/sessions.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"

namespace flotilla::daemon {
namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr auto commit_retry = 500ms;                    // a full disk: try again, nothing is acknowledged meanwhile
constexpr auto tick_interval = 500ms;                   // only while something waits for time alone (queue time-outs, leases)
constexpr auto sample_interval = 500ms;                 // calls and bytes per second of remote workers
constexpr auto local_pilot_proven = 60s;                // one that ran for so long does not die of how it was started
constexpr const char* running_key = "daemon_runs";      // in the journal: no orderly end followed
constexpr const char* local_pilot_key = "local_pilot";  // in the journal: the last that was started unasked
constexpr std::size_t start_key_limit_bytes = 32;
constexpr std::size_t watcher_limit_bytes = 32u << 20;  // a watcher that lags more than this is ended

CoreSettings core_settings(const Config& config) {
  CoreSettings settings;
  settings.pilot_idle_ms = config.pilot_idle_ms;
  settings.pilot_cutoff_ms = config.pilot_cutoff_ms;
  return settings;
}

bool like_the_local_pilot(const Pilot& pilot) { return pilot.spec.resource() == "local" && pilot.spec.label() == "local"; }

std::int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}
}  // namespace

Now Coordinator::now() {
  return {wall_ms(), std::chrono::duration_cast<std::chrono::milliseconds>(BootClock::now().time_since_epoch()).count()};
}

Coordinator::Coordinator(asio::io_context& io, Config config, Places places, std::unique_ptr<Journal> journal)
    : io_(io), config_(std::move(config)), places_(std::move(places)), journal_(std::move(journal)),
      core_(core_settings(config_), [] { return random_bytes(32); }), retry_commit_(io), ticks_(io), sampling_(io), local_replacement_(io),
      prompts_(io), outputs_(places_.state / "output", config_.output_limit_bytes), blobs_(places_.state / "blobs"),
      local_driver_(io, places_.agent,
                    [this](v1::LaunchReport report) {
                      core_.on_launch_report(report, now(), out_);
                      touch();
                    }),
      output_retry_timer_(io), started_ms_(wall_ms()) {}

Coordinator::~Coordinator() = default;

Status Coordinator::start() {
  std::size_t events = 0, refused = 0;
  auto replayed = journal_->replay([&](const v1::Event& event) {
    ++events;
    if (!core_.replay(event)) ++refused;
  });
  if (!replayed) return replayed;
  spdlog::info("{} events replayed: {} resources, {} pilots, {} jobs", events, state().resources.size(), state().pilots.size(),
               state().jobs.size());
  if (refused) spdlog::warn("{} events of the journal did not fit and were left out", refused);
  outputs_.remove_after(JobId{state().last_job});

  hubs_ = std::make_unique<Hubs>(*this);
  giver_ = std::make_unique<ChannelGiver>(io_, (places_.runtime / "channel.sock").string(),
                                          ChannelGiver::Events{[this](JobId job, unique_fd ours) {
                                                                 hubs_->channels().add(job.value, std::move(ours));
                                                                 if (const Job* j = state().job(job)) hubs_->open_channel(job, j->node);
                                                                 sample_channels();
                                                               },
                                                               [this](JobId job) { end_worker(job, "its client went away"); }});
  if (auto status = giver_->start(); !status) return status;

  if (!state().resources.contains("local")) {
    v1::ResourceSpec local;
    local.set_name("local");
    local.set_driver("local");
    (void)core_.add_resource(std::move(local), false, now(), out_);
  }
  core_.restored(now(), out_);
  if (journal_->get(running_key) == "yes") core_.await_clients(now());
  (void)journal_->put(running_key, "yes");
  accept_pilots();
  // Pilots of this machine whose process is gone (a reboot, say) need no lease to run out.
  for (const auto& [id, pilot] : state().pilots) {
    const auto resource = state().resources.find(pilot.spec.resource());
    if (ended(pilot.state) || resource == state().resources.end() || !resource->second.local()) continue;
    for (const auto& [index, node] : pilot.nodes) {
      const NodeId node_id{id, index};
      if (node.gone || node.incarnation.empty()) continue;
      std::ifstream cmdline("/proc/" + std::to_string(node.record.pid()) + "/cmdline");
      std::string program;
      std::getline(cmdline, program, '\0');
      if (program.find("flotilla-agent") == std::string::npos) {
        asio::post(io_, [this, node_id] {
          core_.on_node_left(node_id, "its process is gone", now(), out_, true);
          touch();
        });
      } else {
        local_nodes_[node_id].process = ProcessWatch::start(io_, static_cast<int>(node.record.pid()), [this, node_id] {
          const Node* n = state().node(node_id);
          if (!n || n->linked) return;
          core_.on_node_left(node_id, "its process ended", now(), out_, true);
          touch();
        });
      }
    }
  }
  monitor_ = std::make_unique<Monitor>(io_, *this, [this] {
    MonitorOptions options;
    options.port = config_.web_port;
    options.admit_user = config_.web_admits_user;
    options.token = journal_->get("web_token");
    if (options.token.empty()) {
      options.token = random_hex(16);
      (void)journal_->put("web_token", options.token);
    }
    // Pages that are open find the daemon again where it was.
    options.last_port = static_cast<std::uint16_t>(std::atoi(journal_->get("web_port").c_str()));
    return options;
  }());
  if (auto status = monitor_->start(); !status) {
    // Not worth refusing to work: `flotilla web` and `daemon status` tell.
    web_problem_ = status.error().text();
    spdlog::error("no web page: {}", web_problem_);
    monitor_.reset();
  } else {
    (void)journal_->put("web_port", std::to_string(monitor_->port()));
  }
  fit_local_pilot();
  ensure_local_pilot();
  touch();
  flush();
  return {};
}

void Coordinator::begin_end() {
  if (std::exchange(ending_, true)) return;
  (void)journal_->put(running_key, "no");
  hubs_->note_end_of_daemon();
}

// ---- the turn: decide, keep, then act --------------------------------------------------------------------

void Coordinator::touch() {
  if (std::exchange(flush_posted_, true)) return;
  asio::post(io_, [this] { flush(); });
}

void Coordinator::after_commit(std::function<void()> then, std::function<void(const Error&)> failed) {
  after_commit_.push_back({std::move(then), std::move(failed)});
  touch();
}

void Coordinator::flush() {
  flush_posted_ = false;
  if (core_.placing_wanted()) core_.place(now(), out_);
  if (auto status = journal_->append(out_.events); !status) {
    if (!commit_error_) spdlog::error("{}", status.error().text());
    commit_error_ = status.error();
    const auto giving_up = std::stable_partition(after_commit_.begin(), after_commit_.end(), [](const auto& each) { return !each.failed; });
    const std::vector<AfterCommit> failed(giving_up, after_commit_.end());
    after_commit_.erase(giving_up, after_commit_.end());
    for (const auto& each : failed) each.failed(*commit_error_);
    flush_posted_ = true;  // what comes in joins this commit
    retry_commit_.expires_after(commit_retry);
    retry_commit_.async_wait([this](boost::system::error_code code) {
      if (!code) flush();
    });
    return;
  }
  if (std::exchange(commit_error_, std::nullopt)) spdlog::info("the journal can be written again");
  carry_out(std::exchange(out_, {}));
}

void Coordinator::carry_out(Outbox out) {
  for (auto& each : std::exchange(after_commit_, {})) each.then();
  std::set<NodeId> started;
  for (auto& [to, frame] : out.frames) {
    if (frame.has_start_attempt()) started.insert(to);
    send(to, std::move(frame));
  }
  for (const PilotId id : out.stop_launches) {
    local_driver_.stop(id.value);
    const auto pilot = state().pilots.find(id);
    if (pilot == state().pilots.end()) continue;
    v1::Frame frame;
    frame.mutable_stop_launch()->set_pilot(id.value);
    hubs_->send(pilot->second.spec.resource(), std::move(frame));
  }
  for (const auto& resource : out.left_hubs) hubs_->forget(resource);
  for (const auto& resource : out.other_ways) hubs_->go_other_way(resource);
  for (const PilotId id : out.launches) launch(id);
  for (const auto& resource : out.wanted_hubs) hubs_->want(resource, true);
  for (const JobId id : out.connected_workers) {
    const Job* job = state().job(id);
    const auto call = worker_calls_.find(id);
    if (!job || call == worker_calls_.end()) continue;
    v1::WorkerChannel channel;
    channel.set_job(id.value);
    channel.set_ticket(job->ticket);
    const auto pilot = state().pilots.find(job->node.pilot);
    const auto resource = state().resources.find(pilot->second.spec.resource());
    if (resource != state().resources.end() && resource->second.local()) {
      channel.set_socket(job->hand_over_socket);
    } else {
      giver_->expect(id, job->ticket);
      channel.set_socket(giver_->socket_path());
    }
    *channel.mutable_info() = show(*job);
    auto reply = std::move(call->second.reply);
    worker_calls_.erase(call);
    reply(std::move(channel));
  }
  end_jobs(out.ended_jobs);
  send_due_forgets(started);
  tell(out);
  // Of a pilot that is gone, or is back without them, no more output comes.
  if (!out.changed_pilots.empty())
    for (auto& [id, sessions] : std::map(attached_))
      if (const Job* job = state().job(id); job && ended(job->state) && out.changed_pilots.contains(job->node.pilot)) settle_output(id);
  if (!waiters_.empty() && (!out.changed_jobs.empty() || !out.changed_pilots.empty())) check_waiters();
  arm_ticks();
}

void Coordinator::end_jobs(const std::vector<JobId>& ids) {
  for (const JobId id : ids) {
    const Job* job = state().job(id);
    if (!job) continue;
    input_flows_.erase(id);
    if (job->worker()) {
      if (const auto call = worker_calls_.find(id); call != worker_calls_.end()) {
        auto reply = std::move(call->second.reply);
        worker_calls_.erase(call);
        reply(fail(ended_badly(*job)));
      }
      giver_->end(id, job->exit);
      samples_.erase(id);
      if (job->exit.kind() == v1::PILOT_LOST || job->exit.kind() == v1::PILOT_ENDED) hubs_->close_channel(id);
      else hubs_->retire_channel(id);
    }
    settle_output(id);
  }
}

Error Coordinator::ended_badly(const Job& job) {
  Error error{Code::worker_failed, job.exit.message(), {}, Retry::no, {}};
  if (error.message.empty()) error.message = fmt::format("job {} {}", job.id.value, word(job.state));
  if (job.exit.kind() == v1::QUEUE_TIMEOUT || job.exit.kind() == v1::START_TIMEOUT) error.code = Code::timeout;
  if (job.exit.kind() == v1::CANCELED_BY_USER) error.code = Code::canceled;
  error.exit = job.exit.SerializeAsString();
  return error;
}

void Coordinator::tell(const Outbox& out) {
  auto each = [&](v1::Change change, auto&& wanted) {
    if (monitor_) monitor_->changed(change);
    for (auto& watcher : watchers_)
      if (wanted(watcher.request)) watcher.stream->send(change);
  };
  for (const auto& name : out.changed_resources) {
    v1::Change change;
    const auto it = state().resources.find(name);
    if (it == state().resources.end()) {
      change.set_resource_removed(name);
    } else {
      *change.mutable_resource() = describe(it->second);
    }
    each(std::move(change), [](const v1::WatchRequest& w) { return w.resources(); });
  }
  for (const PilotId id : out.changed_pilots) {
    const auto it = state().pilots.find(id);
    v1::Change change;
    if (it == state().pilots.end()) {
      change.set_pilot_removed(id.value);
      each(std::move(change), [](const v1::WatchRequest& w) { return w.pilots(); });
      continue;
    }
    *change.mutable_pilot() = describe(state(), it->second);
    each(std::move(change), [&](const v1::WatchRequest& w) {
      return w.pilots() || std::find(w.pilot_ids().begin(), w.pilot_ids().end(), id.value) != w.pilot_ids().end();
    });
    if (ended(it->second.state)) {
      if (it->second.state == v1::PILOT_FAILED && like_the_local_pilot(it->second)) replace_local_pilot(it->second);
      for (const auto& [index, node] : it->second.nodes) {
        const auto local = local_nodes_.find(NodeId{id, index});
        if (local != local_nodes_.end() && !local->second.link) local_nodes_.erase(local);
      }
    }
  }
  for (const JobId id : out.changed_jobs) {
    const Job* job = state().job(id);
    if (!job) continue;
    send_held_input(*job);
    const auto attached = attached_.find(id);
    if (attached != attached_.end())
      for (auto& session : std::vector(attached->second)) session->on_job_changed();
    if (watchers_.empty() && !(monitor_ && monitor_->wanted())) continue;
    v1::Change change;
    *change.mutable_job() = show(*job);
    each(std::move(change), [&](const v1::WatchRequest& w) {
      return w.jobs() || std::find(w.job_ids().begin(), w.job_ids().end(), id.value) != w.job_ids().end();
    });
  }
  for (auto it = watchers_.begin(); it != watchers_.end();) {
    if (it->stream->queued_bytes() > watcher_limit_bytes) {
      it->stream->finish(fail(Code::resource_exhausted, "the watcher reads too slowly", "watch again for a fresh state", Retry::yes));
      it = watchers_.erase(it);
    } else {
      ++it;
    }
  }
}

void Coordinator::arm_ticks() {
  if (ticking_ || !core_.needs_ticks()) return;
  ticking_ = true;
  ticks_.expires_after(tick_interval);
  ticks_.async_wait([this](boost::system::error_code code) {
    ticking_ = false;
    if (code) return;
    core_.on_tick(now(), out_);
    touch();
  });
}

void Coordinator::wait_until(CallContextPtr call, std::int64_t timeout_ms, std::function<bool()> done, std::function<void()> timed_out,
                             std::function<void()> canceled) {
  if (done()) return;
  const std::uint64_t id = ++last_waiter_;
  auto timer = std::make_shared<asio::steady_timer>(io_);
  auto remove = [this, id, timer] {
    timer->cancel();
    waiters_.remove_if([id](const Waiter& waiter) { return waiter.id == id; });
  };
  waiters_.push_back({id, [done = std::move(done), timer] {
                        if (!done()) return false;
                        timer->cancel();
                        return true;
                      }});
  call->on_canceled = [remove, canceled = std::move(canceled)] {
    remove();
    canceled();
  };
  if (timeout_ms > 0) {
    timer->expires_after(std::chrono::milliseconds(timeout_ms));
    timer->async_wait([this, id, timed_out = std::move(timed_out)](boost::system::error_code code) {
      if (code) return;
      const auto before = waiters_.size();
      waiters_.remove_if([id](const Waiter& waiter) { return waiter.id == id; });
      if (waiters_.size() != before) timed_out();
    });
  }
}

void Coordinator::check_waiters() {
  waiters_.remove_if([](const Waiter& waiter) { return waiter.done(); });
}

v1::Job Coordinator::show(const Job& job) {
  v1::Job out = describe(state(), job);
  if (placed(job.state)) {
    out.set_stdout_bytes(outputs_.taken(job.id, 1));
    out.set_stderr_bytes(outputs_.taken(job.id, 2));
  }
  if (job.state == v1::JOB_QUEUED || job.prefilled) out.set_message(why(state(), job, now()).sentence);
  return out;
}

// ---- the daemon itself ---------------------------------------------------------------------------------------

v1::DaemonInfo Coordinator::info() {
  v1::DaemonInfo info;
  info.set_build(build_version());
  info.set_protocol(protocol_version);
  info.set_pid(static_cast<std::uint32_t>(getpid()));
  info.set_host(host_name());
  info.set_instance(to_hex(journal_->instance()));
  info.set_started_ms(started_ms_);
  info.set_socket((places_.runtime / "daemon.sock").string());
  if (monitor_) info.set_web_url(monitor_->url());
  info.set_web_problem(web_problem_);
  info.set_state_dir(places_.state.string());
  info.set_log_file(places_.log_file.string());
  info.set_config_file(places_.config_file.string());
  info.set_resources(state().resources.size());
  std::uint64_t running = 0;
  for (const auto& [id, pilot] : state().pilots) running += pilot.state == v1::PILOT_RUNNING;
  info.set_pilots_running(running);
  info.set_jobs_waiting(state().queue.size() + state().prefilled.size());
  std::uint64_t jobs = 0;
  for (const auto& [id, pilot] : state().pilots)
    for (const auto& [index, node] : pilot.nodes) jobs += node.attempts.size() - node.prefilled.size();
  info.set_jobs_running(jobs);
  info.set_resident_bytes(resident_bytes());
  return info;
}

void Coordinator::get_info(Reply<v1::DaemonInfo> reply) { reply(info()); }

void Coordinator::for_each(const std::function<void(const v1::Change&)>& tell_one) {
  v1::Change change;
  for (const auto& [name, resource] : state().resources) {
    *change.mutable_resource() = describe(resource);
    tell_one(change);
  }
  for (const auto& [id, pilot] : state().pilots) {
    *change.mutable_pilot() = describe(state(), pilot);
    tell_one(change);
  }
  for (const auto& [id, job] : state().jobs) {
    *change.mutable_job() = show(job);
    tell_one(change);
  }
}

std::optional<v1::Job> Coordinator::job(std::uint64_t id) {
  const Job* job = state().job(JobId{id});
  if (!job) return std::nullopt;
  return show(*job);
}

Result<std::string> Coordinator::output(std::uint64_t id, std::uint32_t stream, std::uint64_t tail_bytes) {
  if (!state().job(JobId{id})) return fail(Code::not_found, fmt::format("there is no job {}", id));
  const std::uint64_t kept = outputs_.kept(JobId{id}, stream);
  return outputs_.read(JobId{id}, stream, kept > tail_bytes ? kept - tail_bytes : 0, tail_bytes);
}

void Coordinator::watch(v1::WatchRequest request, OutStreamPtr<v1::Change> stream) {
  for_each([&](const v1::Change& change) {
    bool wanted = false;
    switch (change.what_case()) {
      case v1::Change::kResource: wanted = request.resources(); break;
      case v1::Change::kPilot:
        wanted = (request.pilots() && (request.finished_jobs() || !ended(change.pilot().state()))) ||
                 std::find(request.pilot_ids().begin(), request.pilot_ids().end(), change.pilot().id()) != request.pilot_ids().end();
        break;
      case v1::Change::kJob:
        wanted = (request.jobs() && (request.finished_jobs() || !ended(change.job().state()))) ||
                 std::find(request.job_ids().begin(), request.job_ids().end(), change.job().id()) != request.job_ids().end();
        break;
      default: break;
    }
    if (wanted) stream->send(change);
  });
  v1::Change end;
  end.set_snapshot_end(true);
  stream->send(end);
  watchers_.push_back({std::move(request), stream});
  stream->on_gone = [this, raw = stream.get()] {
    watchers_.remove_if([raw](const Watcher& watcher) { return watcher.stream.get() == raw; });
  };
}

// ---- resources ---------------------------------------------------------------------------------------------------

void Coordinator::add_resource(const v1::AddResourceRequest& request, Reply<v1::Resource> reply) {
  if (refused(reply)) return;
  const std::string name = request.spec().name();
  if (auto status = core_.add_resource(request.spec(), request.replace(), now(), out_); !status) return reply(fail(status.error()));
  after_commit([this, name, reply] {
    const auto resource = state().resources.find(name);
    if (resource == state().resources.end())  // removed in the same moment
      return reply(fail(Code::not_found, fmt::format("there is no resource '{}'", name), "flotilla resource list shows them"));
    reply(describe(resource->second));
  });
}

void Coordinator::list_resources(const v1::ListResourcesRequest& request, Reply<v1::ListResourcesReply> reply) {
  v1::ListResourcesReply answer;
  for (const auto& [name, resource] : state().resources)
    if (request.name().empty() || request.name() == name) *answer.add_resources() = describe(resource);
  if (!request.name().empty() && answer.resources().empty()) {
    std::string known;
    for (const auto& [name, resource] : state().resources) known += (known.empty() ? "" : ", ") + name;
    return reply(fail(Code::not_found, fmt::format("there is no resource '{}'", request.name()), "there are: " + known));
  }
  reply(std::move(answer));
}

void Coordinator::remove_resource(const v1::RemoveResourceRequest& request, Reply<v1::RemoveResourceReply> reply) {
  if (refused(reply)) return;
  auto left = core_.remove_resource(request.name(), request.force(), now(), out_);
  if (!left) return reply(fail(left.error()));
  v1::RemoveResourceReply answer;
  for (const auto& pilot : *left) {
    spdlog::warn("pilot {} runs on behind a link that is cut; its resource '{}' was removed", pilot.pilot.value, request.name());
    auto* shown = answer.add_left_behind();
    shown->set_pilot(pilot.pilot.value);
    shown->set_ends_by_ms(pilot.ends_by_ms);
  }
  after_commit([answer, reply] { reply(answer); });
}

void Coordinator::connect_resource(const v1::ConnectResourceRequest& request, OutStreamPtr<v1::Progress> stream) {
  const auto it = state().resources.find(request.name());
  if (it == state().resources.end())
    return stream->finish(
        fail(Code::not_found, fmt::format("there is no resource '{}'", request.name()), "flotilla resource list shows them"));
  if (auto status = takes_work(); !status && !request.disconnect()) return stream->finish(fail(status.error()));
  v1::Progress progress;
  progress.set_fraction(-1);
  if (request.disconnect()) hubs_->disconnect(request.name());
  if (request.disconnect() || it->second.local() || hubs_->connected(request.name())) {
    progress.set_done(true);
    progress.set_message(request.disconnect() ? "disconnected; its hub and pilots go on" : "connected");
    stream->send(progress);
    return stream->finish({});
  }
  hubs_->follow(request.name(), stream);
  hubs_->want(request.name(), true);
}

void Coordinator::test_resource(const v1::TestResourceRequest& request, OutStreamPtr<v1::TestStep> stream) {
  if (auto status = takes_work(); !status) return stream->finish(fail(status.error()));
  hubs_->test(request.name(), std::move(stream));
}

// ---- pilots ----------------------------------------------------------------------------------------------------------

bool Coordinator::has_local_pilot() const {
  return std::ranges::any_of(state().pilots, [](const auto& entry) {
    const Pilot& pilot = entry.second;
    return !ended(pilot.state) && like_the_local_pilot(pilot) && !pilot.stop_wanted && !pilot.drain_wanted;
  });
}

void Coordinator::ensure_local_pilot() {
  if (!config_.local_pilot || !config_.starts_local_pilot || has_local_pilot()) return;
  v1::PilotSpec spec;
  spec.set_resource("local");
  spec.set_label("local");
  spec.set_slots_per_node(config_.local_slots);
  spec.set_idle_ms(-1);
  if (auto id = core_.start_pilot(std::move(spec), now(), out_)) (void)journal_->put(local_pilot_key, std::to_string(id->value));
  else spdlog::error("the local pilot cannot be started: {}", id.error().text());
  touch();
}

// At the start: one of an earlier daemon that is not as the configuration says now ends after its jobs.
void Coordinator::fit_local_pilot() {
  if (!config_.starts_local_pilot) return;  // it is stopped in a moment
  const auto it = state().pilots.find(PilotId{std::strtoull(journal_->get(local_pilot_key).c_str(), nullptr, 10)});
  if (it == state().pilots.end() || ended(it->second.state) || it->second.stop_wanted || it->second.drain_wanted) return;
  if (config_.local_pilot && it->second.spec.slots_per_node() == config_.local_slots) return;
  spdlog::info("the local pilot {} drains: the configuration has changed", it->first.value);
  (void)core_.stop_pilot(it->first, true, "the configuration of the local pilot has changed", now(), out_);
}

// The one that was lost is started again: at once when it had been running, then after longer and longer when it cannot live.
void Coordinator::replace_local_pilot(const Pilot& lost) {
  if (ending_ || stopping_ || lost.id == local_lost_ || has_local_pilot()) return;
  local_lost_ = lost.id;
  if (lost.running_ms && lost.ended_ms - lost.running_ms >= std::chrono::milliseconds(local_pilot_proven).count()) local_failures_ = 0;
  if (!lost.running_ms) {
    // The last one shows why; those before it would pile up.
    if (const PilotId before = std::exchange(local_not_started_, lost.id); before) {
      core_.forget_pilot(before, now(), out_);
      touch();
    }
  }
  local_replacement_.expires_after(std::chrono::milliseconds(local_replacement_pause_ms(local_failures_++)));
  local_replacement_.async_wait([this](boost::system::error_code code) {
    if (!code && !stopping_ && !ending_) ensure_local_pilot();
  });
}

Status Coordinator::takes_work() const {
  if (commit_error_) return fail(*commit_error_);
  if (!stopping_) return {};
  return fail(Code::failed_precondition, "the daemon is being stopped, with all jobs and pilots",
              "try again when 'flotilla daemon stop --all' has ended");
}

Result<std::vector<PilotId>> Coordinator::select_pilots(const google::protobuf::RepeatedField<std::uint64_t>& ids,
                                                        const std::string& resource, const std::string& label, bool all,
                                                        bool ended_too) const {
  std::vector<PilotId> selected;
  for (const auto id : ids) {
    if (!state().pilots.contains(PilotId{id}))
      return fail(Code::not_found, fmt::format("there is no pilot {}", id), "flotilla pilot list --ended shows them");
    selected.push_back(PilotId{id});
  }
  if (!ids.empty()) return selected;
  for (const auto& [id, pilot] : state().pilots) {
    if (ended(pilot.state) && !ended_too) continue;
    if (!resource.empty() && pilot.spec.resource() != resource) continue;
    if (!label.empty() && pilot.spec.label() != label) continue;
    if (resource.empty() && label.empty() && !all) continue;
    selected.push_back(id);
  }
  return selected;
}

void Coordinator::start_pilot(const v1::StartPilotRequest& request, Reply<v1::Pilot> reply) {
  if (auto status = takes_work(); !status) return reply(fail(status.error()));
  const std::uint32_t count = std::max(1u, request.count());
  PilotId first;
  for (std::uint32_t i = 0; i < count; ++i) {
    auto id = core_.start_pilot(request.spec(), now(), out_);
    if (!id) return reply(fail(id.error()));
    if (!first) first = *id;
  }
  after_commit([this, first, reply] { reply(describe(state(), state().pilots.at(first))); });
}

void Coordinator::list_pilots(const v1::ListPilotsRequest& request, Reply<v1::ListPilotsReply> reply) {
  auto selected = select_pilots(request.ids(), request.resource(), request.label(), true, request.ended());
  if (!selected) return reply(fail(selected.error()));
  v1::ListPilotsReply answer;
  for (const PilotId id : *selected) *answer.add_pilots() = describe(state(), state().pilots.at(id));
  reply(std::move(answer));
}

void Coordinator::stop_pilots(const v1::StopPilotsRequest& request, Reply<v1::ListPilotsReply> reply) {
  if (refused(reply)) return;
  auto selected = select_pilots(request.ids(), request.resource(), request.label(), request.all(), false);
  if (!selected) return reply(fail(selected.error()));
  if (selected->empty() && !request.all())
    return reply(fail(Code::not_found, "no pilot was named, or none has that label or resource", "name pilots by id, or use --all"));
  for (const PilotId id : *selected)
    (void)core_.stop_pilot(id, request.drain(), request.drain() ? "told to drain" : "stopped by the user", now(), out_);
  touch();
  after_commit([this, ids = *selected, reply] {
    v1::ListPilotsReply answer;
    for (const PilotId id : ids) *answer.add_pilots() = describe(state(), state().pilots.at(id));
    reply(std::move(answer));
  });
}

void Coordinator::wait_pilots(const v1::WaitPilotsRequest& request, CallContextPtr call, Reply<v1::ListPilotsReply> reply) {
  auto selected = select_pilots(request.ids(), "", request.label(), true, !request.ids().empty());
  if (!selected) return reply(fail(selected.error()));
  if (selected->empty()) return reply(fail(Code::not_found, "there is no pilot to wait for", "start one: flotilla pilot start RESOURCE"));
  auto answer = [this, ids = *selected] {
    v1::ListPilotsReply all;
    for (const PilotId id : ids)
      if (const auto it = state().pilots.find(id); it != state().pilots.end()) *all.add_pilots() = describe(state(), it->second);
    return all;
  };
  wait_until(
      call, request.timeout_ms(),
      [this, ids = *selected, for_end = request.ended(), answer, reply] {
        bool all = true;
        for (const PilotId id : ids) {
          const auto it = state().pilots.find(id);
          if (it == state().pilots.end()) continue;  // it has ended, and was forgotten
          const Pilot& pilot = it->second;
          if (for_end) {
            all &= ended(pilot.state);
          } else if (ended(pilot.state)) {
            reply(fail(Code::failed_precondition,
                       fmt::format("pilot {} on {} {}: {}", id.value, pilot.spec.resource(), word(pilot.state), pilot.message)));
            return true;
          } else {
            all &= pilot.state == v1::PILOT_RUNNING || pilot.state == v1::PILOT_DRAINING;
          }
        }
        if (all) reply(answer());
        return all;
      },
      [this, ids = *selected, reply, ms = request.timeout_ms()] {
        std::string waiting;
        for (const PilotId id : ids) {
          const auto it = state().pilots.find(id);
          if (it == state().pilots.end()) continue;
          const Pilot& pilot = it->second;
          if (pilot.state != v1::PILOT_RUNNING)
            waiting += fmt::format("{}pilot {} is {}{}", waiting.empty() ? "" : "; ", id.value, word(pilot.state),
                                   pilot.message.empty() ? "" : " (" + pilot.message + ")");
        }
        reply(fail(Code::timeout, fmt::format("after {} s: {}", ms / 1000.0, waiting), "", Retry::yes));
      },
      [reply] { reply(fail(Code::canceled, "canceled")); });
}

// ---- jobs ----------------------------------------------------------------------------------------------------------------

Result<std::vector<JobId>> Coordinator::select_jobs(const google::protobuf::RepeatedField<std::uint64_t>& ids, const std::string& label,
                                                    bool all) const {
  std::vector<JobId> selected;
  for (const auto id : ids) {
    if (!state().job(JobId{id})) return fail(Code::not_found, fmt::format("there is no job {}", id), "flotilla job list shows them");
    selected.push_back(JobId{id});
  }
  if (!ids.empty()) return selected;
  if (label.empty() && !all) return fail(Code::invalid_argument, "no job is named", "name jobs by id, or use --label LABEL or --all");
  for (const auto& [id, job] : state().jobs)
    if (!ended(job.state) && (all || job.spec->label() == label)) selected.push_back(id);
  return selected;
}

void Coordinator::submit(const v1::SubmitRequest& request, Reply<v1::SubmitReply> reply) {
  if (auto status = takes_work(); !status) return reply(fail(status.error()));
  for (const auto& spec : request.specs())
    for (const auto& file : spec.files())
      if (file.sha256().size() == 32 && !blobs_.has(file.sha256()))
        return reply(
            fail(Code::failed_precondition, fmt::format("the input file '{}' was not sent", file.name()), "send it with PutBlob first"));
  std::vector<v1::JobSpec> specs(request.specs().begin(), request.specs().end());
  for (auto& spec : specs) spec.clear_cancel_with_client();  // no client stays at it
  auto ids = core_.submit(std::move(specs), now(), out_);
  if (!ids) return reply(fail(ids.error()));
  after_commit([ids = *ids, reply] {
    v1::SubmitReply answer;
    for (const JobId id : ids) answer.add_ids(id.value);
    reply(std::move(answer));
  });
}

void Coordinator::list_jobs(const v1::ListJobsRequest& request, Reply<v1::ListJobsReply> reply) {
  v1::ListJobsReply answer;
  auto wanted = [&](const Job& job) {
    if (!request.states().empty() && std::find(request.states().begin(), request.states().end(), job.state) == request.states().end())
      return false;
    if (!request.label().empty() && job.spec->label() != request.label()) return false;
    return !request.workers_only() || job.worker();
  };
  if (!request.ids().empty()) {
    for (const auto id : request.ids()) {
      const Job* job = state().job(JobId{id});
      if (!job) return reply(fail(Code::not_found, fmt::format("there is no job {}", id), "flotilla job list shows them"));
      *answer.add_jobs() = show(*job);
    }
  } else {
    std::vector<const Job*> newest;
    for (auto it = state().jobs.rbegin(); it != state().jobs.rend(); ++it) {
      if (!wanted(it->second)) continue;
      answer.set_total(answer.total() + 1);
      if (!request.limit() || newest.size() < request.limit()) newest.push_back(&it->second);
    }
    for (auto it = newest.rbegin(); it != newest.rend(); ++it) *answer.add_jobs() = show(**it);
  }
  reply(std::move(answer));
}

void Coordinator::cancel_jobs(const v1::CancelJobsRequest& request, Reply<v1::ListJobsReply> reply) {
  if (refused(reply)) return;
  auto selected = select_jobs(request.ids(), request.label(), request.all());
  if (!selected) return reply(fail(selected.error()));
  for (const JobId id : *selected) (void)core_.cancel(id, v1::CANCELED_BY_USER, "canceled by the user", now(), out_);
  after_commit([this, ids = *selected, reply] {
    v1::ListJobsReply answer;
    for (const JobId id : ids)
      if (const Job* job = state().job(id)) *answer.add_jobs() = show(*job);
    reply(std::move(answer));
  });
}

void Coordinator::signal_jobs(const v1::SignalJobsRequest& request, Reply<v1::ListJobsReply> reply) {
  if (refused(reply)) return;
  if (request.signal() < 1 || request.signal() > 64)
    return reply(fail(Code::invalid_argument, fmt::format("{} is no signal", request.signal())));
  auto selected = select_jobs(request.ids(), request.label(), false);
  if (!selected) return reply(fail(selected.error()));
  for (const JobId id : *selected)
    if (auto status = core_.signal(id, request.signal(), now(), out_); !status && !request.ids().empty())
      return reply(fail(status.error()));
  after_commit([this, ids = *selected, reply] {
    v1::ListJobsReply answer;
    for (const JobId id : ids)
      if (const Job* job = state().job(id)) *answer.add_jobs() = show(*job);
    reply(std::move(answer));
  });
}

void Coordinator::wait_jobs(const v1::WaitJobsRequest& request, CallContextPtr call, Reply<v1::ListJobsReply> reply) {
  auto selected = select_jobs(request.ids(), "", false);
  if (!selected) return reply(fail(selected.error()));
  auto done = [this, ids = *selected, running = request.running(), reply, first = std::make_shared<std::size_t>(0)] {
    // What has ended stays so: each change looks from the first one on that had not.
    for (; *first < ids.size(); ++*first) {
      const Job* job = state().job(ids[*first]);
      if (job && !ended(job->state) && !(running && job->state == v1::JOB_RUNNING)) return false;
    }
    v1::ListJobsReply answer;
    for (const JobId id : ids)
      if (const Job* job = state().job(id)) *answer.add_jobs() = show(*job);
    reply(std::move(answer));
    return true;
  };
  wait_until(
      call, request.timeout_ms(), done,
      [this, ids = *selected, reply, ms = request.timeout_ms()] {
        std::size_t open = 0;
        std::string first;
        for (const JobId id : ids)
          if (const Job* job = state().job(id); job && !ended(job->state)) {
            if (open++ == 0) first = why(state(), *job, now()).sentence;
          }
        reply(fail(Code::timeout,
                   fmt::format("after {} s {} of {} jobs have not ended; the first: {}", ms / 1000.0, open, ids.size(), first), "",
                   Retry::yes));
      },
      [reply] { reply(fail(Code::canceled, "canceled")); });
}

void Coordinator::why_job(const v1::WhyJobRequest& request, Reply<v1::WhyJobReply> reply) {
  JobId id{request.id()};
  if (!request.start_key().empty()) {
    const auto call = std::ranges::find(worker_calls_, request.start_key(), [](const auto& each) { return each.second.start_key; });
    if (call == worker_calls_.end()) return reply(fail(Code::not_found, "no start of a worker with this key waits"));
    id = call->first;
  }
  const Job* job = state().job(id);
  if (!job) return reply(fail(Code::not_found, fmt::format("there is no job {}", id.value), "flotilla job list shows them"));
  auto answer = why(state(), *job, now());
  v1::WhyJobReply wire;
  wire.set_job(id.value);
  wire.set_state(job->prefilled ? v1::JOB_QUEUED : job->state);  // to who waits for it that is the same
  wire.set_transient(answer.transient);
  wire.set_sentence(std::move(answer.sentence));
  for (auto& detail : answer.details) wire.add_details(std::move(detail));
  reply(std::move(wire));
}

void Coordinator::start_worker(const v1::StartWorkerRequest& request, CallContextPtr call, Reply<v1::WorkerChannel> reply) {
  if (auto status = takes_work(); !status) return reply(fail(status.error()));
  if (!request.spec().has_worker()) return reply(fail(Code::invalid_argument, "the description is of a command, not of a worker"));
  if (request.start_key().size() > start_key_limit_bytes)
    return reply(fail(Code::invalid_argument,
                      fmt::format("the start key has {} bytes; up to {} are taken", request.start_key().size(), start_key_limit_bytes)));
  for (const auto& file : request.spec().files())
    if (file.sha256().size() == 32 && !blobs_.has(file.sha256()))
      return reply(
          fail(Code::failed_precondition, fmt::format("the input file '{}' was not sent", file.name()), "send it with PutBlob first"));
  auto ids = core_.submit({request.spec()}, now(), out_);
  if (!ids) return reply(fail(ids.error()));
  const JobId id = ids->front();
  worker_calls_[id] = {reply, request.start_key()};
  call->on_canceled = [this, id] {
    const auto it = worker_calls_.find(id);
    if (it == worker_calls_.end()) return;
    auto waiting = std::move(it->second.reply);
    worker_calls_.erase(it);
    if (!ending_) {
      (void)core_.cancel(id, v1::CLIENT_GONE, "its client gave up waiting for it", now(), out_);
      touch();
    }
    waiting(fail(Code::canceled, "canceled"));
  };
  touch();
}

void Coordinator::end_worker(JobId id, const std::string& cause) {
  hubs_->close_channel(id);
  (void)core_.cancel(id, v1::CLIENT_GONE, cause, now(), out_);
  touch();
}

// ---- calls and bytes per second ---------------------------------------------------------------------------------------------

void Coordinator::on_node_status(NodeId from, const v1::NodeStatus& status) {
  core_.on_node_status(from, status, now(), out_);
  const std::int64_t at = now().boot_ms;
  for (const auto& report : status.channels()) {
    const JobId id{report.id().job()};
    const Job* job = state().job(id);
    if (!job || job->node != from || job->attempt != report.id().attempt() || !placed(job->state)) continue;
    const auto pilot = state().pilots.find(from.pilot);
    if (pilot == state().pilots.end()) continue;
    const auto resource = state().resources.find(pilot->second.spec.resource());
    if (resource == state().resources.end() || !resource->second.local()) continue;  // remote ones are counted here
    v1::ChannelStats stats;
    stats.set_calls(report.calls());
    stats.set_bytes_to_worker(report.bytes_to_worker());
    stats.set_bytes_from_worker(report.bytes_from_worker());
    Sample& last = samples_[id];
    if (last.at_ms && at > last.at_ms) {
      const double seconds = static_cast<double>(at - last.at_ms) / 1000;
      stats.set_calls_per_s(static_cast<double>(report.calls() - last.calls) / seconds);
      stats.set_bytes_per_s(static_cast<double>(report.bytes_to_worker() - last.to + report.bytes_from_worker() - last.from) / seconds);
    }
    last = {report.calls(), report.bytes_to_worker(), report.bytes_from_worker(), at};
    core_.set_channel_stats(id, stats);
    out_.changed_jobs.insert(id);
  }
  touch();
}

void Coordinator::sample_channels() {
  if (std::exchange(sampling_on_, true)) return;
  sampling_.expires_after(sample_interval);
  sampling_.async_wait([this](boost::system::error_code code) {
    sampling_on_ = false;
    if (code) return;
    bool any = false;
    const std::int64_t at = now().boot_ms;
    for (const JobId id : hubs_->open_channels()) {
      const Job* job = state().job(id);
      if (!job || !placed(job->state)) continue;
      any = true;
      const auto counters = hubs_->channels().counters(id.value);
      const std::uint64_t calls = giver_->calls(id);
      Sample& last = samples_[id];
      v1::ChannelStats stats;
      stats.set_calls(calls);
      stats.set_bytes_to_worker(counters.bytes_to_worker);
      stats.set_bytes_from_worker(counters.bytes_from_worker);
      if (last.at_ms && at > last.at_ms) {
        const double seconds = static_cast<double>(at - last.at_ms) / 1000;
        stats.set_calls_per_s(static_cast<double>(calls - last.calls) / seconds);
        stats.set_bytes_per_s(static_cast<double>(counters.bytes_to_worker - last.to + counters.bytes_from_worker - last.from) / seconds);
      }
      last = {calls, counters.bytes_to_worker, counters.bytes_from_worker, at};
      core_.set_channel_stats(id, stats);
      out_.changed_jobs.insert(id);
    }
    touch();
    if (any) sample_channels();
  });
}

}  // namespace flotilla::daemon
