// Measurements of the pilot alone; hidden: pilot_integration_test "[bench]". Ratios of one run count.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "test/integration/pilot/fake_daemon.hpp"

using namespace flotilla;
using namespace flotilla::test;

extern char** environ;

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// /bin/true by a bare posix_spawn loop, `width` in flight.
double floor_rate(int count, int width) {
  const auto begin = std::chrono::steady_clock::now();
  int started = 0, ended = 0;
  char program[] = "/bin/true";
  char* arguments[] = {program, nullptr};
  while (ended < count) {
    while (started < count && started - ended < width) {
      pid_t pid;
      if (posix_spawn(&pid, program, nullptr, nullptr, arguments, environ) != 0) return 0;
      ++started;
    }
    if (wait(nullptr) > 0) ++ended;
  }
  return count / seconds_since(begin);
}

long resident_kib(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/status");
  std::string line;
  long kib = 0;
  while (std::getline(in, line))
    if (std::sscanf(line.c_str(), "VmRSS: %ld kB", &kib) == 1) return kib;
  return 0;
}

}  // namespace

TEST_CASE("commands per second against the spawn floor", "[.bench]") {
  constexpr int count = 4000;
  for (int round = 0; round < 3; ++round) {
    const double floor_before = floor_rate(count, 2);
    FakeDaemon daemon;
    daemon.start.mutable_spec()->set_slots_per_node(2);
    daemon.auto_forget = true;
    daemon.launch();
    REQUIRE(daemon.outcome.code == 0);
    v1::JobSpec spec;
    spec.mutable_command()->add_argv("/bin/true");
    spec.set_working_folder("/tmp");
    int submitted = 0, ended = 0;
    daemon.on_end = [&](const v1::AttemptEnded& end) {
      REQUIRE(end.exit().code() == 0);
      ++ended;
    };
    const auto begin = std::chrono::steady_clock::now();
    REQUIRE(daemon.run_until(
        [&] {
          while (submitted < count && submitted - ended < 32) {  // two run, the rest is prefill
            daemon.submit(spec);
            ++submitted;
          }
          return ended == count;
        },
        60s));
    const double rate = count / seconds_since(begin);
    const double floor = (floor_before + floor_rate(count, 2)) / 2;
    std::printf("commands: %.0f/s, spawn floor %.0f/s, ratio %.2f; pilot resident %ld KiB, guard %ld KiB\n", rate, floor, rate / floor,
                resident_kib(daemon.outcome.pilot), resident_kib(daemon.outcome.guard));
  }
}

TEST_CASE("from nothing to registered", "[.bench]") {
  for (int round = 0; round < 5; ++round) {
    FakeDaemon daemon;
    const auto begin = std::chrono::steady_clock::now();
    daemon.launch();
    const double total = seconds_since(begin);
    REQUIRE(daemon.outcome.code == 0);
    const auto job = daemon.submit_shell("true");
    const auto submitted = std::chrono::steady_clock::now();
    REQUIRE(daemon.wait_end(job));
    std::printf("started and registered in %.0f ms; then one command in %.1f ms; idle pilot resident %ld KiB\n", total * 1e3,
                seconds_since(submitted) * 1e3, resident_kib(daemon.outcome.pilot));
  }
}
