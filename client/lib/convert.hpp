// Between what users write and see, and what travels. Pure.
#pragma once

#include <flotilla/client.hpp>

#include "flotilla/v1/client.pb.h"
#include "flotilla/v1/types.pb.h"

namespace flotilla::detail {

v1::ResourceSpec to_wire(const ResourceSpec& spec);
v1::PilotSpec to_wire(const PilotSpec& spec);
// Without files: these are uploaded first, and added by the caller.
v1::JobSpec to_wire(const CommandSpec& spec, const std::string& client_folder);
v1::JobSpec to_wire(const WorkerSpec& spec, const std::string& client_folder);

DaemonInfo from_wire(const v1::DaemonInfo& wire);
ResourceInfo from_wire(const v1::Resource& wire);
PilotInfo from_wire(const v1::Pilot& wire);
JobInfo from_wire(const v1::Job& wire);
ExitReason from_wire(const v1::ExitReason& wire);
TestStep from_wire(const v1::TestStep& wire);
FlotillaError::Details from_wire(const v1::Error& wire);

}  // namespace flotilla::detail
