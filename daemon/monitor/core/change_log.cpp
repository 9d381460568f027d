#include "daemon/monitor/core/change_log.hpp"

namespace flotilla::monitor {
namespace {

constexpr int most_shown_arguments = 24;
constexpr std::size_t most_shown_argument = 256;  // bytes

// Cuts at a character's boundary: the text stays UTF-8.
void shorten(std::string& text, std::size_t most) {
  if (text.size() <= most) return;
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0) == 0x80) --most;
  text.resize(most);
  text += "…";
}

template <class Repeated>
void copy_arguments(const Repeated& from, Repeated* to) {
  for (int i = 0; i < from.size() && i < most_shown_arguments; ++i) {
    auto* argument = to->Add();
    *argument = from[i];
    shorten(*argument, most_shown_argument);
  }
  if (from.size() > most_shown_arguments) *to->Add() = "…";
}

void slim_spec(const v1::JobSpec& from, v1::JobSpec& to) {
  to.set_name(from.name());
  to.set_label(from.label());
  to.set_processes(from.processes());
  to.set_threads(from.threads());
  to.set_working_folder(from.working_folder());
  to.set_client_folder(from.client_folder());
  to.set_time_limit_ms(from.time_limit_ms());
  to.set_queue_timeout_ms(from.queue_timeout_ms());
  to.set_start_timeout_ms(from.start_timeout_ms());
  to.set_kill_grace_ms(from.kill_grace_ms());
  to.set_private_folder(from.private_folder());
  to.set_debug(from.debug());
  to.set_pilot(from.pilot());
  to.set_beside_job(from.beside_job());
  to.set_no_slots(from.no_slots());
  to.set_cancel_with_client(from.cancel_with_client());
  if (from.has_command()) {
    auto* command = to.mutable_command();
    copy_arguments(from.command().argv(), command->mutable_argv());
    command->set_stdin_open(from.command().stdin_open());
    command->set_stdout_file(from.command().stdout_file());
    command->set_stderr_file(from.command().stderr_file());
    command->set_merge_stderr(from.command().merge_stderr());
    command->set_terminal(from.command().terminal());
  } else if (from.has_worker()) {
    auto* worker = to.mutable_worker();
    worker->set_executable(from.worker().executable());
    shorten(*worker->mutable_executable(), most_shown_argument);
    copy_arguments(from.worker().args(), worker->mutable_args());
    worker->set_mpi(from.worker().mpi());
    worker->set_stdout_file(from.worker().stdout_file());
    worker->set_stderr_file(from.worker().stderr_file());
  }
}

void slim_job(const v1::Job& from, v1::Job& to) {
  to.set_id(from.id());
  slim_spec(from.spec(), *to.mutable_spec());
  to.set_state(from.state());
  to.set_attempt(from.attempt());
  to.set_pilot(from.pilot());
  to.set_node(from.node());
  to.set_host(from.host());
  to.set_pid(from.pid());
  to.set_folder(from.folder());
  if (from.has_exit()) {
    auto* exit = to.mutable_exit();
    exit->set_kind(from.exit().kind());
    exit->set_code(from.exit().code());
    exit->set_signal(from.exit().signal());
    exit->set_message(from.exit().message());
    exit->set_host(from.exit().host());
    exit->set_core_dumped(from.exit().core_dumped());
  }
  to.set_message(from.message());
  to.set_submitted_ms(from.submitted_ms());
  to.set_queued_ms(from.queued_ms());
  to.set_dispatched_ms(from.dispatched_ms());
  to.set_running_ms(from.running_ms());
  to.set_ended_ms(from.ended_ms());
  to.set_stdout_bytes(from.stdout_bytes());
  to.set_stderr_bytes(from.stderr_bytes());
  to.set_pilot_unreachable(from.pilot_unreachable());
  to.set_prefilled(from.prefilled());
  if (from.has_channel()) *to.mutable_channel() = from.channel();
  to.set_connected(from.connected());
}

}  // namespace

std::string key_of(const v1::Change& change) {
  switch (change.what_case()) {
    case v1::Change::kResource: return "resource " + change.resource().spec().name();
    case v1::Change::kResourceRemoved: return "resource " + change.resource_removed();
    case v1::Change::kPilot: return "pilot " + std::to_string(change.pilot().id());
    case v1::Change::kPilotRemoved: return "pilot " + std::to_string(change.pilot_removed());
    case v1::Change::kJob: return "job " + std::to_string(change.job().id());
    case v1::Change::kSnapshotEnd:
    case v1::Change::WHAT_NOT_SET: break;
  }
  return {};
}

v1::Change slim(const v1::Change& change) {
  v1::Change out;
  if (change.has_job()) {
    slim_job(change.job(), *out.mutable_job());
  } else {
    out = change;
    if (out.has_resource()) out.mutable_resource()->mutable_spec()->clear_env();
  }
  return out;
}

v1::Job detail(const v1::Job& job) {
  v1::Job out = job;
  auto* spec = out.mutable_spec();
  for (auto& variable : *spec->mutable_env()) variable.second.clear();
  if (spec->has_command()) spec->mutable_command()->clear_stdin_data();
  return out;
}

void ChangeLog::drop(std::map<std::uint64_t, Entry>::iterator entry) {
  bytes_ -= entry->second.bytes;
  by_key_.erase(entry->second.key);
  entries_.erase(entry);
}

void ChangeLog::add(v1::Change change) {
  auto key = key_of(change);
  if (key.empty()) return;
  if (auto old = by_key_.find(key); old != by_key_.end()) drop(entries_.find(old->second));
  ++version_;
  auto bytes = change.ByteSizeLong() + key.size() + sizeof(Entry);
  by_key_[key] = version_;
  entries_.emplace(version_, Entry{std::move(change), std::move(key), bytes});
  bytes_ += bytes;
  while (entries_.size() > most_entries_ || bytes_ > most_bytes_) {
    floor_ = entries_.begin()->first;
    drop(entries_.begin());
  }
}

void ChangeLog::skip() {
  ++version_;  // a position from before the gap is recognised
  floor_ = version_;
  entries_.clear();
  by_key_.clear();
  bytes_ = 0;
}

std::vector<const v1::Change*> ChangeLog::after(std::uint64_t& version, std::size_t most) const {
  std::vector<const v1::Change*> out;
  auto entry = entries_.upper_bound(version);
  for (; entry != entries_.end() && out.size() < most; ++entry) {
    out.push_back(&entry->second.change);
    version = entry->first;
  }
  if (entry == entries_.end()) version = version_;
  return out;
}

}  // namespace flotilla::monitor
