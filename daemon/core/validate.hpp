// Descriptions are checked before anything is done: all faults at once, each naming its key.
#pragma once

#include "daemon/core/state.hpp"
#include "proto/base/result.hpp"

namespace flotilla::daemon {

// Fills in defaults (driver, transport) and checks. `resources`: for the gateway, which must be known and make no circle.
Status check_resource(v1::ResourceSpec& spec, const std::map<std::string, Resource>& resources);
Status check_pilot(v1::PilotSpec& spec, const State& state);
// Of a pilot with the option hosts these, divided by commas, else its resource's; none = the front end.
inline constexpr const char* hosts_option = "hosts";
std::vector<std::string> hosts_of(const v1::PilotSpec& pilot, const v1::ResourceSpec& resource);
Status check_job(v1::JobSpec& spec, const State& state);
// Of a job that is tied to this pilot: why it can never run there. What is not known yet is no reason.
Status check_tie(const v1::JobSpec& spec, const Pilot& pilot);

}  // namespace flotilla::daemon
