// What a hub may say: for itself, and for the pilots of its resource. A front end that was broken into cannot speak for others.
#pragma once

#include <string>

#include "daemon/core/state.hpp"
#include "flotilla/v1/link.pb.h"

namespace flotilla::daemon {

// Pilots that are not known here belong to it, too: it is told so.
bool speaks_for(const State& state, const std::string& resource, PilotId pilot);
bool may_say(const State& state, const std::string& resource, const v1::Frame& frame);
// Is this the channel of a worker on that node?
bool has_channel(const State& state, NodeId node, std::uint64_t channel);

}  // namespace flotilla::daemon
