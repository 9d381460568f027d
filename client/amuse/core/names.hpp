// AMUSE's words for what Flotilla has. Pure; what cannot be said in Flotilla's words is an InvalidArgumentError.
#pragma once

#include <string>
#include <string_view>

#include "flotilla/client.hpp"

namespace flotilla::amuse {

struct ResourceRow {
  std::string name, location, amuse_dir, tmp_dir, gateway, scheduler_type = "ssh", hub_queue_name;
  int hub_time_minutes = 1;
};
struct PilotRow {
  std::string resource_name, queue_name;
  int node_count = 1, time_minutes = 60, slots_per_node = 1;
  std::string label = "default", options;
};

// As amuse_dir: the codes are sent from here with all that they need.
inline constexpr std::string_view bundle_word = "bundle";

ResourceSpec make_resource_spec(const ResourceRow& row, bool debug);
PilotSpec make_pilot_spec(const PilotRow& row, bool debug);
std::string pilot_status(PilotState state);  // WAITING, RUNNING, DONE, FAILED
std::string job_status(JobState state);      // PENDING, INITIALIZING, RUNNING, DONE, FAILED

}  // namespace flotilla::amuse
