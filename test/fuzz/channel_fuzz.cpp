// What comes over a channel's connections from outside: headers, requests, lines, and bytes in any pieces. The parsers must take
// what they write and refuse the rest; an endpoint must keep its promises whatever the peer says.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "proto/channel/endpoint.hpp"
#include "proto/channel/hand_over.hpp"
#include "proto/channel/opening.hpp"

using namespace flotilla::channel;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

// The input drives one end: each step is a byte that says what happens, and bytes for it.
void drive(std::string_view input) {
  Endpoint end(input.empty() || input[0] & 1 ? Side::accepter : Side::opener, 7, 4096);
  const auto take = [&](std::size_t size) {
    const auto part = input.substr(0, size);
    input.remove_prefix(part.size());
    return part;
  };
  const auto number = [&] {
    std::uint64_t value = 0;
    for (const char byte : take(2)) value = value << 8 | static_cast<unsigned char>(byte);
    return value;
  };
  std::uint32_t epoch = 0;
  std::uint64_t given = 0;
  while (!input.empty()) {
    switch (static_cast<unsigned char>(take(1)[0]) % 10) {
      case 0: {
        const Spans space = end.user_space();
        const std::size_t count = std::min<std::size_t>(space.bytes(), number());
        if (count == 0 || end.user_ended()) break;
        std::memset(space.pieces[0].iov_base, 'x', std::min(count, space.pieces[0].iov_len));
        end.on_user_bytes(count);
        given += count;
        break;
      }
      case 1: {
        const Spans out = end.wire_out();
        end.on_written(std::min<std::size_t>(out.bytes(), number()));
        break;
      }
      case 2: {
        const iovec space = end.wire_space();
        const auto bytes = take(std::min<std::size_t>(space.iov_len, number()));
        if (bytes.empty()) break;
        std::memcpy(space.iov_base, bytes.data(), bytes.size());
        if (!end.on_wire_bytes(bytes.size())) end.disconnect();
        break;
      }
      case 3: end.on_delivered(std::min<std::size_t>(end.deliverable().iov_len, number())); break;
      case 4: (void)end.on_ack(static_cast<std::uint32_t>(number() % 8), number()); break;
      case 5: (void)end.open(++epoch, std::string(ticket_bytes, 't')); break;
      case 6: {
        Opening request{0, 7, static_cast<std::uint32_t>(number() % 64), {}, number()};
        (void)end.accept(request);
        break;
      }
      case 7: (void)end.on_peer_end(number()); break;
      case 8:
        if (number() % 16 == 0) end.on_user_end();
        else end.take_ack();
        break;
      case 9: number() % 2 ? end.disconnect() : end.trim(); break;
    }
    require(end.taken() == given);
    require(end.acknowledged_by_peer() <= given);
    require(end.ring_capacity() <= 4096);
    require(given - end.acknowledged_by_peer() <= end.ring_capacity());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (const auto opening = parse_opening(input)) {
    const auto again = format_opening(*opening);
    require(std::string_view(again.data(), again.size()) == input);
  }
  if (const auto ticket = parse_take_request(input)) require(ticket->size() == ticket_bytes);
  (void)parse_take_error(input);
  if (const auto end = parse_end(input))
    require(parse_end(std::string_view(format_end(*end)).substr(0, format_end(*end).size() - 1)).has_value());
  drive(input);
  return 0;
}
