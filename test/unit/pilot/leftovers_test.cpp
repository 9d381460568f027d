#include "pilot/process/leftovers.hpp"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>

using namespace flotilla::pilot;
namespace fs = std::filesystem;

namespace {
bool nobody(pid_t, const std::string&) { return false; }
bool everybody(pid_t, const std::string&) { return true; }
bool guard_only(pid_t pid, const std::string&) { return pid == 10; }

Owner some() { return {"aabbccdd00112233", "7", "0", "node1/x", "boot-1", "pid:[1]", 10, 11, "100", "101", "/tmp/fl-0-aabbccdd/p7.0"}; }

struct Folder {
  fs::path path;
  Folder() {
    std::string name = "/tmp/fl-left-XXXXXX";
    path = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path); }
  fs::path add(const std::string& name, const Owner* owner) {
    fs::create_directories(path / "pilots" / name / "jobs");
    if (owner) std::ofstream(path / "pilots" / name / "owner") << format_owner(*owner);
    return path / "pilots" / name;
  }
};
}  // namespace

TEST_CASE("a pilot is dead when neither it nor its guard runs, or the node was started again; others are not judged") {
  const Owner here = some();
  Owner other = some();
  CHECK(surely_dead(other, here, nobody));
  CHECK_FALSE(surely_dead(other, here, everybody));
  CHECK_FALSE(surely_dead(other, here, guard_only));
  other.boot = "boot-0";
  CHECK(surely_dead(other, here, everybody));
  other = some();
  other.pids = "pid:[2]";  // a container's: its numbers mean nothing here
  CHECK_FALSE(surely_dead(other, here, nobody));
  other = some();
  other.machine = "node2/x";  // it shares the home directory
  CHECK_FALSE(surely_dead(other, here, nobody));
  other.boot = "boot-0";
  CHECK_FALSE(surely_dead(other, here, nobody));
  other = some();
  other.instance = "ffff0000ffff0000";
  CHECK_FALSE(surely_dead(other, here, nobody));
}

TEST_CASE("an owner's file is read as it was written; half a file says nothing") {
  const std::string text = format_owner(some());
  const auto read = parse_owner(text);
  REQUIRE(read);
  CHECK(format_owner(*read) == text);
  for (std::size_t size = 0; size < text.size(); ++size) CHECK_FALSE(parse_owner(text.substr(0, size)));
}

TEST_CASE("the leftovers of dead pilots go, those of live ones, of other instances and of nobody stay") {
  Folder folder;
  const Owner here = own_owner("aabbccdd00112233", "9", "0", getppid(), folder.path / "run" / "p9.0");
  Owner dead = here;
  dead.pilot = "7";
  dead.guard_started = dead.process_started = "1";  // other processes have these numbers now
  dead.runtime_dir = folder.path / "run" / "p7.0";
  fs::create_directories(dead.runtime_dir);
  Owner elsewhere = dead;
  elsewhere.pilot = "8";
  elsewhere.runtime_dir = folder.path / "precious" / "p8.0";
  fs::create_directories(elsewhere.runtime_dir);
  Owner foreign = dead;
  foreign.instance = "ffff0000ffff0000";
  const auto gone = folder.add("aabbccdd-7.0-1", &dead), gone_too = folder.add("aabbccdd-8.0-1", &elsewhere);
  const auto alive = folder.add("aabbccdd-9.0-1", &here), kept = folder.add("aabbccdd-5.0-1", nullptr);
  const auto theirs = folder.add("ffff0000-7.0-1", &foreign);
  CHECK(sweep_leftovers(folder.path / "pilots", here).size() == 2);
  CHECK_FALSE(fs::exists(gone));
  CHECK_FALSE(fs::exists(gone_too));
  CHECK_FALSE(fs::exists(dead.runtime_dir));
  CHECK(fs::exists(elsewhere.runtime_dir));  // not a place of ours
  CHECK(fs::exists(alive));
  CHECK(fs::exists(kept));
  CHECK(fs::exists(theirs));
  CHECK(sweep_leftovers(folder.path / "pilots", here).empty());
  CHECK(sweep_leftovers(folder.path / "nowhere", here).empty());
}
