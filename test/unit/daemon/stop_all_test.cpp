// `daemon stop --all`: what cannot be reached is tried again, for a bounded time, and then named.
#include <catch2/catch.hpp>

#include "daemon/core/stop_all.hpp"

using namespace flotilla::daemon;
using Actions = std::vector<std::pair<std::string, StopAction>>;

namespace {
struct World {
  StopAll plan;
  std::map<std::string, StopFacts> facts;
  std::int64_t now = 1'000;
  Actions step(std::int64_t later = 0) {
    now += later;
    return plan.step(facts, now).actions;
  }
  StopAll::Phase phase(const std::string& name) { return plan.parts().at(name).phase; }
};
using Phase = StopAll::Phase;
}  // namespace

TEST_CASE("a connected hub is asked, its pilots end, then it ends") {
  World w;
  w.plan.add("hpc", "", false, w.now);
  w.facts["hpc"] = {.connected = true, .pilots = 2};
  CHECK(w.step() == Actions{{"hpc", StopAction::ask}});
  w.facts["hpc"].answers = true;
  CHECK(w.step(10).empty());
  CHECK(w.phase("hpc") == Phase::ending_pilots);
  CHECK(w.step(1'000).empty());
  w.facts["hpc"].pilots = 0;
  CHECK(w.step(10) == Actions{{"hpc", StopAction::end_hub}});
  CHECK_FALSE(w.plan.over());
  w.facts["hpc"] = {.hub_ended = true};
  CHECK(w.step(10).empty());
  CHECK(w.plan.over());
  CHECK(w.phase("hpc") == Phase::over);
}

TEST_CASE("a link that says nothing is made anew") {
  World w;
  w.plan.add("hpc", "", false, w.now);
  w.facts["hpc"] = {.connected = true, .pilots = 1};
  CHECK(w.step() == Actions{{"hpc", StopAction::ask}});
  CHECK(w.step(StopAll::answer_ms - 1).empty());
  CHECK(w.step(1) == Actions{{"hpc", StopAction::drop}});
  w.facts["hpc"] = {.connecting = true, .pilots = 1};
  CHECK(w.step(100).empty());
  w.facts["hpc"] = {.connected = true, .answers = true, .pilots = 1};
  CHECK(w.step(100) == Actions{{"hpc", StopAction::ask}});
}

TEST_CASE("what cannot be reached is tried again, and left after the limit with the cause; the others are not held up") {
  World w;
  w.plan.add("dark", "", false, w.now);
  w.plan.add("good", "", false, w.now);
  w.facts["dark"] = {.trouble = "no route to host", .pilots = 1};
  w.facts["good"] = {.connected = true, .answers = true};
  CHECK(w.step() == Actions{{"dark", StopAction::connect}, {"good", StopAction::ask}});
  CHECK(w.step(10).empty());
  CHECK(w.step(10) == Actions{{"good", StopAction::end_hub}});
  w.facts["good"] = {.hub_ended = true};
  CHECK(w.step(StopAll::retry_ms) == Actions{{"dark", StopAction::connect}});
  CHECK(w.phase("good") == Phase::over);
  CHECK_FALSE(w.plan.over());
  w.step(StopAll::reach_ms);
  CHECK(w.plan.over());
  CHECK(w.phase("dark") == Phase::left);
  CHECK(w.plan.parts().at("dark").cause.find("no route to host") != std::string::npos);
}

TEST_CASE("where another attempt would fail as well, no time is lost") {
  World w;
  w.plan.add("hpc", "", false, w.now);
  w.facts["hpc"] = {.hopeless = true, .trouble = "the password was refused"};  // of an earlier attempt: it may be different now
  CHECK(w.step() == Actions{{"hpc", StopAction::connect}});
  w.facts["hpc"].connecting = true;
  CHECK(w.step(100).empty());
  w.facts["hpc"].connecting = false;
  CHECK(w.step(100).empty());
  CHECK(w.phase("hpc") == Phase::left);
}

TEST_CASE("a gateway's hub ends after those behind it") {
  World w;
  w.plan.add("gate", "", false, w.now);
  w.plan.add("inner", "gate", false, w.now);
  w.facts["gate"] = {.connected = true, .answers = true};
  w.facts["inner"] = {.connected = true, .answers = true, .pilots = 1};
  w.step();
  w.step(10);
  CHECK(w.step(10).empty());
  w.facts["inner"].pilots = 0;
  CHECK(w.step(10) == Actions{{"inner", StopAction::end_hub}});
  CHECK(w.step(10).empty());
  w.facts["inner"] = {.hub_ended = true};
  w.step(10);
  CHECK(w.step(10) == Actions{{"gate", StopAction::end_hub}});
}

TEST_CASE("a link that is lost while its pilots end is made again") {
  World w;
  w.plan.add("hpc", "", false, w.now);
  w.facts["hpc"] = {.connected = true, .answers = true, .pilots = 1};
  w.step();
  w.step(10);
  CHECK(w.phase("hpc") == Phase::ending_pilots);
  w.facts["hpc"] = {.trouble = "reset", .pilots = 1};
  CHECK(w.step(10) == Actions{{"hpc", StopAction::connect}});
  CHECK(w.phase("hpc") == Phase::reaching);
}

TEST_CASE("pilots of this machine that do not end are killed") {
  World w;
  w.plan.add("local", "", true, w.now);
  w.facts["local"] = {.pilots = 1};
  CHECK(w.step().empty());
  CHECK(w.step(StopAll::pilots_ms) == Actions{{"local", StopAction::kill}});
  w.facts["local"].pilots = 0;
  CHECK(w.step(100).empty());
  CHECK(w.phase("local") == Phase::over);
}
