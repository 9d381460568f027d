// ~/.config/flotilla/config.toml. Every key is in docs/configuration.md; unknown ones are refused by name, all faults at once.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "daemon/journal/journal.hpp"
#include "proto/base/result.hpp"

namespace flotilla::daemon {

struct Config {
  bool debug = false;                                 // [daemon] debug
  Durability durability = Durability::process;        // [daemon] durability = "process" | "disk"
  std::uint16_t web_port = 0;                         // [daemon] web_port, 0 = any free one
  bool web_admits_user = false;                       // [daemon] web_access = "token" | "user"
  std::uint64_t output_limit_bytes = 1ull << 30;      // [daemon] output_limit, for each stream of a job
  std::filesystem::path agent;                        // [daemon] agent: the flotilla-agent program; empty = beside this one
  bool local_pilot = true;                            // [local_pilot] start
  std::uint32_t local_slots = 0;                      // [local_pilot] slots, 0 = processors
  std::int64_t pilot_idle_ms = -1;                    // [pilots] idle = "30m" | "never"
  std::int64_t pilot_cutoff_ms = 24ll * 3600 * 1000;  // [pilots] cutoff
  // Not in the file: false = this daemon is only to stop what an earlier one has left.
  bool starts_local_pilot = true;
};

// A file that is not there is an empty one.
enum class Missing { defaults, refused };
Result<Config> load_config(const std::filesystem::path& file, Missing missing);
Result<Config> parse_config(const std::string& text, const std::string& name);

// "90", "90s", "15m", "2h", "1d", "1.5h", "250ms" -> milliseconds.
Result<std::int64_t> parse_duration(const std::string& text);
// "100", "64KiB", "1GiB", "10MB" -> bytes.
Result<std::uint64_t> parse_size(const std::string& text);

}  // namespace flotilla::daemon
