// The attempts that this node holds: which may start, which end, what the inventory says. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "flotilla/v1/types.pb.h"
#include "proto/base/ids.hpp"

namespace flotilla::pilot {

// waiting   came with the daemon's prefill; its slots are not free yet
// preparing has its slots; folder and input files are being made
// running   its process lives
// leaving   its process ended; what it left behind is being ended, its last output read
// ended     kept until the daemon says that it may be forgotten
enum class Phase { waiting, preparing, running, leaving, ended };

enum class AttemptEvent { admitted, started, exited, gone, not_started };

struct AttemptTransition {
  Phase from;
  AttemptEvent event;
  Phase to;
};
constexpr AttemptTransition attempt_transitions[] = {
    {Phase::waiting, AttemptEvent::admitted, Phase::preparing},
    {Phase::waiting, AttemptEvent::not_started, Phase::ended},  // canceled or refused before it had slots
    {Phase::preparing, AttemptEvent::started, Phase::running},
    {Phase::preparing, AttemptEvent::not_started, Phase::ended},
    {Phase::running, AttemptEvent::exited, Phase::leaving},
    {Phase::leaving, AttemptEvent::gone, Phase::ended},
};
std::optional<Phase> next_phase(Phase from, AttemptEvent event);

// Why an attempt is being ended from outside. The first order counts.
struct EndOrder {
  v1::ExitKind kind = v1::CANCELED_BY_USER;
  std::string message;  // detail for the sentence, may be empty
  std::int64_t grace_ms = 0;
};

struct ProcessEnd {
  int code = 0;
  int signal = 0;  // 0 = it exited with `code`
  bool core_dumped = false;
};

struct Ending {
  v1::JobState state = v1::JOB_FAILED;
  v1::ExitReason reason;  // without stderr_tail
};

struct JobFacts {
  std::string what;  // "command true", "worker gravity_worker"
  std::string host;
  bool worker = false;
  bool connected = false;  // a worker that had connected back
  std::int64_t time_limit_ms = 0;
  std::int64_t start_timeout_ms = 0;
};
JobFacts describe_job(const v1::JobSpec& spec, const std::string& host);
// How a process that ran has ended, as a state and a complete sentence.
Ending describe_end(const JobFacts& job, const ProcessEnd& end, const std::optional<EndOrder>& order);
// An attempt whose process never ran.
Ending describe_not_started(const JobFacts& job, const EndOrder& order);

std::uint32_t slots_of(const v1::JobSpec& spec);

class AttemptTable {
 public:
  struct Held {
    Attempt id;
    Phase phase = Phase::waiting;
    std::uint32_t slots = 0;
    std::optional<Attempt> beside;
    std::optional<EndOrder> order;
    Ending ending;               // when ended
    std::uint64_t sequence = 0;  // order of arrival
  };
  enum class Start { accepted, already_held, refused, given_back };

  explicit AttemptTable(std::uint32_t slots) : slots_(slots) {}

  // refused: `why` is a sentence; the attempt is not held. given_back: neither, we take no new ones.
  Start start(Attempt id, const v1::JobSpec& spec, std::optional<Attempt> beside, std::string& why);
  // Those that may start now, in order of arrival; they have their slots from here on. One that needs no slot passes
  // those that wait for some; among the others nobody overtakes, so that a wide job does not starve.
  std::vector<Attempt> admit();

  enum class EndStep { unknown, already_ended, was_waiting, order_noted, order_stands };
  // was_waiting: it is ended now, as `order` says. order_noted: the owner has to end its process (or its preparation).
  EndStep end(Attempt id, EndOrder order);

  // Gives it back: true when it waited, and is held no more.
  bool retract(Attempt id);
  std::vector<Attempt> waiting() const;  // in order of arrival

  void on_started(Attempt id);
  void on_exited(Attempt id);
  // Its last trace is gone; its slots are free.
  void on_ended(Attempt id, Ending ending);
  void forget(Attempt id);  // only what has ended

  const Held* find(Attempt id) const;
  const std::map<Attempt, Held>& all() const { return held_; }
  std::uint32_t slots() const { return slots_; }
  std::uint32_t slots_used() const { return used_; }
  bool busy() const { return live_ > 0; }  // something waits, is prepared, runs or leaves
  std::size_t live() const { return live_; }

  void drain() { draining_ = true; }
  bool draining() const { return draining_; }

 private:
  Held* get(Attempt id);
  void move(Held& held, AttemptEvent event);

  std::uint32_t slots_;
  std::uint32_t used_ = 0;
  std::size_t live_ = 0;
  bool draining_ = false;
  std::uint64_t arrivals_ = 0;
  std::map<Attempt, Held> held_;
  std::map<std::uint64_t, Attempt> waiting_;  // by arrival
};

v1::JobState state_of(const AttemptTable::Held& held);

}  // namespace flotilla::pilot
