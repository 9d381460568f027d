#include <catch2/catch.hpp>

#include "daemon/core/input_flow.hpp"

using flotilla::daemon::InputFlow;

TEST_CASE("what the pilot has not received is sent again, and only that") {
  InputFlow flow;
  CHECK(flow.add("hello ", false)->offset == 0);
  CHECK(flow.add("world", false)->offset == 6);
  flow.on_taken(3);
  auto again = flow.on_inventory(6, false);
  REQUIRE(again.size() == 1);
  CHECK(again[0].offset == 6);
  CHECK(again[0].data == "world");
  CHECK_FALSE(again[0].eof);
  CHECK(flow.on_inventory(11, false).empty());
  // Less than what it has taken is nothing that could be sent again, nor would it be asked for.
  again = flow.on_inventory(0, false);
  REQUIRE(again.size() == 1);
  CHECK(again[0].offset == 3);
}

TEST_CASE("an end of input that was lost is said again") {
  InputFlow flow;
  CHECK(flow.add("a", true)->eof);
  auto again = flow.on_inventory(0, false);
  REQUIRE(again.size() == 1);
  CHECK(again[0].data == "a");
  CHECK(again[0].eof);
  again = flow.on_inventory(1, false);
  REQUIRE(again.size() == 1);
  CHECK(again[0].offset == 1);
  CHECK(again[0].data.empty());
  CHECK(again[0].eof);
  CHECK(flow.on_inventory(1, true).empty());
}

TEST_CASE("what is kept is bounded by what the job takes, and sent again in pieces") {
  InputFlow flow;
  flow.add(std::string(InputFlow::credit_bytes, 'x'), false);
  CHECK_FALSE(flow.full());
  flow.add("y", false);
  CHECK(flow.full());
  const auto again = flow.on_inventory(0, false);
  CHECK(again.size() == 5);
  std::string all;
  for (const auto& piece : again) {
    CHECK(piece.offset == all.size());
    all += piece.data;
  }
  CHECK(all.size() == InputFlow::credit_bytes + 1);
  flow.on_taken(1);
  CHECK_FALSE(flow.full());
}

TEST_CASE("after a restart of the daemon the pilot says where to go on") {
  InputFlow flow(false);
  CHECK_FALSE(flow.add("more", false));
  flow.on_taken(1'000);
  const auto again = flow.on_inventory(1'234, false);
  REQUIRE(again.size() == 1);
  CHECK(again[0].offset == 1'234);
  CHECK(again[0].data == "more");
  CHECK(flow.add("!", false)->offset == 1'238);
}
