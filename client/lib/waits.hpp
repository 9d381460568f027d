// Why what a client waits for does not begin: told by DaemonOptions::on_waiting, once for each reason. A program that asks for a label
// which no pilot has would hang without a word.
#pragma once

#include <chrono>
#include <condition_variable>
#include <flotilla/client.hpp>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "flotilla/v1/client.pb.h"

namespace flotilla::detail {

// The waits of one session. A thread asks the daemon about those that last; it sleeps as long as none is old enough, so that a short
// wait costs an entry in a list.
class Watch {
 public:
  using Clock = std::chrono::steady_clock;
  // Of a job, or of the call that starts it; nullopt: it is not known yet which job it is. Called on the thread.
  using Ask = std::function<std::optional<v1::WhyJobRequest>()>;
  // nullopt: the daemon does not say (it restarts, or the job is over).
  using Why = std::function<std::optional<v1::WhyJobReply>(const v1::WhyJobRequest&)>;

  Watch(Why why, WaitHandler tell);
  ~Watch();  // joins the thread; no wait is left

  // While it lives, the wait is watched. It must not outlive the Watch.
  class Wait {
   public:
    Wait(Watch& watch, Ask ask, bool worker);
    ~Wait();
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;

   private:
    struct Entry;
    friend class Watch;
    Watch& watch_;
    std::list<Entry>::iterator at_;
  };

 private:
  void run();
  // Whether this is worth a line to the user now.
  static bool worth_telling(const Wait::Entry& wait, const v1::WhyJobReply& reply, Clock::time_point now);
  void forget(Wait::Entry& wait);

  const Why why_;
  const WaitHandler tell_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::list<Wait::Entry> waits_;
  std::uint64_t last_number_ = 0;
  std::map<std::string, std::size_t> told_;  // a thousand jobs that wait for the same tell it once
  Clock::time_point wakes_at_{};             // at the latest; the thread is not told of waits that end
  bool closed_ = false;
  std::thread thread_;
};

struct Watch::Wait::Entry {
  std::uint64_t number = 0;  // an entry may be gone when the daemon has answered
  Ask ask;
  bool worker = false;
  Clock::time_point began, next_look;
  Clock::duration pause{};
  std::string told;  // the reason that was told last
};

inline Watch::Ask why_of(std::uint64_t job) {
  return [job] {
    v1::WhyJobRequest request;
    request.set_id(job);
    return std::optional(request);
  };
}
inline Watch::Ask why_of_start(std::string start_key) {
  return [start_key = std::move(start_key)] {
    v1::WhyJobRequest request;
    request.set_start_key(start_key);
    return std::optional(request);
  };
}

}  // namespace flotilla::detail
