#include "client/amuse/core/names.hpp"

#include <algorithm>
#include <string_view>

namespace flotilla::amuse {
namespace {

[[noreturn]] void refuse(std::string message, std::string hint) {
  FlotillaError::Details details;
  details.code = ErrorCode::invalid_argument;
  details.message = std::move(message);
  details.hint = std::move(hint);
  throw InvalidArgumentError(details);
}

bool is_here(const ResourceRow& row) {
  return row.location.empty() || row.location == "localhost" || row.location == "local" || row.location == "null";
}

}  // namespace

ResourceSpec make_resource_spec(const ResourceRow& row, bool debug) {
  ResourceSpec spec;
  spec.name = row.name;
  spec.scratch_dir = row.tmp_dir;
  spec.gateway = row.gateway;
  spec.debug = debug;
  if (!row.amuse_dir.empty()) spec.env["FLOTILLA_AMUSE_DIR"] = row.amuse_dir;
  if (is_here(row)) {  // whatever the scheduler type says
    spec.driver = "local";
    return spec;
  }
  spec.driver = "ssh";
  spec.location = row.location;
  for (const std::string_view scheme : {"ssh://", "slurm://", "torque://", "gridengine://", "sge://"})
    if (spec.location.starts_with(scheme)) spec.location.erase(0, scheme.size());
  if (row.scheduler_type == "local")
    refuse("resource '" + row.name + "' has the scheduler type 'local' and the location " + row.location,
           "leave the location empty, or use the scheduler type 'ssh'");
  if (row.scheduler_type != "ssh" && !row.scheduler_type.empty())
    refuse("resource '" + row.name + "' asks for the scheduler type '" + row.scheduler_type + "'; there are: local, ssh",
           "use scheduler_type 'ssh' to run on its front end");
  return spec;
}

PilotSpec make_pilot_spec(const PilotRow& row, bool debug) {
  const auto check = [&](int value, const char* what) {
    if (value < 1) refuse("a pilot on '" + row.resource_name + "' has " + what + " " + std::to_string(value), "it must be 1 or more");
    return static_cast<unsigned>(value);
  };
  if (!row.queue_name.empty())
    refuse("a pilot on '" + row.resource_name + "' asks for the queue '" + row.queue_name + "', and pilots here do not go into queues",
           "leave queue_name empty");
  PilotSpec spec;
  spec.resource = row.resource_name;
  spec.node_count = check(row.node_count, "node_count");
  spec.slots_per_node = check(row.slots_per_node, "slots_per_node");
  spec.time = std::chrono::minutes(check(row.time_minutes, "time"));
  spec.label = row.label;
  spec.debug = debug;
  std::string_view rest = row.options;
  while (!rest.empty()) {
    const auto end = std::min(rest.find(';'), rest.size());
    const auto one = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (one.empty()) continue;
    const auto equals = one.find('=');
    if (equals == std::string_view::npos)
      refuse("the pilot's options have '" + std::string(one) + "', which is no key=value", "write key=value;key=value");
    spec.options[std::string(one.substr(0, equals))] = one.substr(equals + 1);
  }
  return spec;
}

std::string pilot_status(PilotState state) {
  switch (state) {
    case PilotState::submitted:
    case PilotState::starting: return "WAITING";
    case PilotState::running:
    case PilotState::unreachable:
    case PilotState::draining: return "RUNNING";
    case PilotState::finished: return "DONE";
    case PilotState::failed: return "FAILED";
  }
  return "FAILED";
}

std::string job_status(JobState state) {
  switch (state) {
    case JobState::submitted:
    case JobState::queued: return "PENDING";
    case JobState::dispatched: return "INITIALIZING";
    case JobState::running: return "RUNNING";
    case JobState::finished: return "DONE";
    case JobState::failed:
    case JobState::canceled: return "FAILED";
  }
  return "FAILED";
}

}  // namespace flotilla::amuse
