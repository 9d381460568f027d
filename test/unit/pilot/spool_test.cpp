#include "pilot/process/spool.hpp"

#include <stdlib.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <random>

using namespace flotilla::pilot;

namespace {
struct Folder {
  std::string path;
  Folder() {
    char name[] = "/tmp/flspool-XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { std::filesystem::remove_all(path); }
};
}  // namespace

TEST_CASE("a spool gives back what it was given, whatever moves between memory and file") {
  Folder folder;
  Spool spool(folder.path);
  std::mt19937 random(7);  // fixed: a failure can be repeated
  std::string all;
  std::uint64_t dropped = 0;
  bool was_file = false, was_memory_again = false;
  for (int step = 0; step < 3000; ++step) {
    const unsigned what = random() % 4;
    if (what < 2) {
      std::string piece(random() % 60'000, '\0');
      for (auto& c : piece) c = static_cast<char>(random());
      REQUIRE(spool.append(piece));
      all += piece;
    } else if (what == 2) {
      const std::uint64_t from = dropped + (all.size() > dropped ? random() % (all.size() - dropped) : 0);
      auto got = spool.read(from, random() % 100'000);
      REQUIRE(got.has_value());
      CHECK(*got == all.substr(from, got->size()));
    } else {
      dropped += random() % 8 == 0 ? all.size() - dropped : (all.size() - dropped) / (1 + random() % 8);
      spool.drop_below(dropped);
      CHECK(spool.begin() == dropped);
    }
    CHECK(spool.end() == all.size());
    if (spool.in_file()) was_file = true;
    else if (was_file) was_memory_again = true;
  }
  CHECK(was_file);
  CHECK(was_memory_again);
  CHECK_FALSE(spool.read(dropped - 1, 1).has_value());
  CHECK(std::filesystem::is_empty(folder.path));  // nothing with a name
}

TEST_CASE("without a place to write nothing is taken, and the error says where") {
  Spool spool("/does/not/exist");
  REQUIRE(spool.append(std::string(spool_memory_bytes, 'x')));
  auto more = spool.append("y");
  REQUIRE_FALSE(more.has_value());
  CHECK(more.error().message.find("/does/not/exist") != std::string::npos);
  CHECK(spool.end() == spool_memory_bytes);
  spool.drop_below(10);
  CHECK(spool.append("y").has_value());
}
