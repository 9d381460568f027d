#pragma once

#include <cstdint>

namespace flotilla {

constexpr std::uint32_t protocol_version = 1;  // spoken
constexpr std::uint32_t protocol_minimum = 1;  // still understood

// "0.1.0+<git revision>"; the CLI and the daemon must be equal, agents may differ.
const char* build_version();

}  // namespace flotilla
