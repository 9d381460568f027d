// `flotilla resource test`, step by step.
#include <map>

#include "daemon/transport/agent_package.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/tls/certificate.hpp"
#include "test/integration/transport/machine.hpp"

namespace {

struct Outcome {
  std::vector<v1::TestStep> steps;
  std::map<std::string, v1::TestStep> last;
  bool done = false;
};

Outcome test(Side& side, HubConnectionConfig config) {
  Outcome outcome;
  auto running = start_resource_test(
      side.services(), std::move(config),
      [&](v1::TestStep step) {
        outcome.steps.push_back(step);
        outcome.last[step.name()] = step;
      },
      [&] { outcome.done = true; });
  side.until([&] { return outcome.done; }, 60s);
  return outcome;
}

const std::vector<std::string> names{"name",    "reachability", "host key",  "authentication", "shell",
                                     "scratch", "architecture", "time skew", "agent",          "hub"};

}  // namespace

TEST_CASE("all is well: each step says so, and nothing stays") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      Machine machine(home);
      Side side(home);
      auto outcome = test(side, side.config(machine, transport));
      REQUIRE(outcome.done);
      for (const auto& name : names) {
        INFO(name << ": " << outcome.last[name].message());
        const auto status = outcome.last[name].status();
        CHECK((status == v1::TestStep::OK || (transport == "openssh" && name == "name" && status == v1::TestStep::SKIPPED)));
      }
      CHECK(files_in(machine.scratch()) == std::vector<fs::path>{});
      CHECK(side.until([&] { return machine.connections().empty(); }, 5s));
    }
  }
  finish_packing();
}

TEST_CASE("the test of a resource does not touch the hub that serves it") {
  Home home;
  Machine machine(home);
  Side side(home);
  auto config = side.config(machine);
  config.agent = packed_beside(FLOTILLA_AGENT);
  config.hub_id = "hub-" + random_hex(4);
  config.instance = random_bytes(16);
  const auto ca = tls::make_ca(config.instance, wall_ms());
  REQUIRE(ca);
  const auto hub = tls::issue_intermediate(*ca, config.hub_id, wall_ms());
  REQUIRE(hub);
  config.tls_ca = ca->chain;
  config.tls_chain = hub->chain;
  config.tls_key = hub->key;
  const auto all_ok = [&](Outcome outcome) {
    REQUIRE(outcome.done);
    for (const auto& name : names) {
      INFO(name << ": " << outcome.last[name].message());
      CHECK(outcome.last[name].status() == v1::TestStep::OK);
    }
  };
  // Where there is none, nothing stays.
  all_ok(test(side, config));
  CHECK(fs::is_empty(machine.scratch()));

  side.connect(config);
  REQUIRE(side.until_connected());
  const auto place = machine.scratch() / "flotilla";
  const auto state = place / "hubs" / (config.hub_id + ".json");
  const auto before = read_file(state);
  REQUIRE(before);
  const auto files = files_in(place);
  all_ok(test(side, config));
  CHECK(read_file(state).value_or("gone") == *before);
  CHECK(files_in(place) == files);
  side.end_hub();
  finish_packing();
}

TEST_CASE("the step that fails says what to do, and the rest is skipped") {
  Home home;
  Machine machine(home);
  Side side(home);
  const auto failed_at = [&](Outcome& outcome, const std::string& at) {
    REQUIRE(outcome.done);
    bool after = false;
    for (const auto& name : names) {
      INFO(name);
      if (name == at) {
        CHECK(outcome.last[name].status() == v1::TestStep::FAILED);
        CHECK_FALSE(outcome.last[name].message().empty());
        CHECK_FALSE(outcome.last[name].hint().empty());
        after = true;
      } else if (after) {
        CHECK(outcome.last[name].status() == v1::TestStep::SKIPPED);
      } else {
        CHECK((outcome.last[name].status() == v1::TestStep::OK || outcome.last[name].status() == v1::TestStep::SKIPPED));
      }
    }
  };
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION("name, " << transport) {
      auto config = side.config(machine, transport);
      config.spec.set_location("root@no-such-host.invalid");
      auto outcome = test(side, config);
      failed_at(outcome, "name");
    }
    DYNAMIC_SECTION("reachability, " << transport) {
      auto config = side.config(machine, transport);
      Machine closed(home);
      closed.stop();
      config.spec.set_location(closed.location());
      auto outcome = test(side, config);
      failed_at(outcome, "reachability");
    }
    DYNAMIC_SECTION("host key, " << transport) {
      side.prompter.accept_new = false;
      auto outcome = test(side, side.config(machine, transport));
      failed_at(outcome, "host key");
      CHECK_THAT(outcome.last["host key"].message(), Catch::Contains("SHA256:"));
      CHECK(home.known_hosts().empty());
    }
    DYNAMIC_SECTION("authentication, " << transport) {
      fs::remove(home.key());
      fs::remove(home.key().string() + ".pub");
      auto outcome = test(side, side.config(machine, transport));
      failed_at(outcome, "authentication");
    }
  }
  SECTION("shell") {
    Machine silent(home, "ForceCommand /bin/false\n");
    auto outcome = test(side, side.config(silent));
    failed_at(outcome, "shell");
  }
}

TEST_CASE("a test can be stopped") {
  Home home;
  Machine machine(home);
  Side side(home);
  int steps = 0;
  auto running = start_resource_test(
      side.services(), side.config(machine), [&](v1::TestStep) { ++steps; }, [] { FAIL("it was stopped"); });
  side.until([&] { return steps > 3; });
  running.reset();
  const int told = steps;
  side.until([] { return false; }, 200ms);
  CHECK(steps == told);
  CHECK(side.until([&] { return machine.connections().empty(); }, 5s));
}
