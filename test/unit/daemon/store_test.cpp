#include <unistd.h>

#include <catch2/catch.hpp>

#include "daemon/store/blob_store.hpp"
#include "daemon/store/output_store.hpp"
#include "proto/base/random.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
namespace fs = std::filesystem;

namespace {
struct TemporaryDir {
  TemporaryDir() {
    char name[] = "/tmp/fl-store-test-XXXXXX";
    path = mkdtemp(name);
  }
  ~TemporaryDir() { fs::remove_all(path); }
  fs::path path;
};
}  // namespace

TEST_CASE("output is taken once, whatever comes twice, and is there after a restart") {
  TemporaryDir dir;
  const JobId job{7};
  {
    OutputStore store(dir.path, 1 << 20);
    REQUIRE(store.append(job, 1, 0, "hello "));
    REQUIRE(store.append(job, 1, 0, "hello world"));  // sent again, with more
    REQUIRE(store.append(job, 1, 3, "lo"));
    REQUIRE(store.append(job, 2, 0, "oops"));
    CHECK(store.taken(job, 1) == 11);
    CHECK(store.read(job, 1, 0, 100).value() == "hello world");
    CHECK(store.read(job, 1, 6, 3).value() == "wor");
    CHECK(store.read(job, 1, 11, 3).value().empty());
    store.close(job);
    CHECK(store.read(job, 2, 0, 100).value() == "oops");
  }
  OutputStore store(dir.path, 1 << 20);
  CHECK(store.taken(job, 1) == 11);
  REQUIRE(store.append(job, 1, 11, "!"));
  CHECK(store.read(job, 1, 0, 100).value() == "hello world!");
  store.remove(job);
  CHECK(store.taken(job, 1) == 0);
}

TEST_CASE("beyond the limit output is counted, not kept") {
  TemporaryDir dir;
  OutputStore store(dir.path, 10);
  REQUIRE(store.append(JobId{1}, 1, 0, "12345678"));
  REQUIRE(store.append(JobId{1}, 1, 8, "90abcdef"));
  CHECK(store.taken(JobId{1}, 1) == 16);
  CHECK(store.read(JobId{1}, 1, 0, 100).value() == "1234567890");
}

TEST_CASE("an input file appears only when its content fits its hash") {
  TemporaryDir dir;
  BlobStore store(dir.path / "blobs");
  const std::string content(100'000, 'q'), hash = sha256(content);
  CHECK_FALSE(store.has(hash));
  {
    auto writer = store.create(hash);
    REQUIRE(writer);
    REQUIRE((*writer)->write(content.substr(0, 500)));
    auto wrong = (*writer)->finish();
    CHECK_FALSE(wrong);
  }
  CHECK_FALSE(store.has(hash));
  auto writer = store.create(hash);
  REQUIRE(writer);
  REQUIRE((*writer)->write(content.substr(0, 500)));
  REQUIRE((*writer)->write(content.substr(500)));
  REQUIRE((*writer)->finish());
  CHECK(store.has(hash));
  CHECK(store.size(hash) == content.size());
  CHECK(store.read(hash, 99'990, 100).value() == "qqqqqqqqqq");
  CHECK(std::distance(fs::directory_iterator(dir.path / "blobs"), {}) == 1);  // nothing half written stays
}
