// The command line's pure parts: durations, sizes, tables, JSON, suggestions, what a terminal was told.
#include <catch2/catch.hpp>
#include <cmath>
#include <csignal>

#include "client/cli/core/json.hpp"
#include "client/cli/core/kept_input.hpp"
#include "client/cli/core/suggest.hpp"
#include "client/cli/core/table.hpp"
#include "client/cli/core/terminal_modes.hpp"
#include "client/cli/core/units.hpp"
#include "flotilla/v1/client.pb.h"

using namespace flotilla;
using namespace flotilla::cli;

TEST_CASE("durations are read as people write them") {
  const std::pair<const char*, std::int64_t> good[] = {{"90", 90'000},        {"90s", 90'000},
                                                       {"250ms", 250},        {"10min", 600'000},
                                                       {"10 min", 600'000},   {"1.5h", 5'400'000},
                                                       {"2h30m", 9'000'000},  {"1 d 4 h", 100'800'000},
                                                       {"1d4h", 100'800'000}, {"1:30:00", 5'400'000},
                                                       {"02:30", 150'000},    {"2 weeks", 1'209'600'000},
                                                       {" 5 s ", 5'000},      {"0", 0},
                                                       {"1h0m1s", 3'601'000}, {"36525d", 3'155'760'000'000}};
  for (const auto& [text, ms] : good) {
    INFO(text);
    const auto value = parse_duration(text);
    REQUIRE(value);
    CHECK(*value == ms);
  }
  for (const char* text : {"",
                           " ",
                           "-5s",
                           "5 parsecs",
                           "s",
                           "1h1h",
                           "1m1h",
                           "1h30",
                           "1.2.3s",
                           "1:60",
                           "1:2:3:4",
                           ":",
                           "1:",
                           "1:-2",
                           "inf",
                           "36526d",
                           "1e400d",
                           "9999999999999999999999d",
                           "99999999999:00:00",
                           "0.1ms",
                           "1h 2"}) {
    INFO(text);
    const auto value = parse_duration(text);
    REQUIRE_FALSE(value);
    CHECK(value.error().code == Code::invalid_argument);
    CHECK(value.error().message.find(text) != std::string::npos);
    CHECK_FALSE(value.error().hint.empty());
  }
}

TEST_CASE("sizes are read as people write them") {
  const std::pair<const char*, std::int64_t> good[] = {{"4096", 4096},       {"64k", 65536},      {"64 KiB", 65536}, {"64kB", 64000},
                                                       {"1.5G", 1610612736}, {"2 MB", 2'000'000}, {"0", 0},          {"7B", 7}};
  for (const auto& [text, bytes] : good) {
    INFO(text);
    const auto value = parse_size(text);
    REQUIRE(value);
    CHECK(*value == bytes);
  }
  for (const char* text : {"", "-1", "k", "1 furlong", "1kk", "1e3", "99999999999P"}) {
    INFO(text);
    CHECK_FALSE(parse_size(text));
  }
}

TEST_CASE("durations that are shown can be read again, as far as they are shown") {
  for (std::int64_t ms = 1; ms < 3'000'000'000; ms = ms * 7 / 3 + 1) {
    const auto again = parse_duration(format_duration(ms));
    INFO(ms << " " << format_duration(ms));
    REQUIRE(again);
    // Two units, or three digits.
    CHECK(std::abs(static_cast<double>(*again - ms)) <= 0.05 * static_cast<double>(ms));
  }
  CHECK(format_duration(0) == "0 ms");
  CHECK(format_duration(1'234) == "1.23 s");
  CHECK(format_duration(59'999) == "60.0 s");
  CHECK(format_duration(200'000) == "3 min 20 s");
  CHECK(format_duration(7'500'000) == "2 h 5 min");
}

TEST_CASE("signals have names and numbers") {
  for (const char* text : {"INT", "SIGINT", "int", "sigint", "2"}) CHECK(parse_signal(text).value_or(0) == SIGINT);
  for (const char* text : {"", "0", "65", "NOPE", "SIG", "2x"}) CHECK_FALSE(parse_signal(text));
  CHECK(format_signal(SIGKILL) == "SIGKILL");
  CHECK(parse_signal("winch").value_or(0) == SIGWINCH);
  CHECK(format_signal(60) == "signal 60");
}

TEST_CASE("assignments of variables") {
  CHECK(parse_assignment("A=b=c").value() == std::pair<std::string, std::string>("A", "b=c"));
  CHECK(parse_assignment("_x1=").value() == std::pair<std::string, std::string>("_x1", ""));
  for (const char* text : {"A", "=b", "1A=b", "A-B=c", ""}) CHECK_FALSE(parse_assignment(text));
}

TEST_CASE("sizes and counts are shown with the unit that fits") {
  CHECK(format_size(17) == "17 B");
  CHECK(format_size(1536) == "1.5 KiB");
  CHECK(format_size(1023 * 1024) == "1023 KiB");
  CHECK(format_size(314572800) == "300 MiB");
  CHECK(format_size(~0ULL) == "16 EiB");
  CHECK(format_count(999) == "999");
  CHECK(format_count(1234) == "1.2 k");
  CHECK(format_count(0.25) == "0.2");
  CHECK(format_count(1e300).size() > 290);
}

TEST_CASE("ages") {
  const std::int64_t noon = 1'795'176'000'000;
  CHECK(format_age(noon, noon + 500) == "just now");
  CHECK(format_age(noon, noon + 125'000) == "2 min ago");
}

TEST_CASE("what comes from elsewhere cannot move the cursor") {
  CHECK(printable("a\033[2Jb\nc\td\x7f") == "a?[2Jb c d?");
  CHECK(printable("\xC2\x9B"
                  "31m") == "??31m");
  CHECK(printable("Grüße") == "Grüße");
  CHECK(printable("\xFF\xFEz\xC3") == "??z?");
  CHECK(printable("Grüße an alle", 6) == "Grüße…");
  CHECK(width("Grüße") == 5);
  CHECK(pad("ab", 4) == "ab  ");
  CHECK(pad("ab", 4, true) == "  ab");
}

TEST_CASE("text is wrapped at blanks") {
  CHECK(wrap("one two three four", 10) == "one two\nthree four");
  CHECK(wrap("one two three", 9, 2) == "one two\n  three");
  CHECK(wrap("a\n\nb", 10, 2) == "a\n\n  b");
  CHECK(wrap("averyveryverylongword x", 5) == "averyveryverylongword\nx");
}

TEST_CASE("words for the shell") {
  CHECK(shell_quote("plain-1.0/x=y") == "plain-1.0/x=y");
  CHECK(shell_quote("two words") == "'two words'");
  CHECK(shell_quote("it's") == "'it'\\''s'");
  CHECK(shell_quote("") == "''");
  CHECK(shell_quote("$(rm)") == "'$(rm)'");
}

TEST_CASE("the nearest word is suggested, when it is near") {
  const std::vector<std::string> known{"run", "submit", "resource", "pilot", "--slots", "--time", "list"};
  CHECK(nearest("resuorce", known) == "resource");
  CHECK(nearest("--slts", known) == "--slots");
  CHECK(nearest("lsit", known) == "list");
  CHECK(nearest("sub", known) == "submit");
  CHECK(nearest("rnu", known) == "run");
  CHECK_FALSE(nearest("xyzzy", known));
  CHECK_FALSE(nearest("q", known));
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("ab", "ba") == 1);
  CHECK(edit_distance("", "abc") == 3);
}

TEST_CASE("enumerators lose their type's prefix only") {
  CHECK(state_text(v1::JOB_RUNNING) == "running");
  CHECK(state_text(v1::PILOT_UNREACHABLE) == "unreachable");
  CHECK(state_text(v1::HUB_NONE) == "none");
  CHECK(state_text(v1::EXIT_NONE) == "none");
  CHECK(state_text(v1::EXITED) == "exited");
  CHECK(state_text(v1::PILOT_LOST) == "pilot_lost");
  CHECK(state_text(static_cast<v1::JobState>(99)) == "99");
}

TEST_CASE("JSON is stable: names, numbers, order, all scalars") {
  v1::Job job;
  job.set_id(1ULL << 53);
  job.set_state(v1::JOB_FAILED);
  job.mutable_spec()->mutable_command()->add_argv("say \"hi\"\n");
  job.mutable_spec()->mutable_command()->add_argv("\xFF");
  (*job.mutable_spec()->mutable_env())["B"] = "2";
  (*job.mutable_spec()->mutable_env())["A"] = "1";
  job.mutable_spec()->add_files()->set_sha256("\x01\xFE");
  const std::string text = to_json(job);
  CHECK(text.find("\"id\": 9007199254740992,") != std::string::npos);
  CHECK(text.find("\"state\": \"failed\"") != std::string::npos);
  CHECK(text.find(R"("argv": ["say \"hi\"\n", ")"
                  "\xEF\xBF\xBD"
                  R"("])") != std::string::npos);
  CHECK(text.find("\"A\": \"1\",") < text.find("\"B\": \"2\""));
  CHECK(text.find("\"sha256\": \"01fe\"") != std::string::npos);
  CHECK(text.find("\"pilot_unreachable\": false") != std::string::npos);
  CHECK(text.find("\"worker\"") == std::string::npos);  // the other kind of job
  CHECK(text.find("\"exit\"") == std::string::npos);    // not yet
  CHECK(to_json(v1::Empty()) == "{}");
  v1::DaemonInfo info;
  info.set_started_ms(-1);
  CHECK(to_json(info).find("\"started_ms\": -1") != std::string::npos);
  CHECK(json_list({}) == "[]");
  CHECK(json_list({"1", "2"}) == "[\n  1,\n  2\n]");
  CHECK(json_string("\xED\xA0\x80") == "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");  // a surrogate is no character
  CHECK(json_string("\xC0\xAF") == "\"\xEF\xBF\xBD\xEF\xBF\xBD\"");                  // longer than needed
}

TEST_CASE("tables are aligned, and cut to the terminal") {
  const std::vector<Column> columns{{"ID", Align::right}, {"STATE"}, {"COMMAND", Align::left, true}};
  const std::vector<std::vector<Cell>> rows{{"7", Cell("running", colour::green), "sleep 100000"}, {"12", "ok", "a\tb"}};
  CHECK(format_table(columns, rows, {}) == "ID  STATE    COMMAND\n 7  running  sleep 100000\n12  ok       a b\n");
  CHECK(format_table(columns, rows, {true, false, 0}) == format_table(columns, rows, {}));
  CHECK(format_table({{"A"}, {""}}, {{"1", ""}, {"2", "x"}}, {}) == "A\n1\n2  x\n");  // nothing hangs over
  const std::string coloured = format_table(columns, rows, {true, true, 80});
  CHECK(coloured.find("\033[32mrunning\033[0m") != std::string::npos);
  // The elastic column is cut, and no line is wider than the terminal.
  const std::vector<std::vector<Cell>> wide{{"1", "running", std::string(200, 'x')}};
  const std::string cut = format_table(columns, wide, {true, false, 40});
  std::size_t from = 0;
  for (std::size_t end; (end = cut.find('\n', from)) != std::string::npos; from = end + 1) CHECK(width(cut.substr(from, end - from)) <= 40);
  CHECK(cut.find("…") != std::string::npos);
}

TEST_CASE("what a program switched on in the terminal is undone") {
  TerminalModes modes;
  CHECK(modes.undo().empty());
  modes.feed("plain text \033[1mbold\033[0m\033[2J\033[H");
  CHECK(modes.undo().empty());
  modes.feed("\033[?1049h\033[?25l\033[?2004h\033[?1000;1006h");
  CHECK(modes.undo() == "\033[?1000l\033[?1006l\033[?1049l\033[?2004l\033[?25h\033[0m");
  modes.feed("\033[?10");
  modes.feed("49l\033[?25h\033[?2004l\033[?1000;1006l");
  CHECK(modes.undo().empty());
  modes.feed("\033[31mred");
  CHECK(modes.undo() == "\033[0m");
  modes.feed("\033c");
  CHECK(modes.undo().empty());
  modes.feed(std::string("\033[?") + std::string(10'000, '9') + "h\033[?;h\033[?\033[?25l");
  CHECK(modes.undo().find("\033[?25h") != std::string::npos);
}

TEST_CASE("the detach keys are seen across reads, a Ctrl-P alone goes on") {
  DetachKeys keys;
  std::string out;
  CHECK_FALSE(keys.feed("ab\x10", out));
  CHECK(out == "ab");
  CHECK(keys.holding());
  CHECK_FALSE(keys.feed("c", out));
  CHECK(out ==
        "ab\x10"
        "c");
  out.clear();
  CHECK_FALSE(keys.feed("\x10", out));
  CHECK(keys.release() == "\x10");
  CHECK_FALSE(keys.feed("\x11", out));  // Ctrl-Q alone
  CHECK(out == "\x11");
  out.clear();
  CHECK_FALSE(keys.feed("\x10\x10", out));
  CHECK(out == "\x10");
  CHECK(keys.feed("\x11rest", out));
  CHECK(out == "\x10");
}

TEST_CASE("input is kept until it has reached the job, and the next daemon gets what it lacks") {
  KeptInput kept;
  kept.add("hello ");
  kept.begins_at(100);
  kept.add("world");
  CHECK(kept.end() == 111);
  kept.on_taken(50);  // others' input
  kept.on_taken(103);
  CHECK(kept.again_from(106) == "world");
  CHECK(kept.again_from(103) == "world");  // what was told as taken is gone
  CHECK(kept.again_from(112).empty());
  CHECK(kept.end() == 111);

  KeptInput never_told;
  never_told.add("all of it");
  CHECK(never_told.again_from(7) == "all of it");
  CHECK(never_told.end() == 16);

  KeptInput much;
  much.begins_at(0);
  much.add(std::string(KeptInput::limit_bytes, 'x'));
  CHECK(much.full());
  much.on_taken(1);
  CHECK_FALSE(much.full());
}
