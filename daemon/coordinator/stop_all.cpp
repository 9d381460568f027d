// Shutdown: the daemon alone, or with everything (decided by core/stop_all.hpp).
#include <fmt/format.h>
#include <signal.h>

#include <ctime>
#include <fstream>
#include <optional>
#include <set>
#include <utility>

#include "daemon/coordinator/coordinator.hpp"
#include "daemon/coordinator/hubs.hpp"
#include "daemon/core/stop_all.hpp"
#include "proto/base/error_wire.hpp"
#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"

namespace flotilla::daemon {
namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr auto step_interval = 50ms;               // while everything is being stopped, and only then
constexpr auto answer_patience = 50ms;             // the answer has to leave before the daemon ends
constexpr std::int64_t idle_hub_ms = 10 * 60'000;  // a hub without pilots

std::string clock_text(std::int64_t wall_ms) {
  const std::time_t seconds = wall_ms / 1000;
  std::tm parts{};
  localtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M", &parts);
  return text;
}

template <class Ids>
std::string listed(const Ids& ids) {
  std::string text;
  for (const auto id : ids) text += (text.empty() ? "" : ", ") + std::to_string(id.value);
  return text;
}
}  // namespace

struct Coordinator::Stopping {
  std::vector<OutStreamPtr<v1::Progress>> streams;  // all who asked for it
  std::optional<v1::Progress> last;                 // it is over
  std::vector<unique_fd> guards;                    // pidfds of the local pilots' guards, which outlive them for a moment
  StopAll plan;
  asio::steady_timer timer;
  std::set<std::string> reported;
  explicit Stopping(asio::io_context& io) : timer(io) {}
  void say(const std::string& message, bool done = false) {
    v1::Progress progress;
    progress.set_message(message);
    progress.set_fraction(-1);
    progress.set_done(done);
    send(progress);
  }
  void send(const v1::Progress& progress) {
    if (progress.done()) last = progress;
    for (auto& stream : streams) stream->send(progress);
  }
  void finish(const Status& status) {
    for (auto& stream : std::exchange(streams, {})) stream->finish(status);
  }
};

void Coordinator::shutdown(bool all, OutStreamPtr<v1::Progress> stream) {
  if (all) return stop_everything(std::move(stream));
  auto end = [this, stream] {
    if (stopping_ && !ending_) {
      stopping_->timer.cancel();
      stopping_->finish(fail(Code::unavailable, "the daemon was stopped before everything had ended", "flotilla daemon stop --all"));
    }
    const bool first = !ending_;
    begin_end();
    if (first) hubs_->note_end_of_daemon();
    v1::Progress progress;
    progress.set_message("the daemon ends; pilots and jobs go on");
    progress.set_fraction(-1);
    progress.set_done(true);
    stream->send(progress);
    stream->finish({});
    if (first) end_soon();
  };
  // A full disk does not keep the daemon: what the journal has not got, nobody was told.
  after_commit(end, [end](const Error&) { end(); });
}

void Coordinator::end_soon() {
  auto timer = std::make_shared<asio::steady_timer>(io_, answer_patience);
  timer->async_wait([this, timer](boost::system::error_code) {
    if (on_end) on_end();
  });
}

void Coordinator::stop_everything(OutStreamPtr<v1::Progress> stream) {
  if (stopping_ && !stopping_->streams.empty()) return stopping_->streams.push_back(std::move(stream));
  if (stopping_ && stopping_->last) {
    stream->send(*stopping_->last);
    return stream->finish({});
  }
  if (ending_)
    return stream->finish(fail(Code::unavailable, "the daemon is ending already", "then: flotilla daemon stop --all", Retry::yes));
  if (commit_error_) return stream->finish(fail(*commit_error_));
  auto stopping = std::make_shared<Stopping>(io_);
  stopping->streams.push_back(std::move(stream));
  stopping_ = stopping;
  local_replacement_.cancel();
  // Where there may be something of ours: before anything is stopped, as a start under way counts as ended when it is called off.
  std::set<std::string> places;
  std::size_t jobs = 0, pilots = 0;
  for (const auto& [name, resource] : state().resources)
    if (!resource.local() && hubs_->may_be_there(name)) places.insert(name);
  for (const auto& [id, pilot] : state().pilots)
    if (!ended(pilot.state)) {
      ++pilots;
      if (pilot.state != v1::PILOT_SUBMITTED) places.insert(pilot.spec.resource());
    }
  if (local_driver_.under_way()) places.insert("local");
  for (const auto& [id, node] : local_nodes_)
    if (const Node* there = state().node(id); there && !there->gone)
      if (unique_fd guard = guard_of(static_cast<int>(there->record.pid()))) {
        stopping->guards.push_back(std::move(guard));
        places.insert("local");
      }
  for (bool more = true; std::exchange(more, false);)
    for (const std::string& name : std::set(places))
      if (const auto it = state().resources.find(name); it != state().resources.end() && !it->second.spec.gateway().empty())
        more |= places.insert(it->second.spec.gateway()).second;
  for (const auto& name : places)
    if (const auto it = state().resources.find(name); it != state().resources.end())
      stopping->plan.add(name, it->second.spec.gateway(), it->second.local(), now().boot_ms);

  std::vector<JobId> open;
  for (const auto& [id, job] : state().jobs)
    if (!ended(job.state)) open.push_back(id);
  jobs = open.size();
  for (const JobId id : open) (void)core_.cancel(id, v1::CANCELED_BY_USER, "everything is being stopped", now(), out_);
  for (const auto& [id, pilot] : state().pilots)
    if (!ended(pilot.state)) (void)core_.stop_pilot(id, false, "everything is being stopped", now(), out_);
  touch();
  stopping->say(fmt::format("stopping {} jobs and {} pilots", jobs, pilots));
  after_commit([this, stopping] { step_stopping(stopping); },
               [this, stopping](const Error& error) {
                 stopping->finish(fail(error));
                 stopping_.reset();  // it can be asked for again
               });
}

void Coordinator::step_stopping(const std::shared_ptr<Stopping>& stopping) {
  std::map<std::string, StopFacts> all;
  for (const auto& [name, part] : stopping->plan.parts()) {
    StopFacts& facts = all[name];
    for (const auto& [id, pilot] : state().pilots) facts.pilots += !ended(pilot.state) && pilot.spec.resource() == name;
    if (part.local) {
      std::erase_if(stopping->guards, [](const unique_fd& guard) { return process_ended(guard); });
      if (name == "local") facts.pilots += local_driver_.under_way() + stopping->guards.size();
      continue;
    }
    const auto standing = hubs_->standing(name);
    facts.connected = standing.connected;
    facts.connecting = standing.connecting;
    facts.answers = standing.answers;
    facts.hopeless = standing.hopeless;
    facts.hub_ended = standing.said_goodbye;
    facts.trouble = standing.trouble;
  }
  const StopStep step = stopping->plan.step(all, now().boot_ms);
  for (const auto& text : step.notes) {
    spdlog::info("stopping everything: {}", text);
    stopping->say(text);
  }
  for (const auto& [name, action] : step.actions) {
    switch (action) {
      case StopAction::ask: hubs_->ask(name); break;
      case StopAction::connect: hubs_->want(name, true); break;
      case StopAction::drop: hubs_->reconnect(name); break;
      case StopAction::end_hub: hubs_->end(name); break;
      case StopAction::kill:
        for (const auto& [id, pilot] : state().pilots) {
          if (ended(pilot.state) || pilot.spec.resource() != name) continue;
          for (const auto& [index, node] : pilot.nodes) {
            std::ifstream cmdline("/proc/" + std::to_string(node.record.pid()) + "/cmdline");
            std::string program;
            std::getline(cmdline, program, '\0');
            // Its guard ends all that it started.
            if (!node.gone && node.record.pid() && program.find("flotilla-agent") != std::string::npos)
              ::kill(static_cast<pid_t>(node.record.pid()), SIGKILL);
          }
        }
        break;
    }
  }
  if (stopping->plan.over()) return finish_stopping(stopping);
  stopping->timer.expires_after(step_interval);
  stopping->timer.async_wait([this, stopping](boost::system::error_code code) {
    if (!code) step_stopping(stopping);
  });
}

void Coordinator::finish_stopping(const std::shared_ptr<Stopping>& stopping) {
  if (ending_) return;
  begin_end();
  std::vector<std::string> left;
  for (const auto& [name, part] : stopping->plan.parts()) {
    std::vector<PilotId> pilots;
    std::size_t jobs = 0;
    // A hub alone: it ends as one that nobody needs, or as one that is cut off.
    std::int64_t ends_ms = part.local ? 0 : now().wall_ms + std::min(idle_hub_ms, config_.pilot_cutoff_ms);
    std::string lost;
    for (const auto& [id, pilot] : state().pilots) {
      if (pilot.spec.resource() != name) continue;
      const std::int64_t cutoff = pilot.spec.cutoff_ms() ? pilot.spec.cutoff_ms() : config_.pilot_cutoff_ms;
      bool alive = !ended(pilot.state) && part.phase == StopAll::Phase::left;
      for (const auto& [index, node] : pilot.nodes) {
        if (alive) jobs += node.attempts.size();
        // Behind a hub that was reached, but not to be reached from there.
        if (!node.maybe_alive || part.phase == StopAll::Phase::left) continue;
        ends_ms = std::max(ends_ms, now().wall_ms + cutoff);
        lost += fmt::format("{}node {} of pilot {} on {}", lost.empty() ? "" : ", ", index, id.value, node.record.host());
      }
      if (!alive) continue;
      pilots.push_back(id);
      // From the loss of the link on; what is known of that moment is never too early.
      ends_ms = std::max(ends_ms,
                         now().wall_ms + cutoff - (pilot.unreachable_since_boot_ms ? now().boot_ms - pilot.unreachable_since_boot_ms : 0));
    }
    std::string what;
    if (part.phase == StopAll::Phase::left) {
      what = fmt::format("{}: {}; left there: ", name, part.cause);
      what += pilots.empty() ? "its hub"
                             : fmt::format("{}pilot{} {} with {} job{}", part.local ? "" : "its hub and ", pilots.size() == 1 ? "" : "s",
                                           listed(pilots), jobs, jobs == 1 ? "" : "s");
    } else if (!lost.empty()) {
      what = fmt::format("{}: its hub does not reach {}", name, lost);
    }
    if (what.empty()) continue;
    left.push_back(what + (ends_ms ? fmt::format("; it ends by itself when it is cut off: by {}", clock_text(ends_ms)) : ""));
  }
  if (left.empty()) {
    stopping->say("nothing is left running", true);
  } else {
    Error error{
        Code::unavailable, "not everything could be ended", "when it can be reached again: flotilla daemon stop --all", Retry::yes, {}};
    error.faults = left;
    for (const auto& text : left) spdlog::warn("left running: {}", text);
    v1::Progress progress;
    progress.set_message("the daemon ends");
    progress.set_fraction(-1);
    progress.set_done(true);
    *progress.mutable_error() = to_wire(error);
    stopping->send(progress);
  }
  stopping->finish({});
  hubs_->note_end_of_daemon();
  end_soon();
}

}  // namespace flotilla::daemon
