// The fixed header that starts every connection of a resumable channel, in both directions: first the daemon's, then the
// pilot's answer. Its layout is in PROTOCOL.md 5.2.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "proto/base/result.hpp"

namespace flotilla::channel {

constexpr std::size_t opening_bytes = 64;
constexpr std::size_t ticket_bytes = 32;
constexpr std::uint16_t opening_version = 1;

constexpr std::uint16_t opening_answer = 1;   // from the side that was connected to (the pilot)
constexpr std::uint16_t opening_refused = 2;  // with opening_answer: there is no such channel any more

struct Opening {
  std::uint16_t flags = 0;
  std::uint64_t channel = 0;                // = job id
  std::uint32_t epoch = 0;                  // counts the openings of this channel, from 1
  std::array<char, ticket_bytes> ticket{};  // announced to the hub by ExpectChannel; the answer repeats it
  std::uint64_t received = 0;               // bytes of the stream that the sender of this header has
  bool operator==(const Opening&) const = default;
};

std::array<char, opening_bytes> format_opening(const Opening& opening);
// Exactly opening_bytes. Refuses another magic, version, unknown flags, and bytes that must be zero and are not.
Result<Opening> parse_opening(std::string_view bytes);

// What a pilot answers for a channel that it has not got (any more).
Opening refusal_of(const Opening& request);

}  // namespace flotilla::channel
