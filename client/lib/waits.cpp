#include "client/lib/waits.hpp"

#include <algorithm>
#include <vector>

namespace flotilla::detail {
namespace {

using namespace std::chrono_literals;

constexpr auto first_look = 2s;   // what begins sooner is not worth a line
constexpr auto last_pause = 60s;  // pauses between two looks double up to this
constexpr auto patience = 8s;     // what passes by itself (a pilot that starts, slots that others hold) is told later still

bool waiting(v1::JobState state) { return state == v1::JOB_SUBMITTED || state == v1::JOB_QUEUED; }

}  // namespace

Watch::Watch(Why why, WaitHandler tell) : why_(std::move(why)), tell_(std::move(tell)) {}
Watch::~Watch() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

Watch::Wait::Wait(Watch& watch, Ask ask, bool worker) : watch_(watch) {
  const auto now = Clock::now();
  std::lock_guard lock(watch.mutex_);
  at_ = watch.waits_.insert(watch.waits_.end(), Entry{++watch.last_number_, std::move(ask), worker, now, now + first_look, first_look, {}});
  if (!watch.thread_.joinable()) watch.thread_ = std::thread([&watch] { watch.run(); });
  else if (at_->next_look < watch.wakes_at_) watch.changed_.notify_all();
}
Watch::Wait::~Wait() {
  std::lock_guard lock(watch_.mutex_);
  watch_.forget(*at_);
  watch_.waits_.erase(at_);
}

void Watch::forget(Wait::Entry& wait) {
  if (const auto at = told_.find(wait.told); at != told_.end() && --at->second == 0) told_.erase(at);
  wait.told.clear();
}

bool Watch::worth_telling(const Wait::Entry& wait, const v1::WhyJobReply& reply, Clock::time_point now) {
  if (!waiting(reply.state()) || wait.told == reply.sentence()) return false;
  if (!reply.transient()) return true;
  // Commands queue up by the thousand, that is no news. Who waits for a worker may hold the slots itself that it waits for.
  return wait.worker && now - wait.began >= patience;
}

void Watch::run() {
  std::unique_lock lock(mutex_);
  while (!closed_) {
    wakes_at_ = Clock::time_point::max();
    std::vector<std::pair<std::uint64_t, Ask>> due;
    const auto now = Clock::now();
    for (auto& wait : waits_) {
      if (wait.next_look <= now) {
        wait.pause = std::min<Clock::duration>(2 * wait.pause, last_pause);
        wait.next_look = now + wait.pause;
        due.emplace_back(wait.number, wait.ask);
      }
      wakes_at_ = std::min(wakes_at_, wait.next_look);
    }
    if (due.empty()) {
      if (wakes_at_ == Clock::time_point::max()) changed_.wait(lock);
      else changed_.wait_until(lock, wakes_at_);
      continue;
    }
    for (const auto& [number, ask] : due) {
      if (closed_) return;
      lock.unlock();
      const auto request = ask();
      const auto reply = request ? why_(*request) : std::nullopt;
      lock.lock();
      const auto wait = std::ranges::find(waits_, number, &Wait::Entry::number);
      if (!reply || wait == waits_.end() || !worth_telling(*wait, *reply, Clock::now())) continue;
      forget(*wait);
      wait->told = reply->sentence();
      if (++told_[wait->told] > 1) continue;
      lock.unlock();
      try {
        tell_({reply->job(), reply->sentence()});
      } catch (...) {
        // There is nobody here who could take the handler's exception.
      }
      lock.lock();
    }
  }
}

}  // namespace flotilla::detail
