#include "pilot/core/attempt_table.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace flotilla::pilot {
namespace {

std::string seconds_text(std::int64_t ms) {
  if (ms % 1000 == 0) return std::to_string(ms / 1000) + " s";
  return std::to_string(ms) + " ms";
}

std::string signal_text(int number) {
  const char* name = sigabbrev_np(number);
  std::string text = "signal " + std::to_string(number);
  if (name) text += std::string(" (SIG") + name + ")";
  return text;
}

std::string last_part(const std::string& path) {
  const auto slash = path.find_last_of('/');
  return slash == std::string::npos || slash + 1 == path.size() ? path : path.substr(slash + 1);
}

std::string with_detail(std::string sentence, const std::string& detail) {
  if (!detail.empty()) sentence += ": " + detail;
  return sentence;
}

std::string order_sentence(const JobFacts& job, const EndOrder& order, const std::string& subject) {
  switch (order.kind) {
    case v1::TIME_LIMIT: return with_detail(subject + " was ended at its time limit of " + seconds_text(job.time_limit_ms), order.message);
    case v1::START_TIMEOUT:
      return with_detail(subject + (job.worker ? " did not connect back within " : " did not have its input files within ") +
                             seconds_text(job.start_timeout_ms),
                         order.message);
    case v1::CLIENT_GONE: return with_detail(subject + " was ended because its client went away", order.message);
    case v1::PILOT_ENDED: return with_detail(subject + " was ended with its pilot", order.message);
    case v1::CANCELED_BY_USER: return with_detail(subject + " was canceled", order.message);
    default: return order.message.empty() ? subject + " was ended" : order.message;
  }
}

v1::JobState order_state(v1::ExitKind kind) {
  if (kind == v1::CANCELED_BY_USER) return v1::JOB_CANCELED;
  if (kind == v1::CLIENT_GONE) return v1::JOB_FINISHED;  // that is how a worker ends
  return v1::JOB_FAILED;
}

}  // namespace

std::optional<Phase> next_phase(Phase from, AttemptEvent event) {
  for (const auto& row : attempt_transitions)
    if (row.from == from && row.event == event) return row.to;
  return std::nullopt;
}

std::uint32_t slots_of(const v1::JobSpec& spec) {
  if (spec.beside_job() != 0 || spec.no_slots()) return 0;
  return std::max(1u, spec.processes()) * std::max(1u, spec.threads());
}

JobFacts describe_job(const v1::JobSpec& spec, const std::string& host) {
  JobFacts facts;
  facts.host = host;
  facts.worker = spec.has_worker();
  facts.time_limit_ms = spec.time_limit_ms();
  facts.start_timeout_ms = spec.start_timeout_ms();
  if (facts.worker) facts.what = "worker " + (spec.name().empty() ? last_part(spec.worker().executable()) : spec.name());
  else if (spec.has_command() && spec.command().argv_size() > 0)
    facts.what = "command " + (spec.name().empty() ? last_part(spec.command().argv(0)) : spec.name());
  else facts.what = "job";
  return facts;
}

Ending describe_end(const JobFacts& job, const ProcessEnd& end, const std::optional<EndOrder>& order) {
  Ending ending;
  auto& reason = ending.reason;
  const std::string subject = job.what + " on " + job.host;
  reason.set_host(job.host);
  reason.set_code(end.code);
  reason.set_signal(end.signal);
  reason.set_core_dumped(end.core_dumped);
  if (order) {
    reason.set_kind(order->kind);
    reason.set_message(order_sentence(job, *order, subject));
    ending.state = order_state(order->kind);
    return ending;
  }
  std::string how = end.signal != 0 ? "was killed by " + signal_text(end.signal) + (end.core_dumped ? ", core dumped" : "")
                                    : "exited with code " + std::to_string(end.code);
  if (job.worker && !job.connected) {
    reason.set_kind(v1::START_FAILED);
    reason.set_message(subject + " " + how + " before it connected back");
    ending.state = v1::JOB_FAILED;
    return ending;
  }
  reason.set_kind(end.signal != 0 ? v1::SIGNALED : v1::EXITED);
  reason.set_message(subject + " " + how);
  ending.state = end.signal == 0 && end.code == 0 ? v1::JOB_FINISHED : v1::JOB_FAILED;
  return ending;
}

Ending describe_not_started(const JobFacts& job, const EndOrder& order) {
  Ending ending;
  ending.reason.set_host(job.host);
  ending.reason.set_kind(order.kind);
  ending.reason.set_message(order.kind == v1::START_FAILED || order.kind == v1::REFUSED
                                ? order.message
                                : order_sentence(job, order, job.what + " on " + job.host) + " (it had not started)");
  ending.state = order_state(order.kind);
  return ending;
}

AttemptTable::Held* AttemptTable::get(Attempt id) {
  auto it = held_.find(id);
  return it == held_.end() ? nullptr : &it->second;
}
const AttemptTable::Held* AttemptTable::find(Attempt id) const {
  auto it = held_.find(id);
  return it == held_.end() ? nullptr : &it->second;
}

void AttemptTable::move(Held& held, AttemptEvent event) {
  const auto to = next_phase(held.phase, event);
  if (!to) std::abort();  // a defect: the owner's order of events is wrong
  if (held.phase == Phase::waiting) waiting_.erase(held.sequence);
  if (*to == Phase::preparing) used_ += held.slots;
  if (*to == Phase::ended) {
    if (held.phase != Phase::waiting) used_ -= held.slots;
    --live_;
  }
  held.phase = *to;
}

AttemptTable::Start AttemptTable::start(Attempt id, const v1::JobSpec& spec, std::optional<Attempt> beside, std::string& why) {
  if (find(id)) return Start::already_held;
  const std::uint32_t slots = slots_of(spec);
  if (slots > slots_) {
    why = "job " + std::to_string(id.job.value) + " needs " + std::to_string(slots) + " slots, this node has " + std::to_string(slots_);
    return Start::refused;
  }
  if (draining_ && beside) {  // it has no other place
    why = "the pilot takes no new jobs";
    return Start::refused;
  }
  if (draining_) return Start::given_back;
  if (beside) {
    const Held* host = find(*beside);
    if (!host || host->phase != Phase::running) {
      why = "job " + std::to_string(beside->job.value) + " does not run here (any more)";
      return Start::refused;
    }
  }
  Held held;
  held.id = id;
  held.slots = slots;
  held.beside = beside;
  held.sequence = ++arrivals_;
  waiting_.emplace(held.sequence, id);
  held_.emplace(id, std::move(held));
  ++live_;
  return Start::accepted;
}

std::vector<Attempt> AttemptTable::admit() {
  std::vector<Attempt> ready;
  bool blocked = false;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Held& held = *get(it->second);
    ++it;  // move() takes it out of waiting_
    if (held.slots > 0 && (blocked || used_ + held.slots > slots_)) {
      blocked = true;
      continue;
    }
    move(held, AttemptEvent::admitted);
    ready.push_back(held.id);
  }
  return ready;
}

AttemptTable::EndStep AttemptTable::end(Attempt id, EndOrder order) {
  Held* held = get(id);
  if (!held) return EndStep::unknown;
  if (held->phase == Phase::ended) return EndStep::already_ended;
  if (held->phase == Phase::leaving || held->order) return EndStep::order_stands;
  held->order = std::move(order);
  return held->phase == Phase::waiting ? EndStep::was_waiting : EndStep::order_noted;
}

bool AttemptTable::retract(Attempt id) {
  const auto it = held_.find(id);
  if (it == held_.end() || it->second.phase != Phase::waiting) return false;
  waiting_.erase(it->second.sequence);
  held_.erase(it);
  --live_;
  return true;
}

std::vector<Attempt> AttemptTable::waiting() const {
  std::vector<Attempt> all;
  for (const auto& [sequence, id] : waiting_) all.push_back(id);
  return all;
}

void AttemptTable::on_started(Attempt id) { move(*get(id), AttemptEvent::started); }
void AttemptTable::on_exited(Attempt id) { move(*get(id), AttemptEvent::exited); }

void AttemptTable::on_ended(Attempt id, Ending ending) {
  Held& held = *get(id);
  move(held, held.phase == Phase::leaving ? AttemptEvent::gone : AttemptEvent::not_started);
  held.ending = std::move(ending);
}

void AttemptTable::forget(Attempt id) {
  Held* held = get(id);
  if (held && held->phase == Phase::ended) held_.erase(id);
}

v1::JobState state_of(const AttemptTable::Held& held) {
  switch (held.phase) {
    case Phase::waiting:
    case Phase::preparing: return v1::JOB_DISPATCHED;
    case Phase::running:
    case Phase::leaving: return v1::JOB_RUNNING;
    case Phase::ended: break;
  }
  return held.ending.state;
}

}  // namespace flotilla::pilot
