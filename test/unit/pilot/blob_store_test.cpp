#include "pilot/process/blob_store.hpp"

#include <stdlib.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "pilot/process/scratch.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"

using namespace flotilla;
using namespace flotilla::pilot;
namespace fs = std::filesystem;

namespace {
struct Folder {
  fs::path path;
  Folder() {
    char name[] = "/tmp/flblob-XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { fs::remove_all(path); }
};
}  // namespace

TEST_CASE("names that stay inside of a folder") {
  for (const char* name : {"a", "a/b.c", "..a/b", ".hidden"}) CHECK(is_inside_name(name));
  for (const char* name : {"", "/a", "..", "a/../b", "a//b", "./a", "a/", "a/.."}) CHECK_FALSE(is_inside_name(name));
}

TEST_CASE("pieces in order make a blob; a wrong hash leaves nothing") {
  Folder folder;
  BlobStore store(folder.path);
  const std::string content(3000, 'x'), hash = sha256(content);
  CHECK(store.begin(hash) == 0);
  CHECK(*store.add(hash, 0, content.substr(0, 1000), false) == BlobStore::Progress::more);
  CHECK(*store.add(hash, 0, content.substr(0, 1000), false) == BlobStore::Progress::more);  // again: no harm
  CHECK(store.begin(hash) == 1000);
  CHECK(*store.add(hash, 1000, content.substr(1000), true) == BlobStore::Progress::complete);
  CHECK(store.has(hash));
  const std::string other = sha256("other");
  store.begin(other);
  CHECK_FALSE(store.add(other, 0, "not that", true).has_value());
  CHECK_FALSE(store.has(other));
  CHECK(std::distance(fs::directory_iterator(folder.path), {}) == 1);

  v1::InputFile file;
  file.set_name("in/side");
  file.set_sha256(hash);
  file.set_mode(0500);
  const fs::path job = folder.path / "job";
  fs::create_directory(job);
  REQUIRE(store.place(file, job));
  CHECK(fs::file_size(job / "in/side") == 3000);
  CHECK(fs::status(job / "in/side").permissions() == fs::perms(0500));
  fs::remove_all(job);
  store.shrink_to(2999);
  CHECK_FALSE(store.has(hash));
}

TEST_CASE("of the logs of pilots the newest stay, and those of pilots that may run") {
  Folder folder;
  const auto now = fs::file_time_type::clock::now();
  const auto log = [&](const std::string& name, std::chrono::hours age) {
    std::ofstream(folder.path / name) << "x";
    fs::last_write_time(folder.path / name, now - age);
  };
  for (int i = 1; i <= 10; ++i) log("abcdef01-pilot-" + std::to_string(i) + ".0.log", std::chrono::hours(100 - i));
  log("abcdef01-pilot-1.0.1.log", std::chrono::hours(200));
  log("hub-0123.log", std::chrono::hours(1000));
  log("abcdef01-pilot-11.0.log", std::chrono::hours(1));
  log("abcdef01-pilot-11.1.log", std::chrono::hours(1));
  CHECK(remove_old_logs(folder.path, 5, std::chrono::hours(98)) == 2);
  std::set<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder.path)) left.insert(entry.path().filename());
  CHECK(left.size() == 11);
  CHECK_FALSE(left.contains("abcdef01-pilot-1.0.log"));
  CHECK_FALSE(left.contains("abcdef01-pilot-1.0.1.log"));
  CHECK_FALSE(left.contains("abcdef01-pilot-2.0.log"));
  CHECK(left.contains("abcdef01-pilot-3.0.log"));
  CHECK(left.contains("hub-0123.log"));
  CHECK(remove_old_logs(folder.path, 5, std::chrono::hours(0)) == 5);
  CHECK(remove_old_logs(folder.path / "nowhere", 5, std::chrono::hours(0)) == 0);
}

TEST_CASE("scratch is the first place that can be written") {
  Folder folder;
  std::ofstream(folder.path / "file") << "no folder";
  auto candidates = flotilla::scratch_candidates((folder.path / "file").string(), folder.path / "home", 4711);
  REQUIRE(candidates.size() == 4);
  CHECK(candidates[0] == folder.path / "file" / "flotilla");
  CHECK(candidates[1] == folder.path / "home/.cache/flotilla");
  CHECK(candidates[2] == "/tmp/flotilla-4711");
  CHECK(choose_scratch(candidates).value() == candidates[1]);
  auto none = choose_scratch({candidates[0]});
  REQUIRE_FALSE(none.has_value());
  CHECK(none.error().faults.size() == 1);
  CHECK(flotilla::scratch_candidates("~/x", "/home/u", 1)[0] == "/home/u/x/flotilla");
}
