#include "proto/base/paths.hpp"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>

using namespace flotilla;

namespace {

// A variable of the environment, and the working directory, as they were again at the end.
class Place {
 public:
  explicit Place(const char* name) : name_(name) {
    if (const char* value = std::getenv(name)) before_ = value;
    std::filesystem::current_path("/tmp");
  }
  ~Place() {
    if (before_.empty()) unsetenv(name_);
    else setenv(name_, before_.c_str(), 1);
    std::filesystem::current_path(folder_);
  }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

 private:
  const char* name_;
  std::string before_;
  std::filesystem::path folder_ = std::filesystem::current_path();
};

}  // namespace

TEST_CASE("a place has one spelling, however it is named") {
  std::ifstream table(PATHS);
  REQUIRE(table);
  const Place place("FLOTILLA_STATE_DIR");
  int lines = 0;
  for (std::string line; std::getline(table, line);) {
    if (line.empty() || line[0] == '#') continue;
    const auto middle = line.find(" = ");
    REQUIRE(middle != std::string::npos);
    setenv("FLOTILLA_STATE_DIR", line.substr(0, middle).c_str(), 1);
    CHECK(state_dir().string() == line.substr(middle + 3));
    ++lines;
  }
  CHECK(lines > 10);
}

TEST_CASE("the sockets lie in the same place, however the state directory is named") {
  const Place place("FLOTILLA_STATE_DIR");
  setenv("FLOTILLA_STATE_DIR", "/tmp/x", 1);
  const auto runtime = runtime_dir();
  for (const char* same : {"/tmp/x/", "x", "./x", "/tmp//x"}) {
    setenv("FLOTILLA_STATE_DIR", same, 1);
    CHECK(runtime_dir() == runtime);
  }
}
