#include <set>

#include <catch2/catch.hpp>

#include "client/amuse/core/job_request.hpp"
#include "client/amuse/core/runner_pieces.hpp"
#include "flotilla/message.hpp"

using namespace flotilla;
using namespace flotilla::amuse;

namespace {

struct Heard final : PieceSink {
  std::string out, value, files;
  void on_output(std::string_view bytes) override { out += bytes; }
  void on_value(std::string_view bytes) override { value += bytes; }
  void on_file_begin(const std::string& path, unsigned mode) override { files += path + ":" + std::to_string(mode) + "="; }
  void on_file_bytes(std::string_view bytes) override { files += bytes; }
  void on_file_end() override { files += ";"; }
};

std::string piece(char kind, const std::string& bytes = {}) {
  std::string made(1, kind);
  for (int shift = 24; shift >= 0; shift -= 8) made += static_cast<char>(bytes.size() >> shift & 0xff);
  return made + bytes;
}

using Words = std::vector<std::string>;

std::set<std::string> names(const CommandSpec& spec) {
  std::set<std::string> found;
  for (const auto& file : spec.files) found.insert(file.name);
  return found;
}

}  // namespace

TEST_CASE("a script job's arguments are split as a shell does") {
  CHECK(split_words("") == Words{});
  CHECK(split_words("  a  b\tc\n") == Words{"a", "b", "c"});
  CHECK(split_words("'two words' \"three \\\"words\\\" here\" a\\ b") == Words{"two words", "three \"words\" here", "a b"});
  CHECK(split_words("'' x\"\"y 'a\\b'") == Words{"", "xy", "a\\b"});
  CHECK(split_words("$HOME `id` *") == Words{"$HOME", "`id`", "*"});
  CHECK_THROWS_AS(split_words("it's"), InvalidArgumentError);
}

TEST_CASE("folders lie in the job's folder where they lie here, and never outside of it") {
  CHECK(place_in_job("") == "");
  CHECK(place_in_job(".") == "");
  CHECK(place_in_job("in/") == "in");
  CHECK(place_in_job("a/./b/../c") == "a/c");
  CHECK(place_in_job("/data/in") == "in");
  CHECK(place_in_job("/data/in/") == "in");
  CHECK(place_in_job("../other/in") == "in");
  CHECK(place_in_job("..") == "");
  CHECK(place_in_job("/") == "");
}

TEST_CASE("a script job is a command with all its files") {
  const ScriptRow row{"scripts", "s.py", "one 'two words'", "/data/in", "out", "", "", "here"};
  const auto spec = make_script_spec(row, {{"scripts", {"s.py", "lib/m.py"}}, {"/data/in", {"a.dat"}}}, "/amuse", false);
  CHECK(names(spec) == std::set<std::string>{"start-code", "job_runner.py", "scripts/s.py", "scripts/lib/m.py", "in/a.dat"});
  CHECK(Words(spec.argv.end() - 5, spec.argv.end()) == Words{"script", "scripts/s.py", "out", "one", "two words"});
  CHECK(spec.label == "here");
  CHECK(spec.private_folder);
  for (const auto& file : spec.files)
    if (file.name == "in/a.dat") CHECK(file.path == "/data/in/a.dat");

  auto wrong = row;
  wrong.script_name = "other.py";
  CHECK_THROWS_WITH(make_script_spec(wrong, {{"scripts", {"s.py"}}}, "", false), Catch::Contains("there is no script other.py in scripts"));
  wrong.script_name = "";
  CHECK_THROWS_WITH(make_script_spec(wrong, {{"scripts", {"s.py"}}}, "", false), Catch::Contains("no script_name"));
  wrong = row;
  wrong.output_dir = ".";
  CHECK_THROWS_WITH(make_script_spec(wrong, {{"scripts", {"s.py"}}}, "", false), Catch::Contains("whole folder"));
}

TEST_CASE("what a job sends back is taken apart however it is cut") {
  const auto stream = piece('o', "text") + piece('f', "640 a/b.txt") + piece('d', "12") + piece('d', "3") + piece('e') + piece('v', "va") +
                      piece('v', "lue") + piece('o') + piece('z');
  for (std::size_t step : {1u, 3u, 7u, 1000u}) {
    Heard heard;
    RunnerPieces pieces(heard);
    for (std::size_t at = 0; at < stream.size(); at += step) {
      CHECK_FALSE(pieces.whole());
      pieces.take(std::string_view(stream).substr(at, step));
    }
    CHECK(pieces.whole());
    CHECK(heard.out == "text");
    CHECK(heard.value == "value");
    CHECK(heard.files == "a/b.txt:416=123;");
  }
}

TEST_CASE("what no runner sends is refused, and no file leaves its folder") {
  for (const auto& stream :
       {piece('f', "644 ../x"), piece('f', "644 /etc/x"), piece('f', "644 a/../x"), piece('f', "644 "), piece('f', "x"),
        piece('f', "948 x"), piece('f', std::string("644 a\0b", 7)), piece('d', "x"), piece('e'), piece('q'), piece('z') + piece('o', "x"),
        piece('f', "644 a") + piece('f', "644 b"), std::string("o\xff\xff\xff\xff")}) {
    Heard heard;
    RunnerPieces pieces(heard);
    INFO(stream);
    CHECK_THROWS_AS(pieces.take(stream), MessageError);
    CHECK_NOTHROW(pieces.take(piece('o', "later")));
    CHECK(heard.out.empty());
  }
}
