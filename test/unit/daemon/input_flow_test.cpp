#include <catch2/catch.hpp>

#include "daemon/core/input_flow.hpp"

using flotilla::daemon::InputFlow;

namespace {
InputFlow of_a_running_job() {
  InputFlow flow;
  CHECK(flow.begin().empty());
  return flow;
}
}  // namespace

TEST_CASE("what comes before the job runs is held, then sent in pieces, once") {
  InputFlow flow;
  CHECK_FALSE(flow.add(std::string(InputFlow::piece_bytes, 'x'), false));
  CHECK_FALSE(flow.add("y", true));
  CHECK(flow.known());
  CHECK(flow.end() == InputFlow::piece_bytes + 1);
  const auto pieces = flow.begin();
  REQUIRE(pieces.size() == 2);
  CHECK(pieces[0].data == std::string(InputFlow::piece_bytes, 'x'));
  CHECK_FALSE(pieces[0].eof);
  CHECK(pieces[1].offset == InputFlow::piece_bytes);
  CHECK(pieces[1].data == "y");
  CHECK(pieces[1].eof);
  CHECK(flow.begin().empty());
}

TEST_CASE("held input of a job that was found running is sent after its pilot's inventory, not again when it is told to begin") {
  InputFlow flow;
  CHECK_FALSE(flow.add("abc", true));
  const auto pieces = flow.on_inventory(0, false);
  REQUIRE(pieces.size() == 1);
  CHECK(pieces[0].data == "abc");
  CHECK(pieces[0].eof);
  CHECK(flow.begin().empty());
}

TEST_CASE("what the pilot has not received is sent again, and only that") {
  InputFlow flow = of_a_running_job();
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
  InputFlow flow = of_a_running_job();
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
  CHECK(flow.begin().empty());
  CHECK_FALSE(flow.known());
  CHECK_FALSE(flow.add("more", false));
  flow.on_taken(1'000);
  const auto again = flow.on_inventory(1'234, false);
  REQUIRE(again.size() == 1);
  CHECK(again[0].offset == 1'234);
  CHECK(again[0].data == "more");
  CHECK(flow.add("!", false)->offset == 1'238);
}
