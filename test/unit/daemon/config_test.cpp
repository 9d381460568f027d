#include "daemon/coordinator/config.hpp"

#include <catch2/catch.hpp>

using namespace flotilla;
using namespace flotilla::daemon;

TEST_CASE("a whole configuration") {
  auto config = parse_config(R"(
[daemon]
debug = true
durability = "disk"
web_port = 8042
web_access = "user"
output_limit = "64MiB"
agent = "/opt/flotilla-agent"
leave_nothing = true
log_links = "~/logs"
[local_pilot]
start = false
slots = 3
[pilots]
idle = "30m"
cutoff = "2h"
)",
                             "config.toml");
  REQUIRE(config);
  CHECK(config->debug);
  CHECK(config->durability == Durability::disk);
  CHECK(config->web_port == 8042);
  CHECK(config->web_admits_user);
  CHECK(config->output_limit_bytes == 64u << 20);
  CHECK(config->agent == "/opt/flotilla-agent");
  CHECK(traces_of(*config).none());
  CHECK(traces_of(*config).log_links() == "~/logs");
  CHECK_FALSE(config->local_pilot);
  CHECK(config->local_slots == 3);
  CHECK(config->pilot_idle_ms == 30 * 60 * 1000);
  CHECK(config->pilot_cutoff_ms == 2 * 3600 * 1000);
}

TEST_CASE("all faults at once, each with its line and key") {
  auto config = parse_config(
      "[daemon]\nport = 3\nweb_port = 70000\ndurability = 'ram'\nweb_access = 'all'\nlog_links = 'here'\n[pilot]\nx = 1\n[pilots]\nidle = "
      "30\n",
      "c.toml");
  REQUIRE_FALSE(config);
  CHECK(config.error().faults.size() == 7);
  const std::string all = config.error().text();
  for (const char* part : {"line 2", "'port'", "web_port", "durability", "web_access", "log_links", "'pilot'", "idle"})
    CHECK(all.find(part) != std::string::npos);
}

TEST_CASE("a file that is no TOML is refused with the line; none is the default") {
  CHECK(parse_config("[daemon\n", "c.toml").error().message.find("line 1") != std::string::npos);
  CHECK(load_config("/nonexistent/config.toml", Missing::defaults)->local_pilot);
}

TEST_CASE("brackets that stand for nothing are refused") {
  for (const char* text : {"[[[job]]]", "[=]", "[[ ", "[.x]", "[]", "= 1", "[[[JO@[[JO"}) {
    CAPTURE(text);
    const auto config = parse_config(text, "config.toml");
    REQUIRE_FALSE(config);
    CHECK(config.error().message.starts_with("config.toml"));
  }
}

TEST_CASE("a file that was named and is not there, or cannot be read, is refused by name") {
  const auto missing = load_config("/nonexistent/config.toml", Missing::refused);
  REQUIRE_FALSE(missing);
  CHECK(missing.error().text().find("/nonexistent/config.toml") != std::string::npos);
  CHECK(missing.error().text().find("FLOTILLA_CONFIG") != std::string::npos);
  // A folder in its place stands for all that is there and cannot be read: a test that runs as root may read every file.
  for (const auto named : {Missing::refused, Missing::defaults}) {
    const auto unreadable = load_config("/proc/self", named);
    REQUIRE_FALSE(unreadable);
    CHECK(unreadable.error().text().find("/proc/self") != std::string::npos);
  }
}

TEST_CASE("times after which a pilot ends are longer than nothing") {
  for (const char* text : {"[pilots]\ncutoff = '0s'\n", "[pilots]\nidle = '0'\n"}) {
    const auto config = parse_config(text, "c.toml");
    REQUIRE_FALSE(config);
    CHECK(config.error().text().find("more than 0") != std::string::npos);
  }
}

TEST_CASE("durations and sizes") {
  CHECK(parse_duration("90").value() == 90'000);
  CHECK(parse_duration("1.5h").value() == 5'400'000);
  CHECK(parse_duration("250ms").value() == 250);
  CHECK(parse_duration("2 d").value() == 172'800'000);
  for (const char* bad : {"", "h", "-1s", "3 weeks", "1e400"}) CHECK_FALSE(parse_duration(bad));
  CHECK(parse_size("64KiB").value() == 65536);
  CHECK(parse_size("10MB").value() == 10'000'000);
  for (const char* bad : {"", "MB", "-3", "3 XB"}) CHECK_FALSE(parse_size(bad));
}
