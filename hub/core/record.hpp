// What a hub keeps in its state file, for the hub that follows it after a crash and for connectors: where it runs, where it
// listens, which pilots are its own. JSON; holds the join secrets of pilots beside the hub, so the file has mode 0600.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "hub/core/core.hpp"
#include "proto/base/result.hpp"

namespace flotilla::hub {

struct Record {
  std::string hub_id;
  std::string instance;  // 16 bytes
  std::string host, boot_id, build;
  std::uint32_t pid = 0;
  bool over = false;                   // the hub has ended, and left word of its pilots
  std::string runtime_dir;             // on that host
  std::vector<std::string> listening;  // "address:port" where pilots on nodes register
  std::map<std::uint64_t, Launch> launches;
  std::set<std::uint64_t> ended;
};

std::string format_record(const Record& record);
Result<Record> parse_record(std::string_view text);

}  // namespace flotilla::hub
