// What the daemon says to `flotilla-agent connect`, and its answer. Pure.
#pragma once

#include <string>
#include <string_view>

#include "flotilla/v1/link.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::daemon {

// A 4-byte big-endian length, and the message.
std::string format_hub_start(const v1::HubStart& start);

struct HubAnswer {
  std::string host;
  std::string channel_socket;
};
// "FLOTILLA-HUB 1 HOST PATH" or "ERROR <JSON of flotilla.v1.Error>"; anything else is an error too.
Result<HubAnswer> parse_hub_answer(std::string_view line);

}  // namespace flotilla::daemon
