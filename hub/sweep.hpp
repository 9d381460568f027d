// The last resort against orphans: kills every process of this user whose environment names that node of a pilot. Pilots and
// their guards mark all that they start.
#pragma once

#include <string>

#include "proto/base/ids.hpp"

namespace flotilla::hub {

// Returns how many were killed.
int sweep(const std::string& instance_hex, NodeId node);

}  // namespace flotilla::hub
