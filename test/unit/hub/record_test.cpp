#include "hub/core/record.hpp"

#include <catch2/catch.hpp>

using namespace flotilla;
using namespace flotilla::hub;

TEST_CASE("a hub's record comes back as it was written") {
  Record record;
  record.hub_id = "h1";
  record.instance = std::string("\x00\xff\x10", 3) + std::string(13, 'x');
  record.host = "front";
  record.boot_id = "boot";
  record.build = "1.0";
  record.pid = 4711;
  record.runtime_dir = "/tmp/fl-0-01234567";
  record.listening = {"10.0.0.1:4000", "[fd00::1]:4001"};
  record.ended = {3, 4};
  Launch launch;
  launch.node_count = 2;
  launch.hosts = {"n1", "n2"};
  launch.stopping = true;
  launch.settings.set_cutoff_ms(5);
  launch.settings.set_idle_ms(-1);
  launch.settings.mutable_traces()->set_none(true);
  launch.settings.mutable_traces()->set_log_links("~/logs");
  Node node;
  node.stage = Stage::left;
  node.host = "n1";
  node.beside = true;
  node.secret = "s";
  node.guard_pid = 1;
  node.pid = 2;
  node.process_dead = true;
  node.message = "m";
  node.stderr_tail = "\xff\xfe bytes \n";
  node.exit_code = -3;
  node.goodbye = "g";
  node.said_goodbye = true;
  launch.nodes[1] = node;
  record.launches[7] = launch;

  const auto read = parse_record(format_record(record));
  REQUIRE(read);
  CHECK(read->hub_id == record.hub_id);
  CHECK(read->instance == record.instance);
  CHECK(read->listening == record.listening);
  CHECK(read->ended == record.ended);
  CHECK(read->pid == 4711);
  REQUIRE(read->launches.size() == 1);
  const Launch& got = read->launches.at(7);
  CHECK(got.node_count == 2);
  CHECK(got.hosts == launch.hosts);
  CHECK(got.stopping);
  CHECK(got.settings.cutoff_ms() == 5);
  CHECK(got.settings.idle_ms() == -1);
  CHECK(got.settings.traces().none());
  CHECK(got.settings.traces().log_links() == "~/logs");
  const Node& back = got.nodes.at(1);
  CHECK(back.stage == Stage::left);
  CHECK(back.secret == "s");
  CHECK(back.pid == 2);
  CHECK(back.process_dead);
  CHECK(back.exit_code == -3);
  CHECK(back.said_goodbye);
  CHECK(back.stderr_tail.find("bytes") != std::string::npos);
  CHECK(format_record(*read) == format_record(*parse_record(format_record(*read))));
}

TEST_CASE("what is no record is refused, not guessed") {
  for (const char* text : {"", "{", "[]", "null", "{\"version\": 1}", "{\"version\": 2}", "{\"version\": \"1\"}"}) {
    INFO(text);
    CHECK_FALSE(parse_record(text));
  }
  Record record;
  record.instance = std::string(16, 'i');
  record.launches[1].nodes[0] = Node{};
  std::string text = format_record(record);
  text.replace(text.find("\"starting\""), 10, "\"dreaming\"");
  CHECK_FALSE(parse_record(text));
}
