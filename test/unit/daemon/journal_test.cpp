#include "daemon/journal/journal.hpp"

#include <signal.h>
#include <sqlite3.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <semaphore>
#include <thread>

using namespace flotilla;
using namespace flotilla::daemon;
namespace fs = std::filesystem;

namespace {
std::atomic<std::thread::id> appends;  // the thread that is looked at
std::atomic<int> synced_here{0};       // by it
std::counting_semaphore synced_elsewhere{0};
}  // namespace

// SQLite's and the journal's: counted, then done.
extern "C" int fdatasync(int fd) {
  const int done = static_cast<int>(syscall(SYS_fdatasync, fd));
  if (std::this_thread::get_id() == appends.load()) ++synced_here;
  else synced_elsewhere.release();
  return done;
}

namespace {
struct TemporaryDir {
  TemporaryDir() {
    char name[] = "/tmp/fl-journal-test-XXXXXX";
    path = mkdtemp(name);
  }
  ~TemporaryDir() { fs::remove_all(path); }
  fs::path path;
};
v1::Event event(std::uint64_t job) {
  v1::Event e;
  e.set_at_ms(static_cast<std::int64_t>(job));
  e.mutable_job_submitted()->set_job(job);
  return e;
}
std::vector<std::uint64_t> all(Journal& journal) {
  std::vector<std::uint64_t> jobs;
  REQUIRE(journal.replay([&](const v1::Event& e) { jobs.push_back(e.job_submitted().job()); }));
  return jobs;
}
}  // namespace

TEST_CASE("events come back in order, across an end of the process and groups larger than a row") {
  TemporaryDir dir;
  std::string instance;
  {
    auto journal = Journal::open(dir.path, Durability::process);
    REQUIRE(journal);
    instance = (*journal)->instance();
    CHECK(instance.size() == 16);
    REQUIRE((*journal)->append({event(1)}));
    std::vector<v1::Event> many;
    for (std::uint64_t i = 2; i <= 10'000; ++i) many.push_back(event(i));
    REQUIRE((*journal)->append(many));
    REQUIRE((*journal)->put("a", std::string("x\0y", 3)));
  }
  auto journal = Journal::open(dir.path, Durability::disk);
  REQUIRE(journal);
  CHECK((*journal)->instance() == instance);
  CHECK((*journal)->get("a") == std::string("x\0y", 3));
  CHECK((*journal)->get("b").empty());
  const auto jobs = all(**journal);
  REQUIRE(jobs.size() == 10'000);
  CHECK(std::is_sorted(jobs.begin(), jobs.end()));
}

TEST_CASE("for the disk an append is on it when it returns; else it follows soon on another thread") {
  TemporaryDir dir;
  appends = std::this_thread::get_id();
  for (const auto durability : {Durability::disk, Durability::process, Durability::disk}) {
    INFO((durability == Durability::disk ? "disk" : "process"));
    auto journal = Journal::open(dir.path, durability);
    REQUIRE(journal);
    REQUIRE((*journal)->append({event(1)}));  // SQLite syncs as the file begins anew
    for (int i = 0; i < 3; ++i) {
      while (synced_elsewhere.try_acquire()) {}
      synced_here = 0;
      REQUIRE((*journal)->append({event(1)}));
      if (durability == Durability::disk) {
        CHECK(synced_here > 0);
      } else {
        CHECK(synced_here == 0);
        CHECK(synced_elsewhere.try_acquire_for(std::chrono::seconds(20)));
      }
    }
  }
}

TEST_CASE("a second daemon is refused while the first lives") {
  TemporaryDir dir;
  auto first = Journal::open(dir.path, Durability::process);
  REQUIRE(first);
  auto second = Journal::open(dir.path, Durability::process);
  REQUIRE_FALSE(second);
  CHECK(second.error().code == Code::already_exists);
}

TEST_CASE("a format of tomorrow is refused with a sentence") {
  TemporaryDir dir;
  { REQUIRE((*Journal::open(dir.path, Durability::process))->put("format", "2")); }
  auto journal = Journal::open(dir.path, Durability::process);
  REQUIRE_FALSE(journal);
  CHECK(journal.error().code == Code::version_mismatch);
}

TEST_CASE("what was acknowledged survives a kill -9 at any moment") {
  for (int round = 0; round < 5; ++round) {
    TemporaryDir dir;
    int pipe_ends[2];
    REQUIRE(pipe(pipe_ends) == 0);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // acknowledges each event with its number on the pipe
      auto journal = Journal::open(dir.path, Durability::process);
      for (std::uint64_t i = 1;; ++i) {
        if (!journal || !(*journal)->append({event(i)})) _exit(1);
        if (write(pipe_ends[1], &i, sizeof i) != sizeof i) _exit(1);
      }
    }
    close(pipe_ends[1]);
    std::uint64_t last = 0, number = 0;
    const std::uint64_t enough = 200 + 300 * static_cast<std::uint64_t>(round);
    while (last < enough && read(pipe_ends[0], &number, sizeof number) == sizeof number) last = number;
    kill(child, SIGKILL);
    while (read(pipe_ends[0], &number, sizeof number) == sizeof number) last = number;
    close(pipe_ends[0]);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    auto journal = Journal::open(dir.path, Durability::process);
    REQUIRE(journal);
    const auto jobs = all(**journal);
    CHECK(last >= enough);
    CHECK(jobs.size() >= last);
    CHECK(jobs.size() <= last + 1);  // one may be written and not yet acknowledged
    for (std::size_t i = 0; i < jobs.size(); ++i) REQUIRE(jobs[i] == i + 1);
  }
}

TEST_CASE("a damaged row is named, not skipped") {
  TemporaryDir dir;
  { REQUIRE((*Journal::open(dir.path, Durability::process))->append({event(1)})); }
  sqlite3* raw = nullptr;
  REQUIRE(sqlite3_open((dir.path / "journal.db").c_str(), &raw) == SQLITE_OK);
  REQUIRE(sqlite3_exec(raw, "UPDATE events SET batch = x'ffffff7f00'", nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(raw);
  auto journal = Journal::open(dir.path, Durability::process);
  REQUIRE(journal);
  auto status = (*journal)->replay([](const v1::Event&) {});
  REQUIRE_FALSE(status);
  CHECK(status.error().message.find("row 1") != std::string::npos);
}
