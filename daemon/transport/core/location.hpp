// "user@host:port", as people write where a machine is.
#pragma once

#include <string>

#include "proto/base/result.hpp"

namespace flotilla::daemon {

struct Location {
  std::string user;  // empty: as ~/.ssh/config says, else the local user's name
  std::string host;  // a name, an address (IPv6 without its brackets), or a Host alias of ~/.ssh/config
  int port = 0;      // 0: as ~/.ssh/config says, else 22
  bool operator==(const Location&) const = default;
};

Result<Location> parse_location(const std::string& text);
std::string format_location(const Location& location);

}  // namespace flotilla::daemon
