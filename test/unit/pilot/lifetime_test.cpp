#include "pilot/core/lifetime.hpp"

#include <catch2/catch.hpp>

using namespace flotilla::pilot;
using namespace std::chrono_literals;

TEST_CASE("a pilot's time, idleness and cut-off are told by moments that come in") {
  const Moment start = 1000s;
  Lifetime life({Millis(10'000), Millis(60'000), Millis(100'000)}, start);
  CHECK(life.verdict(start + 20s) == Verdict::stay);  // not registered yet: nobody could give it a job
  life.on_link_up();
  life.on_idle(start);
  CHECK(*life.next() == start + 10s);
  CHECK(life.verdict(start + 9s) == Verdict::stay);
  CHECK(life.verdict(start + 10s) == Verdict::idle);
  life.on_busy();
  CHECK(*life.next() == start + 100s);
  life.on_link_down(start + 20s);
  life.on_link_down(start + 50s);  // counts from the first
  CHECK(*life.next() == start + 80s);
  CHECK(life.verdict(start + 80s) == Verdict::cut_off);
  life.on_link_up();
  CHECK(life.verdict(start + 99s) == Verdict::stay);
  CHECK(life.verdict(start + 100s) == Verdict::time_up);
  CHECK(life.ends_in(start + 40s) == 60'000ms);
  CHECK(life.ends_in(start + 400s) == 1ms);
}

TEST_CASE("what is not limited does not end") {
  Lifetime life({Millis(-1), Millis(5000), Millis(0)}, 0s);
  life.on_link_up();
  CHECK_FALSE(life.next());
  CHECK(life.ends_in(10h) == 0ms);
  CHECK(life.verdict(10000h) == Verdict::stay);
  life.on_idle(1s);
  CHECK_FALSE(life.next());
}

TEST_CASE("dialling again: at once, then ever slower, at most every 2 s; from the start after a link") {
  Redial redial;
  CHECK(redial.next_wait() == 0ms);
  Millis before(0);
  for (int i = 0; i < 20; ++i) {
    const auto wait = redial.next_wait();
    CHECK(wait >= before);
    CHECK(wait <= 2000ms);
    before = wait;
  }
  CHECK(before == 2000ms);
  redial.on_link_up();
  CHECK(redial.next_wait() == 0ms);
}
