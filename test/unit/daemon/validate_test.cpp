#include "daemon/core/validate.hpp"

#include "test/unit/daemon/harness.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
using flotilla::daemon::test::Harness;

TEST_CASE("a resource's faults are told all at once, by name") {
  Harness h;
  v1::ResourceSpec spec;
  spec.set_name("-x");
  spec.set_location("me@host:99999");
  spec.set_transport("telnet");
  spec.set_gateway("nobody");
  spec.add_hosts("-oProxyCommand=x");
  (*spec.mutable_env())["1A"] = "x";
  auto status = check_resource(spec, h.core.state().resources);
  REQUIRE_FALSE(status);
  CHECK(status.error().code == Code::invalid_argument);
  std::string all = status.error().text();
  for (const char* key : {"name", "location", "transport", "gateway", "hosts", "env"}) CHECK(all.find(key) != std::string::npos);
  CHECK(status.error().faults.size() == 6);
}

TEST_CASE("locations") {
  Harness h;
  auto good = [&](const std::string& location) {
    v1::ResourceSpec spec;
    spec.set_name("r");
    spec.set_location(location);
    return static_cast<bool>(check_resource(spec, h.core.state().resources));
  };
  for (const char* location : {"host", "me@host", "me@host:22", "host:2222", "me@10.0.0.1", "me@[fe80::1]:22", "[::1]", "a.b-c.example"})
    CHECK(good(location));
  for (const char* location :
       {"@host", "me@", "me@host:0", "me@host:x", "me@host:65536", "me@-oProxyCommand=x", "me@ho st", "me@host;ls", "me@[::1"})
    CHECK_FALSE(good(location));
}

TEST_CASE("defaults: driver and transport follow from the location") {
  Harness h;
  v1::ResourceSpec spec;
  spec.set_name("r");
  spec.set_location("me@host");
  REQUIRE(check_resource(spec, h.core.state().resources));
  CHECK(spec.driver() == "ssh");
  CHECK(spec.transport() == "libssh");
}

TEST_CASE("options: the ssh driver has a file in the place of ~/.ssh/config, and nothing else has any") {
  Harness h;
  const auto good = [&](const char* location, const char* key, const char* value) {
    v1::ResourceSpec spec;
    spec.set_name("r");
    spec.set_location(location);
    (*spec.mutable_options())[key] = value;
    return static_cast<bool>(check_resource(spec, h.core.state().resources));
  };
  CHECK(good("me@host", "ssh_config", "/home/me/cluster.conf"));
  CHECK_FALSE(good("me@host", "ssh_config", ""));
  CHECK_FALSE(good("me@host", "ssh_config", "cluster.conf"));
  CHECK_FALSE(good("me@host", "queue", "long"));
  CHECK_FALSE(good("", "ssh_config", "/home/me/cluster.conf"));
}

TEST_CASE("gateways may not lead back") {
  Harness h;
  h.add_remote("a");
  v1::ResourceSpec b;
  b.set_name("b");
  b.set_location("me@b");
  b.set_gateway("a");
  REQUIRE(h.core.add_resource(b, false, h.now, h.out));
  v1::ResourceSpec a;
  a.set_name("a");
  a.set_location("me@a");
  a.set_gateway("b");
  auto status = h.core.add_resource(a, true, h.now, h.out);
  REQUIRE_FALSE(status);
  CHECK(status.error().text().find("leads back") != std::string::npos);
}

TEST_CASE("a job's faults") {
  Harness h;
  v1::JobSpec spec;
  spec.set_time_limit_ms(-1);
  auto* file = spec.add_files();
  file->set_name("../evil");
  auto status = check_job(spec, h.core.state());
  REQUIRE_FALSE(status);
  const std::string all = status.error().text();
  for (const char* part : {"time_limit", "../evil", "SHA-256", "neither a command nor a worker"})
    CHECK(all.find(part) != std::string::npos);
  auto many = h.core.submit({h.command(), spec}, h.now, h.out);
  REQUIRE_FALSE(many);
  CHECK(h.core.state().jobs.empty());  // all or none
  CHECK(many.error().message.find("job 2 of 2") != std::string::npos);
}

TEST_CASE("what can never run is refused at once") {
  Harness h;
  const PilotId pilot = h.running(4, "here");
  auto refusal = [&](auto&& change) {
    auto spec = h.command();
    spec.set_pilot(pilot.value);
    change(spec);
    auto status = check_job(spec, h.core.state());
    return status ? std::string() : status.error().message;
  };
  CHECK(refusal([](auto& spec) { spec.set_processes(4); }).empty());
  CHECK(refusal([](auto& spec) { spec.set_processes(64); }) == "no node of pilot 1 has 64 slots; the widest has 4");
  CHECK(refusal([](auto& spec) { spec.set_no_slots(true), spec.set_processes(64); }).empty());
  for (const char* label : {"here", "local"}) CHECK(refusal([&](auto& spec) { spec.set_label(label); }).empty());
  CHECK(refusal([](auto& spec) { spec.set_label("other"); }) ==
        "pilot 1 is on 'local' and has the label 'here': nothing with the label 'other' runs there");
  CHECK(refusal([](auto& spec) { spec.set_pilot(0), spec.set_label("gpu nodes"); }).find("no pilot can have it") != std::string::npos);
  CHECK(refusal([](auto& spec) { spec.set_pilot(9); }) == "pilot 9 is not known");

  v1::PilotSpec brief;
  brief.set_resource("local");
  brief.set_time_ms(60'000);
  const PilotId starting = *h.core.start_pilot(brief, h.now, h.out);
  auto there = [&](auto& spec) { spec.set_pilot(starting.value), spec.set_processes(64), spec.set_time_limit_ms(60'000); };
  CHECK(refusal(there).empty());  // how wide it will be is not known yet
  CHECK(refusal([&](auto& spec) { there(spec), spec.set_time_limit_ms(60'001); }) ==
        "pilot 2 lasts 60 s, less than the job's time limit of 60.001 s");
}

TEST_CASE("a pilot on an unknown resource is told what there is") {
  Harness h;
  v1::PilotSpec spec;
  spec.set_resource("hpc");
  auto status = check_pilot(spec, h.core.state());
  REQUIRE_FALSE(status);
  CHECK(status.error().code == Code::not_found);
  CHECK(status.error().hint.find("local") != std::string::npos);
}

TEST_CASE("a pilot may name its own hosts behind a front end") {
  Harness h;
  v1::ResourceSpec resource;
  resource.set_name("hpc");
  resource.set_location("me@front");
  resource.add_hosts("node9");
  REQUIRE(h.core.add_resource(resource, false, h.now, h.out));
  v1::PilotSpec spec;
  spec.set_resource("hpc");
  CHECK(hosts_of(spec, h.core.state().resources.at("hpc").spec) == std::vector<std::string>{"node9"});
  auto refusal = [&](unsigned nodes, const std::string& hosts) {
    spec.set_node_count(nodes);
    (*spec.mutable_options())["hosts"] = hosts;
    const auto status = check_pilot(spec, h.core.state());
    return status ? "" : status.error().text();
  };
  CHECK(refusal(2, "node1,node2") == "");
  CHECK(hosts_of(spec, h.core.state().resources.at("hpc").spec) == std::vector<std::string>{"node1", "node2"});
  CHECK(refusal(3, "node1,node2").find("node_count: 3 are asked for, the option hosts names 2 hosts") != std::string::npos);
  CHECK(refusal(1, "node1,,node2").find("hosts: '' is no name of a host") != std::string::npos);
  CHECK(refusal(1, "-oProxyCommand=x").find("hosts: '-oProxyCommand=x'") != std::string::npos);
  spec.set_resource("local");
  CHECK(refusal(1, "node1").find("options: the local driver has no option 'hosts'") != std::string::npos);
}
