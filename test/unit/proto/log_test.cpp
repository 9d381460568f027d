#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "proto/base/log.hpp"

namespace fs = std::filesystem;

TEST_CASE("a log is bounded: four files of 4 MiB, the newest lines in the first, nobody else reads them") {
  std::string pattern = "/tmp/fl-log-XXXXXX";
  REQUIRE(mkdtemp(pattern.data()));
  const fs::path folder = pattern, file = folder / "part.log";
  const auto before = spdlog::default_logger();
  REQUIRE(flotilla::init_log(file));
  const std::string text(1000, 'x');
  for (int i = 0; i < 20'000; ++i) spdlog::info("{} {}", i, text);  // 20 MB
  spdlog::debug("not told");
  flotilla::set_log_debug(true);
  spdlog::debug("told at once");
  flotilla::set_log_debug(false);
  int files = 0;
  for (const auto& each : fs::directory_iterator(folder)) {
    ++files;
    CHECK(each.file_size() <= (4u << 20));
    struct stat info {};
    REQUIRE(stat(each.path().c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0600);
  }
  CHECK(files == 4);
  for (const auto& each : flotilla::files_of_log(file)) CHECK(fs::exists(each));
  CHECK(flotilla::files_of_log(file).size() == 4);
  std::ifstream newest(file);
  const std::string said((std::istreambuf_iterator<char>(newest)), {});
  CHECK(said.find("19999 ") != std::string::npos);
  CHECK(said.find("not told") == std::string::npos);
  CHECK(said.find("debug told at once") != std::string::npos);
  spdlog::set_default_logger(before);
  fs::remove_all(folder);
}

TEST_CASE("a link leads to a log, anew at each start") {
  std::string pattern = "/tmp/fl-log-XXXXXX";
  REQUIRE(mkdtemp(pattern.data()));
  const fs::path folder = pattern;
  for (const char* target : {"old/part.log", "new/part.log"}) flotilla::link_log(folder / target, folder / "links", "node1");
  CHECK(fs::read_symlink(folder / "links/node1-part.log") == folder / "new/part.log");
  flotilla::link_log(folder / "part.log", "/proc/nowhere", "node1");  // worth no failure
  fs::remove_all(folder);
}
