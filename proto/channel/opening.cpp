#include "proto/channel/opening.hpp"

#include <cstring>

namespace flotilla::channel {
namespace {

constexpr std::uint32_t magic = 0x464C4348;  // "FLCH"
// Offsets of the fields.
constexpr std::size_t at_magic = 0, at_version = 4, at_flags = 6, at_channel = 8, at_epoch = 16, at_reserved = 20, at_ticket = 24,
                      at_received = 56;

template <class T>
void put(char* to, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) to[i] = static_cast<char>(value >> (8 * (sizeof(T) - 1 - i)));
}
template <class T>
T get(const char* from) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>((value << 8) | static_cast<unsigned char>(from[i]));
  return value;
}

}  // namespace

std::array<char, opening_bytes> format_opening(const Opening& opening) {
  std::array<char, opening_bytes> out{};
  put(&out[at_magic], magic);
  put(&out[at_version], opening_version);
  put(&out[at_flags], opening.flags);
  put(&out[at_channel], opening.channel);
  put(&out[at_epoch], opening.epoch);
  std::memcpy(&out[at_ticket], opening.ticket.data(), ticket_bytes);
  put(&out[at_received], opening.received);
  return out;
}

Result<Opening> parse_opening(std::string_view bytes) {
  if (bytes.size() != opening_bytes)
    return fail(Code::invalid_argument,
                "a channel's opening has " + std::to_string(opening_bytes) + " bytes, not " + std::to_string(bytes.size()));
  const char* from = bytes.data();
  if (get<std::uint32_t>(from + at_magic) != magic)
    return fail(Code::invalid_argument, "what came on a channel's connection is not a channel's opening");
  const auto version = get<std::uint16_t>(from + at_version);
  if (version != opening_version)
    return fail(Code::version_mismatch, "a channel was opened with version " + std::to_string(version) +
                                            " of the header; this build understands " + std::to_string(opening_version));
  Opening opening;
  opening.flags = get<std::uint16_t>(from + at_flags);
  if (opening.flags & ~(opening_answer | opening_refused) || get<std::uint32_t>(from + at_reserved) != 0)
    return fail(Code::invalid_argument, "a channel's opening has unknown flags");
  opening.channel = get<std::uint64_t>(from + at_channel);
  opening.epoch = get<std::uint32_t>(from + at_epoch);
  std::memcpy(opening.ticket.data(), from + at_ticket, ticket_bytes);
  opening.received = get<std::uint64_t>(from + at_received);
  return opening;
}

Opening refusal_of(const Opening& request) {
  Opening answer = request;
  answer.flags = opening_answer | opening_refused;
  answer.received = 0;
  return answer;
}

}  // namespace flotilla::channel
