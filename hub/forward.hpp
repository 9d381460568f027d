// A login that lands on another front end of a round robin than the one where the hub runs.
#pragma once

#include "flotilla/v1/link.pb.h"
#include "hub/places.hpp"

namespace flotilla::hub {

// The state file in scratch (shared by the front ends) names another host, and a hub lives there: everything goes on through
// ssh to it, the channel socket too, and this does not return. Else (no record, this host, nobody there): returns.
void forward_to_other_host(const Places& places, const v1::HubStart& start);

// argv for that ssh. Pure.
std::vector<std::string> forward_argv(const std::string& host, const std::string& local_channels, const std::string& far_channels,
                                      const std::string& program);

}  // namespace flotilla::hub
