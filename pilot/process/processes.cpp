#include "pilot/process/processes.hpp"

#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>

namespace flotilla::pilot {
namespace {

using namespace std::chrono_literals;

// Leftovers that SIGKILL did not end at once (they sit in the kernel) are looked at again after this.
constexpr auto leftover_retry = 100ms;
constexpr auto unclear_retry = 2ms;       // exec is over soon
constexpr int most_unclear_looks = 1000;  // of one whose environment is never to be seen
constexpr int most_empty_looks = 3;       // of one that has cleared it
constexpr auto clock_tick = 10ms;         // resolution of a start time in /proc

Moment now() { return BootClock::now().time_since_epoch(); }

std::vector<std::string> marks_of(Attempt attempt) {
  return {"FLOTILLA_JOB=" + std::to_string(attempt.job.value), "FLOTILLA_ATTEMPT=" + std::to_string(attempt.number)};
}

}  // namespace

Processes::Processes(boost::asio::io_context& io) : io_(io), signals_(io), retry_(io), begun_(now()) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  signals_.assign(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  wait_for_signal();
}

void Processes::stop() {
  stopped_ = true;
  signals_.close();
  retry_.cancel();
}

void Processes::wait_for_signal() {
  signals_.async_wait(boost::asio::posix::stream_descriptor::wait_read, [this](const boost::system::error_code& error) {
    if (error || stopped_) return;
    signalfd_siginfo info[8];
    while (read(signals_.native_handle(), info, sizeof info) == static_cast<ssize_t>(sizeof info)) {}
    reap();
    if (!stopped_) wait_for_signal();
  });
}

void Processes::add(Attempt attempt, pid_t pid, Moment started, Events events) {
  tracked_[attempt] = Tracked{pid, started, false, false, std::move(events)};
  by_pid_[pid] = attempt;
}

bool Processes::alive(Attempt attempt) const {
  auto it = tracked_.find(attempt);
  return it != tracked_.end() && !it->second.exited;
}

void Processes::reap() {
  std::vector<std::pair<Attempt, ProcessEnd>> exits;
  for (;;) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);
    if (pid < 0 && errno == EINTR) continue;
    childless_ = pid < 0;
    if (pid <= 0) break;
    orphans_.erase(pid);
    auto it = by_pid_.find(pid);
    if (it == by_pid_.end()) continue;
    const Attempt attempt = it->second;
    by_pid_.erase(it);
    tracked_[attempt].exited = true;
    ProcessEnd end;
    if (WIFSIGNALED(status)) {
      end.signal = WTERMSIG(status);
      end.core_dumped = WCOREDUMP(status);
    } else {
      end.code = WEXITSTATUS(status);
    }
    leaving_.push_back(attempt);
    exits.emplace_back(attempt, end);
  }
  for (const auto& [attempt, end] : exits)
    if (auto it = tracked_.find(attempt); it != tracked_.end()) {
      auto handler = it->second.events.on_exit;
      handler(end);
    }
  if (!leaving_.empty()) check_leaving();
}

void Processes::check_leaving() {
  if (!childless_) look_at_orphans();
  bool left = false;
  std::vector<std::function<void()>> gone;
  std::erase_if(leaving_, [&](Attempt attempt) {
    auto it = tracked_.find(attempt);
    if (!end_leftovers(attempt, it->second)) {
      left = true;
      return false;
    }
    gone.push_back(std::move(it->second.events.on_gone));
    tracked_.erase(it);
    return true;
  });
  for (auto& handler : gone) {
    if (stopped_) return;
    handler();
  }
  if (left && !stopped_) {
    const bool unclear = std::ranges::any_of(orphans_, [](const auto& each) { return each.second.unclear_looks > 0; });
    retry_.expires_after(unclear ? unclear_retry : leftover_retry);
    retry_.async_wait([this](const boost::system::error_code& error) {
      if (!error && !stopped_) reap();
    });
  }
}

// Who of the orphans is whose: by the environment that it was started with; one that has cleared it may be of any attempt that
// ran when it began, and is ended with the last of these.
void Processes::look_at_orphans() {
  for (pid_t pid : children_.list()) {
    if (by_pid_.contains(pid)) continue;
    auto [it, is_new] = orphans_.try_emplace(pid);
    Orphan& orphan = it->second;
    if (!is_new && orphan.unclear_looks == 0) continue;
    const std::string environment = environment_of(pid);
    for (const auto& [attempt, tracked] : tracked_)
      if (has_entries(environment, marks_of(attempt))) orphan.owner = attempt;
    // Empty it may only look, while exec is under way.
    const bool unclear = environment.empty() && orphan.unclear_looks < (is_in_exec(pid) ? most_unclear_looks : most_empty_looks);
    orphan.unclear_looks = unclear ? orphan.unclear_looks + 1 : 0;
    if (is_new && !orphan.owner) {
      for (const auto& entry : list_processes())
        if (entry.pid == pid) orphan.started = entry.started;
    }
  }
}

bool Processes::may_be_of(const Tracked& tracked, const Orphan& orphan) const {
  return orphan.started >= begun_ && orphan.started + clock_tick >= tracked.started;
}

bool Processes::end_leftovers(Attempt attempt, Tracked& tracked) {
  if (childless_) return true;
  bool left = false;
  if (!tracked.group_gone) {
    left = !by_pid_.contains(tracked.pid) && kill(-tracked.pid, SIGKILL) == 0;
    tracked.group_gone = !left;
  }
  for (const auto& [pid, orphan] : orphans_) {
    bool doomed = orphan.owner == attempt;
    if (!orphan.owner && may_be_of(tracked, orphan))
      doomed = std::none_of(tracked_.begin(), tracked_.end(), [&](const auto& other) {
        return other.first != attempt && !other.second.exited && may_be_of(other.second, orphan);
      });
    // Its own children come to us when it is dead, and are seen then.
    if (doomed && kill(pid, SIGKILL) == 0) left = true;
    if (orphan.unclear_looks > 0 && may_be_of(tracked, orphan)) left = true;
  }
  return !left;
}

std::vector<pid_t> Processes::members(Attempt attempt) {
  auto it = tracked_.find(attempt);
  if (it == tracked_.end()) return {};
  look_at_orphans();
  std::vector<pid_t> roots;
  if (!it->second.exited) roots.push_back(it->second.pid);
  for (const auto& [pid, orphan] : orphans_)
    if (orphan.owner == attempt) roots.push_back(pid);
  return tree_below(list_processes(), roots);
}

int Processes::signal(Attempt attempt, int number) {
  auto it = tracked_.find(attempt);
  if (it == tracked_.end()) return 0;
  const pid_t group = it->second.pid;
  const auto all = members(attempt);  // first: a group that dies at once takes the way to its descendants with it
  int reached = kill(-group, number) == 0 ? 1 : 0;
  for (pid_t pid : all)
    if (getpgid(pid) != group && kill(pid, number) == 0) ++reached;
  return reached;
}

}  // namespace flotilla::pilot
