// Moments as this machine's clocks on the wall show them.
#pragma once

#include <cstdint>
#include <string>

namespace flotilla::cli {

// "14:05:09" on the same day as now, else "2026-11-20 14:05:09"; "-" for 0.
std::string format_moment(std::int64_t ms, std::int64_t now_ms);

}  // namespace flotilla::cli
