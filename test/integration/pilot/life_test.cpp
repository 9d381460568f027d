// The pilot's own life: registering, losing its link, its deaths, its ends. No process may be left, ever.
#include <signal.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "pilot/process/process_tree.hpp"
#include "test/integration/pilot/fake_daemon.hpp"

using namespace flotilla;
using namespace flotilla::test;

namespace {

void start(FakeDaemon& daemon) {
  daemon.launch();
  INFO(daemon.outcome.err);
  REQUIRE(daemon.outcome.code == 0);
}

std::vector<pid_t> tree(pid_t root);

// A job with descendants that are hard to find.
std::uint64_t start_tangle(FakeDaemon& daemon) {
  const auto job = daemon.submit_shell(
      "trap '' TERM; (setsid sh -c 'trap \"\" TERM; (setsid env -i sleep 1000 &); while :; do sleep 1; done' &); sleep 1000 & echo up; "
      "wait");
  REQUIRE(daemon.run_until([&] { return daemon.job(job).out == "up\n"; }));
  REQUIRE(daemon.run_until([&] { return tree(daemon.outcome.guard).size() >= 7; }));
  return job;
}

// Everything below `root`, found before its death.
std::vector<pid_t> tree(pid_t root) { return pilot::tree_below(pilot::list_processes(), {root}); }

// What `change` says of the pilot's life is told to it at its next welcome, which is this one: no time runs out while it starts.
void tell(FakeDaemon& daemon, const std::function<void(v1::PilotSettings&)>& change) {
  const auto hellos = daemon.hellos;
  change(*daemon.start.mutable_settings());
  daemon.cut_link();
  REQUIRE(daemon.run_until([&] { return daemon.hellos == hellos + 1; }));
}

// The pilot has taken all that it was sent before, and its answer comes after all that it said before.
bool hear_all(FakeDaemon& daemon) {
  static std::uint64_t request = 0;
  v1::Frame frame;
  frame.mutable_read_log()->set_request(++request);
  daemon.send(frame);
  return daemon.run_until([&] { return !daemon.logs.empty() && daemon.logs.back().request() == request; });
}

bool all_gone(FakeDaemon& daemon, const std::vector<pid_t>& pids) {
  return daemon.run_until([&] {
    for (pid_t pid : pids)
      if (process_exists(pid)) return false;
    return processes_of(daemon.start.instance()).empty();
  });
}

}  // namespace

TEST_CASE("a pilot that cannot register says why, in time, and leaves nothing") {
  FakeDaemon daemon;
  SECTION("refused") {
    daemon.welcome.set_error("pilot 7 is not known here");
    daemon.launch();
    CHECK(daemon.outcome.err.find("pilot 7 is not known here") != std::string::npos);
  }
  SECTION("nobody there") {
    daemon.stop_listening();
    const auto begin = std::chrono::steady_clock::now();
    daemon.launch();
    CHECK(std::chrono::steady_clock::now() - begin < 10s);
    CHECK(daemon.outcome.err.find("daemon.sock") != std::string::npos);
  }
  SECTION("no place to work in is named") {
    daemon.start.set_pilot(0);
    daemon.launch();
  }
  CHECK(daemon.outcome.code == 1);
  CHECK(daemon.outcome.out.empty());
  CHECK_FALSE(daemon.outcome.err.empty());
  REQUIRE(daemon.run_until([&] { return processes_of(daemon.start.instance()).empty(); }));
  CHECK_FALSE(std::filesystem::exists(daemon.dir / "run"));
}

TEST_CASE("the link is cut: jobs go on, the inventory tells, output goes on where it stood") {
  FakeDaemon daemon;
  start(daemon);
  const auto going = daemon.submit_shell("echo before; while ! test -e go; do sleep 0.02; done; echo after; exit 3");
  const auto ends = daemon.submit_shell("while ! test -e go2; do sleep 0.02; done; echo ended while cut; exit 4");
  REQUIRE(daemon.run_until([&] { return daemon.job(going).out == "before\n" && daemon.job(ends).started == 1; }));
  const std::string incarnation = daemon.hello.pilot().incarnation();
  daemon.stop_listening();
  daemon.cut_link();
  REQUIRE(close(creat((daemon.dir / "go2").c_str(), 0600)) == 0);
  const auto pid = static_cast<pid_t>(daemon.job(ends).running.pid());
  REQUIRE(daemon.run_until([&] { return !process_exists(pid); }));
  daemon.listen();
  REQUIRE(daemon.run_until([&] { return daemon.hellos == 2; }));
  CHECK(daemon.hello.pilot().incarnation() == incarnation);
  REQUIRE(daemon.hello.pilot().inventory_size() == 2);
  for (const auto& report : daemon.hello.pilot().inventory()) {
    if (report.id().job() == going) {
      CHECK(report.state() == v1::JOB_RUNNING);
      CHECK(report.stdout_bytes() == 7);
    } else {
      CHECK(report.state() == v1::JOB_FAILED);
      CHECK(report.exit().code() == 4);
      CHECK(report.stdout_bytes() == 16);
    }
  }
  REQUIRE(daemon.run_until([&] { return daemon.job(ends).out == "ended while cut\n"; }));
  // The same start again does nothing; a cancel of what has ended is answered again.
  v1::Frame again;
  again.mutable_start_attempt()->mutable_id()->set_job(going);
  again.mutable_start_attempt()->mutable_id()->set_attempt(1);
  daemon.send(again);
  daemon.cancel(ends);
  REQUIRE(daemon.run_until([&] { return daemon.job(ends).ends == 1; }));
  CHECK(daemon.job(ends).end.exit().code() == 4);
  daemon.forget(ends);
  REQUIRE(close(creat((daemon.dir / "go").c_str(), 0600)) == 0);
  REQUIRE(daemon.wait_end(going));
  CHECK(daemon.job(going).out == "before\nafter\n");
  CHECK(daemon.job(going).end.exit().code() == 3);
  CHECK(daemon.job(going).started == 1);
  // What was forgotten is in no inventory.
  daemon.cut_link();
  REQUIRE(daemon.run_until([&] { return daemon.hellos == 3; }));
  REQUIRE(daemon.hello.pilot().inventory_size() == 1);
  CHECK(daemon.hello.pilot().inventory(0).id().job() == going);
}

TEST_CASE("kill -9 of the pilot: the guard leaves nothing") {
  FakeDaemon daemon;
  start(daemon);
  start_tangle(daemon);
  const auto all = tree(daemon.outcome.guard);
  REQUIRE(all.size() >= 6);
  REQUIRE(kill(daemon.outcome.pilot, SIGKILL) == 0);
  CHECK(all_gone(daemon, all));
  CHECK_FALSE(std::filesystem::exists(daemon.dir / "run"));
}

TEST_CASE("kill -9 of the guard: the pilot ends itself and everything") {
  FakeDaemon daemon;
  start(daemon);
  start_tangle(daemon);
  const auto all = tree(daemon.outcome.guard);
  REQUIRE(kill(daemon.outcome.guard, SIGKILL) == 0);
  CHECK(all_gone(daemon, all));
  CHECK_FALSE(std::filesystem::exists(daemon.dir / "run"));
}

TEST_CASE("a pilot ends when told, and says how its jobs ended") {
  FakeDaemon daemon;
  daemon.auto_forget = true;
  start(daemon);
  const auto job = start_tangle(daemon);
  const auto all = tree(daemon.outcome.guard);
  v1::Frame frame;
  frame.mutable_end_pilot()->set_reason("the user stopped it");
  frame.mutable_end_pilot()->set_grace_ms(200);
  daemon.send(frame);
  REQUIRE(daemon.run_until([&] { return daemon.goodbyes == 1; }));
  CHECK(daemon.endings == 1);
  CHECK(daemon.ending.reason() == "the user stopped it");
  CHECK(daemon.job(job).end.exit().kind() == v1::PILOT_ENDED);
  CHECK(all_gone(daemon, all));
  CHECK_FALSE(std::filesystem::exists(daemon.dir / "run"));
}

TEST_CASE("what waits at a pilot is given back when it is asked for, or when the pilot ends; what has begun stays") {
  FakeDaemon daemon;
  daemon.auto_forget = true;
  start(daemon);
  const auto retract = [&](std::uint64_t job) {
    v1::Frame frame;
    frame.mutable_retract_attempt()->mutable_id()->set_job(job);
    frame.mutable_retract_attempt()->mutable_id()->set_attempt(1);
    daemon.send(frame);
  };
  const auto running = daemon.submit_shell("sleep 1000", [](v1::JobSpec& s) { s.set_processes(4); });
  const auto first = daemon.submit_shell("true"), second = daemon.submit_shell("true");
  REQUIRE(daemon.wait_running(running));
  retract(running);
  retract(first);
  retract(4242);
  REQUIRE(daemon.run_until([&] { return daemon.job(4242).given_back == 1; }));
  CHECK(daemon.job(running).kept == 1);
  CHECK(daemon.job(first).given_back == 1);
  v1::Frame frame;
  frame.mutable_end_pilot()->set_grace_ms(200);
  daemon.send(frame);
  REQUIRE(daemon.run_until([&] { return daemon.goodbyes == 1; }));
  CHECK(daemon.job(second).given_back == 1);
  CHECK(daemon.job(second).ends + daemon.job(first).ends == 0);
  CHECK(daemon.job(running).end.exit().kind() == v1::PILOT_ENDED);
}

TEST_CASE("a drained pilot ends with its last job and takes no other") {
  FakeDaemon daemon;
  daemon.auto_forget = true;
  start(daemon);
  const auto job = daemon.submit_shell("while ! test -e go; do sleep 0.02; done", [](v1::JobSpec& s) { s.set_processes(4); });
  REQUIRE(daemon.wait_running(job));
  const auto waiting = daemon.submit_shell("true");
  v1::Frame frame;
  frame.mutable_drain_pilot();
  daemon.send(frame);
  const auto late = daemon.submit_shell("true");
  REQUIRE(daemon.run_until([&] { return daemon.job(waiting).given_back == 1 && daemon.job(late).given_back == 1; }));
  CHECK(daemon.job(waiting).started + daemon.job(waiting).ends + daemon.job(late).started + daemon.job(late).ends == 0);
  CHECK(daemon.goodbyes == 0);
  REQUIRE(close(creat((daemon.dir / "go").c_str(), 0600)) == 0);
  REQUIRE(daemon.run_until([&] { return daemon.goodbyes == 1; }));
  CHECK(daemon.job(job).end.exit().code() == 0);
  CHECK(all_gone(daemon, {daemon.outcome.guard, daemon.outcome.pilot}));
}

TEST_CASE("what nobody has taken yet keeps a pilot that is drained, or idle") {
  FakeDaemon daemon;
  daemon.take_output = false;
  start(daemon);
  const auto job = daemon.submit_shell("head -c 5000000 /dev/zero; exit 3");
  SECTION("drained") {
    REQUIRE(daemon.wait_running(job));
    v1::Frame frame;
    frame.mutable_drain_pilot();
    daemon.send(frame);
    REQUIRE(daemon.run_until([&] { return daemon.job(job).ends == 1; }));
  }
  SECTION("idle, seen by a daemon that comes back") {
    REQUIRE(daemon.run_until([&] { return daemon.job(job).ends == 1; }));
    daemon.start.mutable_settings()->set_idle_ms(1);
    daemon.cut_link();
    REQUIRE(daemon.run_until([&] { return daemon.hellos == 2; }));
    CHECK(daemon.hello.pilot().inventory_size() == 1);
  }
  REQUIRE(hear_all(daemon));
  REQUIRE(hear_all(daemon));
  CHECK(daemon.endings == 0);
  CHECK(daemon.job(job).out.size() < 5'000'000);
  daemon.take_output = true;
  v1::Frame window;
  window.mutable_output_window()->mutable_id()->set_job(job);
  window.mutable_output_window()->mutable_id()->set_attempt(1);
  window.mutable_output_window()->set_stream(1);
  window.mutable_output_window()->set_offset(daemon.job(job).out.size());
  window.mutable_output_window()->set_credit(1 << 20);
  daemon.send(window);
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).out.size() == 5'000'000);
  CHECK(daemon.job(job).end.exit().code() == 3);
  daemon.forget(job);
  REQUIRE(daemon.run_until([&] { return daemon.goodbyes == 1; }));
  CHECK(all_gone(daemon, {daemon.outcome.guard, daemon.outcome.pilot}));
}

TEST_CASE("a pilot whose time is over while its link is cut still tells how its jobs ended") {
  FakeDaemon daemon;
  daemon.start.mutable_settings()->set_time_ms(3000);
  start(daemon);
  const auto job = daemon.submit_shell("sleep 1000");
  REQUIRE(daemon.wait_running(job));
  const auto pid = static_cast<pid_t>(daemon.job(job).running.pid());
  daemon.stop_listening();
  daemon.cut_link();
  REQUIRE(daemon.run_until([&] { return !process_exists(pid); }));
  daemon.listen();
  REQUIRE(daemon.run_until([&] { return daemon.hellos == 2; }));
  REQUIRE(daemon.hello.pilot().inventory_size() == 1);
  CHECK(daemon.hello.pilot().inventory(0).exit().kind() == v1::PILOT_ENDED);
  daemon.forget(job);
  REQUIRE(daemon.run_until([&] { return daemon.goodbyes == 1; }));
}

TEST_CASE("idle, its time over, cut off: a pilot ends by itself") {
  FakeDaemon daemon;
  daemon.auto_forget = true;
  SECTION("idle") {
    start(daemon);
    const auto job = daemon.submit_shell("until [ -e go ]; do sleep 0.05; done");
    REQUIRE(daemon.wait_running(job));
    tell(daemon, [](auto& settings) { settings.set_idle_ms(1); });
    CHECK(daemon.hello.pilot().inventory_size() == 1);
    CHECK(daemon.goodbyes == 0);  // a pilot that has a job stays
    REQUIRE(close(creat((daemon.dir / "go").c_str(), 0600)) == 0);
    REQUIRE(daemon.wait_end(job));
    CHECK(daemon.job(job).end.exit().code() == 0);
    REQUIRE(daemon.run_until([&] { return daemon.goodbyes == 1; }));
    CHECK(daemon.ending.reason().find("idle") != std::string::npos);
  }
  SECTION("time") {
    daemon.start.mutable_settings()->set_time_ms(600'000);
    start(daemon);
    CHECK(daemon.hello.pilot().ends_in_ms() > 0);
    CHECK(daemon.hello.pilot().ends_in_ms() <= 600'000);
    const auto job = daemon.submit_shell("sleep 1000");
    REQUIRE(daemon.wait_running(job));
    tell(daemon, [](auto& settings) { settings.set_time_ms(1); });
    REQUIRE(daemon.wait_end(job));
    CHECK(daemon.job(job).end.exit().kind() == v1::PILOT_ENDED);
    REQUIRE(daemon.run_until([&] { return daemon.goodbyes == 1; }));
  }
  SECTION("cut off") {
    start(daemon);
    start_tangle(daemon);
    tell(daemon, [](auto& settings) { settings.set_cutoff_ms(600); });
    REQUIRE(hear_all(daemon));
    daemon.stop_listening();
    daemon.cut_link();
  }
  CHECK(all_gone(daemon, {daemon.outcome.guard, daemon.outcome.pilot}));
  CHECK_FALSE(std::filesystem::exists(daemon.dir / "run"));
}

TEST_CASE("the log can be read from afar, and holds no secret") {
  FakeDaemon daemon;
  start(daemon);
  v1::Frame frame;
  frame.mutable_read_log()->set_request(5);
  frame.mutable_read_log()->set_follow(true);
  daemon.send(frame);
  REQUIRE(daemon.run_until([&] { return !daemon.logs.empty(); }));
  CHECK(daemon.logs[0].request() == 5);
  CHECK(daemon.logs[0].data().find("registered: 4 slots") != std::string::npos);
  CHECK(daemon.logs[0].data().find("a join secret") == std::string::npos);
  CHECK_FALSE(daemon.logs[0].eof());
  const auto before = daemon.logs.size();
  v1::JobSpec spec;
  spec.mutable_command()->add_argv("no-such-command-in-the-log");
  const auto job = daemon.submit(spec);
  REQUIRE(daemon.wait_end(job));
  REQUIRE(daemon.run_until([&] { return daemon.logs.size() > before; }));
  CHECK(daemon.logs.back().data().find("no-such-command-in-the-log") != std::string::npos);
  frame.mutable_read_log()->set_follow(false);
  frame.mutable_read_log()->set_request(6);
  daemon.send(frame);
  REQUIRE(daemon.run_until([&] { return daemon.logs.back().request() == 6; }));
  CHECK(daemon.logs.back().eof());
}
