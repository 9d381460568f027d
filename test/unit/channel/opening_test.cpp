#include <catch2/catch.hpp>

#include "proto/channel/opening.hpp"

using namespace flotilla;
using namespace flotilla::channel;

namespace {
std::string text(const std::array<char, opening_bytes>& bytes) { return {bytes.data(), bytes.size()}; }
}  // namespace

TEST_CASE("an opening has the layout of PROTOCOL.md 5.2") {
  Opening opening;
  opening.flags = opening_answer;
  opening.channel = 0x0102030405060708;
  opening.epoch = 0x0a0b0c0d;
  for (std::size_t i = 0; i < ticket_bytes; ++i) opening.ticket[i] = static_cast<char>('A' + i);
  opening.received = 0x1112131415161718;
  const std::string bytes = text(format_opening(opening));
  CHECK(bytes == std::string("FLCH\0\1\0\1\1\2\3\4\5\6\7\x8\xa\xb\xc\xd\0\0\0\0"
                             "ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"
                             "\x11\x12\x13\x14\x15\x16\x17\x18",
                             64));
  auto parsed = parse_opening(bytes);
  REQUIRE(parsed);
  CHECK(*parsed == opening);
}

TEST_CASE("an opening that is not one is refused") {
  std::string good = text(format_opening({}));
  CHECK(parse_opening(good));
  CHECK_FALSE(parse_opening(good.substr(1)));
  CHECK_FALSE(parse_opening(good + "x"));
  for (std::size_t at : {0u, 3u, 4u, 5u, 6u, 20u, 23u}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x40);
    CAPTURE(at);
    CHECK_FALSE(parse_opening(bad));
  }
  std::string newer = good;
  newer[5] = 2;
  CHECK(parse_opening(newer).error().code == Code::version_mismatch);
  const Opening refusal = refusal_of({0, 7, 3, {}, 99});
  CHECK((refusal.flags == (opening_answer | opening_refused) && refusal.channel == 7 && refusal.epoch == 3 && refusal.received == 0));
}
