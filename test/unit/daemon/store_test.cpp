#include <signal.h>
#include <sys/resource.h>
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

// Writes beyond it fail, after what fits was written: as on a disk that runs full.
struct FileSizeLimit {
  explicit FileSizeLimit(rlim_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    const rlimit limit{bytes, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before); }
  rlimit before{};
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
}

TEST_CASE("beyond the limit output is counted, not kept") {
  TemporaryDir dir;
  OutputStore store(dir.path, 10);
  REQUIRE(store.append(JobId{1}, 1, 0, "12345678"));
  REQUIRE(store.append(JobId{1}, 1, 8, "90abcdef"));
  CHECK(store.taken(JobId{1}, 1) == 16);
  CHECK(store.kept(JobId{1}, 1) == 10);
  CHECK(store.read(JobId{1}, 1, 0, 100).value() == "1234567890");
  // After a restart more is not known; whatever comes then is no gap.
  OutputStore again(dir.path, 10);
  CHECK(again.taken(JobId{1}, 1) == 10);
  CHECK(again.full(JobId{1}, 1));
  REQUIRE(again.append(JobId{1}, 1, 20, "more"));
  CHECK(again.taken(JobId{1}, 1) == 24);
  CHECK(again.kept(JobId{1}, 1) == 10);
}

TEST_CASE("what comes out of turn is refused, unless nothing else will come") {
  TemporaryDir dir;
  OutputStore store(dir.path, 1 << 20);
  const JobId job{7};
  REQUIRE(store.append(job, 1, 0, "one"));
  CHECK_FALSE(store.append(job, 1, 4, "three"));
  CHECK(store.taken(job, 1) == 3);
  store.pass_over(job, 1, 4);
  REQUIRE(store.append(job, 1, 4, "three"));
  CHECK(store.read(job, 1, 0, 100).value() == std::string("one\0three", 9));
  OutputStore again(dir.path, 1 << 20);
  CHECK(again.taken(job, 1) == 9);
}

TEST_CASE("a full disk: what did fit is taken, the rest can be sent again") {
  TemporaryDir dir;
  OutputStore store(dir.path, 1 << 20);
  const JobId job{7};
  REQUIRE(store.append(job, 1, 0, "0123456789"));
  {
    FileSizeLimit limit(14);
    auto status = store.append(job, 1, 10, "abcdefgh");
    REQUIRE_FALSE(status);
    CHECK(status.error().code == Code::resource_exhausted);
    CHECK(store.taken(job, 1) == 14);
    CHECK_FALSE(store.append(job, 1, 18, "the next"));
    CHECK(store.taken(job, 1) == 14);
    CHECK(OutputStore(dir.path, 1 << 20).taken(job, 1) == 14);
  }
  REQUIRE(store.append(job, 1, 10, "abcdefgh"));
  REQUIRE(store.append(job, 1, 18, "the next"));
  CHECK(store.read(job, 1, 0, 100).value() == "0123456789abcdefghthe next");
}

TEST_CASE("a journal that begins anew has no output of another one's jobs") {
  TemporaryDir dir;
  {
    OutputStore store(dir.path, 1 << 20);
    for (const std::uint64_t job : {1, 5, 6, 999, 1000, 2500}) REQUIRE(store.append(JobId{job}, 1, 0, "old"));
    REQUIRE(store.append(JobId{6}, 2, 0, "old"));
  }
  OutputStore store(dir.path, 1 << 20);
  CHECK(store.taken(JobId{6}, 1) == 3);
  store.remove_after(JobId{5});
  for (const std::uint64_t job : {1, 5}) CHECK(store.read(JobId{job}, 1, 0, 100).value() == "old");
  for (const std::uint64_t job : {6, 999, 1000, 2500}) CHECK(store.taken(JobId{job}, 1) == 0);
  CHECK(store.taken(JobId{6}, 2) == 0);
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
