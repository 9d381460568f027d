#include "client/lib/convert.hpp"

namespace flotilla {

std::string_view to_string(HubState state) {
  constexpr std::string_view names[] = {"none",     "connecting", "authenticating", "uploading",
                                        "starting", "connected",  "unreachable",    "failed"};
  const auto index = static_cast<std::size_t>(state);
  return index < std::size(names) ? names[index] : "unknown";
}
std::string_view to_string(PilotState state) {
  constexpr std::string_view names[] = {"submitted", "starting", "running", "unreachable", "draining", "finished", "failed"};
  const auto index = static_cast<std::size_t>(state);
  return index < std::size(names) ? names[index] : "unknown";
}
std::string_view to_string(JobState state) {
  constexpr std::string_view names[] = {"submitted", "queued", "dispatched", "running", "finished", "failed", "canceled"};
  const auto index = static_cast<std::size_t>(state);
  return index < std::size(names) ? names[index] : "unknown";
}
std::string_view to_string(ExitKind kind) {
  constexpr std::string_view names[] = {"none",          "exited",       "signaled",   "time_limit",  "canceled",    "queue_timeout",
                                        "start_timeout", "start_failed", "pilot_lost", "pilot_ended", "client_gone", "refused"};
  const auto index = static_cast<std::size_t>(kind);
  return index < std::size(names) ? names[index] : "unknown";
}

namespace detail {
namespace {

template <class Range>
void put_all(const Range& from, google::protobuf::RepeatedPtrField<std::string>* to) {
  to->Add(from.begin(), from.end());
}
void put_all(const std::map<std::string, std::string>& from, google::protobuf::Map<std::string, std::string>* to) {
  to->insert(from.begin(), from.end());
}

std::optional<Moment> moment(std::int64_t ms) {
  if (ms == 0) return std::nullopt;
  return Moment(Duration(ms));
}

// What both kinds of job have.
template <class Spec>
v1::JobSpec common(const Spec& spec, const std::string& client_folder) {
  v1::JobSpec wire;
  wire.set_name(spec.name);
  wire.set_label(spec.label);
  wire.set_processes(spec.processes);
  wire.set_threads(spec.threads);
  put_all(spec.env, wire.mutable_env());
  wire.set_working_folder(spec.working_folder);
  wire.set_client_folder(client_folder);
  wire.set_time_limit_ms(spec.time_limit.count());
  wire.set_queue_timeout_ms(spec.queue_timeout.count());
  wire.set_start_timeout_ms(spec.start_timeout.count());
  wire.set_kill_grace_ms(spec.kill_grace.count());
  wire.set_private_folder(spec.private_folder);
  wire.set_debug(spec.debug);
  wire.set_pilot(spec.pilot);
  return wire;
}

}  // namespace

v1::ResourceSpec to_wire(const ResourceSpec& spec) {
  v1::ResourceSpec wire;
  wire.set_name(spec.name);
  wire.set_location(spec.location);
  wire.set_driver(spec.driver);
  wire.set_gateway(spec.gateway);
  wire.set_scratch_dir(spec.scratch_dir);
  put_all(spec.env, wire.mutable_env());
  put_all(spec.setup, wire.mutable_setup());
  wire.set_transport(spec.transport);
  put_all(spec.hosts, wire.mutable_hosts());
  put_all(spec.options, wire.mutable_options());
  wire.set_debug(spec.debug);
  wire.set_setup_timeout_ms(spec.setup_timeout.count());
  return wire;
}

v1::PilotSpec to_wire(const PilotSpec& spec) {
  v1::PilotSpec wire;
  wire.set_resource(spec.resource);
  wire.set_node_count(spec.node_count);
  wire.set_slots_per_node(spec.slots_per_node);
  wire.set_time_ms(spec.time.count());
  wire.set_label(spec.label);
  put_all(spec.options, wire.mutable_options());
  wire.set_idle_ms(spec.idle.count() < 0 ? -1 : spec.idle.count());
  wire.set_cutoff_ms(spec.cutoff.count());
  wire.set_debug(spec.debug);
  return wire;
}

v1::JobSpec to_wire(const CommandSpec& spec, const std::string& client_folder) {
  v1::JobSpec wire = common(spec, client_folder);
  auto& command = *wire.mutable_command();
  put_all(spec.argv, command.mutable_argv());
  command.set_stdin_data(spec.standard_input);
  command.set_stdin_open(spec.open_input);
  command.set_stdout_file(spec.stdout_file);
  command.set_stderr_file(spec.stderr_file);
  command.set_merge_stderr(spec.merge_stderr);
  return wire;
}

v1::JobSpec to_wire(const WorkerSpec& spec, const std::string& client_folder) {
  v1::JobSpec wire = common(spec, client_folder);
  auto& worker = *wire.mutable_worker();
  worker.set_executable(spec.executable);
  put_all(spec.args, worker.mutable_args());
  worker.set_mpi(spec.mpi);
  worker.set_stdout_file(spec.stdout_file);
  worker.set_stderr_file(spec.stderr_file);
  return wire;
}

DaemonInfo from_wire(const v1::DaemonInfo& wire) {
  DaemonInfo info;
  info.build = wire.build();
  info.pid = static_cast<int>(wire.pid());
  info.host = wire.host();
  info.instance = wire.instance();
  info.started = Moment(Duration(wire.started_ms()));
  info.socket = wire.socket();
  info.web_url = wire.web_url();
  info.state_dir = wire.state_dir();
  info.log_file = wire.log_file();
  info.config_file = wire.config_file();
  info.resources = wire.resources();
  info.pilots_running = wire.pilots_running();
  info.jobs_waiting = wire.jobs_waiting();
  info.jobs_running = wire.jobs_running();
  return info;
}

ResourceInfo from_wire(const v1::Resource& wire) {
  ResourceInfo info;
  const auto& spec = wire.spec();
  info.spec = {spec.name(),
               spec.location(),
               spec.driver(),
               spec.gateway(),
               spec.scratch_dir(),
               {spec.env().begin(), spec.env().end()},
               {spec.setup().begin(), spec.setup().end()},
               spec.transport(),
               {spec.hosts().begin(), spec.hosts().end()},
               {spec.options().begin(), spec.options().end()},
               spec.debug(),
               Duration(spec.setup_timeout_ms())};
  info.hub_state = static_cast<HubState>(wire.hub_state());
  info.hub_message = wire.hub_message();
  info.hub_host = wire.hub_host();
  info.hub_build = wire.hub_build();
  info.round_trip = std::chrono::ceil<Duration>(std::chrono::microseconds(wire.round_trip_us()));
  return info;
}

PilotInfo from_wire(const v1::Pilot& wire) {
  PilotInfo info;
  info.id = wire.id();
  const auto& spec = wire.spec();
  info.spec = {spec.resource(),
               spec.node_count(),
               spec.slots_per_node(),
               Duration(spec.time_ms()),
               spec.label(),
               {spec.options().begin(), spec.options().end()},
               Duration(spec.idle_ms()),
               Duration(spec.cutoff_ms()),
               spec.debug()};
  info.state = static_cast<PilotState>(wire.state());
  info.message = wire.message();
  for (const auto& node : wire.nodes())
    info.nodes.push_back({node.index(), node.host(), node.slots(), node.slots_used(), node.connected(), node.message()});
  info.slots = wire.slots();
  info.slots_used = wire.slots_used();
  info.jobs_running = wire.jobs_running();
  info.jobs_done = wire.jobs_done();
  info.submitted = moment(wire.submitted_ms());
  info.running = moment(wire.running_ms());
  info.ended = moment(wire.ended_ms());
  info.ends_at = moment(wire.ends_at_ms());
  return info;
}

JobInfo from_wire(const v1::Job& wire) {
  JobInfo info;
  info.id = wire.id();
  info.name = wire.spec().name();
  info.label = wire.spec().label();
  info.state = static_cast<JobState>(wire.state());
  info.message = wire.message();
  info.exit = from_wire(wire.exit());
  info.attempt = wire.attempt();
  info.pilot = wire.pilot();
  info.host = wire.host();
  info.pid = static_cast<int>(wire.pid());
  info.folder = wire.folder();
  info.is_worker = wire.spec().has_worker();
  info.pilot_unreachable = wire.pilot_unreachable();
  info.stdout_bytes = wire.stdout_bytes();
  info.stderr_bytes = wire.stderr_bytes();
  info.calls = wire.channel().calls();
  info.bytes_to_worker = wire.channel().bytes_to_worker();
  info.bytes_from_worker = wire.channel().bytes_from_worker();
  info.submitted = moment(wire.submitted_ms());
  info.queued = moment(wire.queued_ms());
  info.dispatched = moment(wire.dispatched_ms());
  info.running = moment(wire.running_ms());
  info.ended = moment(wire.ended_ms());
  return info;
}

ExitReason from_wire(const v1::ExitReason& wire) {
  return {
      static_cast<ExitKind>(wire.kind()), wire.code(), wire.signal(), wire.message(), wire.stderr_tail(), wire.host(), wire.core_dumped()};
}

TestStep from_wire(const v1::TestStep& wire) {
  return {wire.name(), static_cast<TestStep::Status>(wire.status()), wire.message(), wire.hint(), Duration(wire.took_ms())};
}

FlotillaError::Details from_wire(const v1::Error& wire) {
  FlotillaError::Details details;
  details.code = wire.code() == v1::ERROR_UNSPECIFIED ? ErrorCode::internal : static_cast<ErrorCode>(wire.code());
  details.message = wire.message();
  details.hint = wire.hint();
  details.retry = wire.retry();
  details.faults.assign(wire.faults().begin(), wire.faults().end());
  if (wire.has_exit()) details.exit = from_wire(wire.exit());
  return details;
}

}  // namespace detail
}  // namespace flotilla
