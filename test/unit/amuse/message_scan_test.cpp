#include "client/amuse/core/message_scan.hpp"

#include <catch2/catch.hpp>

#include "client/amuse/core/home_line.hpp"
#include "messages.hpp"

using namespace flotilla;
using namespace flotilla::amuse;
using test::message;

TEST_CASE("messages are followed by their lengths, however they come in pieces") {
  const bool other_order = GENERATE(false, true);
  const std::vector<std::string> all = {
      message({.call_id = 1, .function_id = 11, .other_order = other_order}),
      message({.call_id = 2, .function_id = 12, .call_count = 3, .other_order = other_order, .ints = {1, 2, 3}, .doubles = {1.5, 2.5}}),
      message({.call_id = 3,
               .function_id = 13,
               .error = true,
               .other_order = other_order,
               .bools = {true, false, true},
               .strings = {"", "a", std::string(1000, 'x')},
               .units = {1, 2, 3}}),
      message({.call_id = 4, .function_id = 0, .other_order = other_order, .strings = {"\xc3\xa9t\xc3\xa9"}}),
  };
  std::string stream;
  for (const auto& each : all) stream += each;
  for (const std::size_t piece : {std::size_t(1), std::size_t(3), std::size_t(44), std::size_t(45), std::size_t(97), stream.size()}) {
    MessageScan scan;
    CHECK(scan.between());
    CHECK_FALSE(scan.has_header());
    std::vector<std::int32_t> ended;
    std::size_t at = 0, begun = 0;
    while (at < stream.size()) {
      const auto taken = scan.take(std::string_view(stream).substr(at, piece));
      REQUIRE(taken > 0);
      at += taken;
      if (!scan.between()) continue;
      ended.push_back(scan.header().function_id);
      CHECK(scan.has_header());
      CHECK(at - begun == all[ended.size() - 1].size());
      CHECK(scan.header().error == (ended.size() == 3));
      CHECK(scan.header().call_id == static_cast<std::int32_t>(ended.size()));
      begun = at;
    }
    CHECK(ended == std::vector<std::int32_t>{11, 12, 13, 0});
  }
}

TEST_CASE("the header of a message that has begun is known before its end") {
  MessageScan scan;
  const auto first = message({.call_id = 7, .function_id = 8, .ints = {1, 2}});
  CHECK(scan.take(std::string_view(first).substr(0, 50)) == 50);
  CHECK_FALSE(scan.between());
  REQUIRE(scan.has_header());
  CHECK(scan.header().call_id == 7);
}

TEST_CASE("what cannot be a message is refused") {
  MessageScan scan;
  CHECK_THROWS_AS(scan.take(std::string(44, 'G')), MessageError);
  auto negative = message({.strings = {"abc"}});
  negative[44] = negative[45] = negative[46] = negative[47] = '\xff';
  MessageScan other;
  CHECK_THROWS_AS(other.take(negative), MessageError);
}

TEST_CASE("the line that says where AMUSE is, is taken out of a worker's stderr") {
  const std::string stream = "warning: one\nflotilla-amuse-home: /opt/amuse dir\nflotilla-amuse-home: is this mine?\nflotilla";
  for (std::size_t piece = 1; piece <= stream.size(); ++piece) {
    HomeLine line;
    std::string own;
    for (std::size_t at = 0; at < stream.size(); at += piece) own += line.take(std::string_view(stream).substr(at, piece));
    CHECK(own == "warning: one\nflotilla-amuse-home: is this mine?\nflotilla");
    CHECK(line.known());
    CHECK(line.home() == "/opt/amuse dir");
  }
  CHECK(without_home_line("flotilla-amuse-home: /x\ndied\n") == "died\n");
  CHECK(without_home_line("a flotilla-amuse-home: /x\n") == "a flotilla-amuse-home: /x\n");
}
