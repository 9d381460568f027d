// Commands through the real pilot: output, input, exit codes, signals, folders, files, limits.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "pilot/process/process_tree.hpp"
#include "proto/base/random.hpp"
#include "test/integration/pilot/fake_daemon.hpp"

using namespace flotilla;
using namespace flotilla::test;

namespace {

struct Running : FakeDaemon {
  Running() {
    launch();
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    REQUIRE(outcome.guard > 0);
    REQUIRE(outcome.pilot > 0);
  }
};

v1::AttemptId id_of(std::uint64_t job) {
  v1::AttemptId id;
  id.set_job(job);
  id.set_attempt(1);
  return id;
}

}  // namespace

TEST_CASE("a pilot registers and runs a command") {
  Running daemon;
  CHECK(daemon.hello.pilot().pilot() == 7);
  CHECK(daemon.hello.pilot().slots() == 4);
  CHECK(daemon.hello.pilot().secret() == "a join secret");
  CHECK(daemon.hello.pilot().incarnation().size() == 8);
  const auto job = daemon.submit_shell("echo out; echo err >&2");
  REQUIRE(daemon.wait_end(job));
  auto& seen = daemon.job(job);
  CHECK(seen.out == "out\n");
  CHECK(seen.err == "err\n");
  CHECK(seen.started == 1);
  CHECK(seen.ends == 1);
  CHECK(seen.end.exit().kind() == v1::EXITED);
  CHECK(seen.end.exit().code() == 0);
  CHECK(seen.running.folder() == daemon.dir.string());
  CHECK_FALSE(seen.end.exit().host().empty());
}

TEST_CASE("exit codes, signals and a command that is not there") {
  Running daemon;
  const auto code = daemon.submit_shell("echo last words >&2; exit 42");
  const auto killed = daemon.submit_shell("kill -SEGV $$");
  v1::JobSpec spec;
  spec.mutable_command()->add_argv("there-is-no-such-command");
  const auto absent = daemon.submit(spec);
  spec.mutable_command()->set_argv(0, "/etc/passwd");
  const auto not_executable = daemon.submit(spec);
  const auto no_folder = daemon.submit_shell("true", [](v1::JobSpec& s) { s.set_working_folder("/does/not/exist"); });
  for (auto job : {code, killed, absent, not_executable, no_folder}) REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(code).end.exit().kind() == v1::EXITED);
  CHECK(daemon.job(code).end.exit().code() == 42);
  CHECK(daemon.job(code).end.exit().stderr_tail() == "last words\n");
  CHECK(daemon.job(killed).end.exit().kind() == v1::SIGNALED);
  CHECK(daemon.job(killed).end.exit().signal() == SIGSEGV);
  CHECK(daemon.job(killed).end.exit().message().find("SIGSEGV") != std::string::npos);
  CHECK(daemon.job(absent).end.exit().kind() == v1::START_FAILED);
  CHECK(daemon.job(absent).end.exit().message().find("cannot run 'there-is-no-such-command': not found in PATH on ") == 0);
  CHECK(daemon.job(absent).started == 0);
  CHECK(daemon.job(not_executable).end.exit().kind() == v1::START_FAILED);
  CHECK(daemon.job(not_executable).end.exit().message().find("not executable") != std::string::npos);
  CHECK(daemon.job(no_folder).end.exit().message().find("/does/not/exist") != std::string::npos);
}

TEST_CASE("input that came with the job, and input that comes later") {
  Running daemon;
  std::string large(3 << 20, 'x');
  const auto given = daemon.submit_shell("wc -c", [&](v1::JobSpec& s) { s.mutable_command()->set_stdin_data(large); });
  const auto open = daemon.submit_shell("cat", [](v1::JobSpec& s) { s.mutable_command()->set_stdin_open(true); });
  REQUIRE(daemon.wait_end(given));
  CHECK(daemon.job(given).out.find("3145728") != std::string::npos);
  REQUIRE(daemon.wait_running(open));
  for (int i = 0; i < 3; ++i) {
    v1::Frame frame;
    *frame.mutable_input_data()->mutable_id() = id_of(open);
    frame.mutable_input_data()->set_data("line " + std::to_string(i) + "\n");
    frame.mutable_input_data()->set_offset(7 * i);
    daemon.send(frame);
  }
  REQUIRE(daemon.run_until([&] { return daemon.job(open).out == "line 0\nline 1\nline 2\n"; }));
  CHECK(daemon.job(open).ends == 0);
  v1::Frame frame;
  *frame.mutable_input_data()->mutable_id() = id_of(open);
  frame.mutable_input_data()->set_offset(21);
  frame.mutable_input_data()->set_eof(true);
  daemon.send(frame);
  REQUIRE(daemon.wait_end(open));
  CHECK(daemon.job(open).end.exit().code() == 0);
  CHECK(daemon.job(open).out_eof);
  // What was taken is told; of what came with the job nothing.
  CHECK(daemon.inputs_taken[open] == 21);
  CHECK(daemon.inputs_taken.count(given) == 0);
}

TEST_CASE("input that comes again, or with a gap, is taken once and in order; the inventory says how far it is") {
  Running daemon;
  const auto job = daemon.submit_shell("cat", [](v1::JobSpec& s) { s.mutable_command()->set_stdin_open(true); });
  REQUIRE(daemon.wait_running(job));
  auto give = [&](std::uint64_t offset, const std::string& text, bool eof = false) {
    v1::Frame frame;
    *frame.mutable_input_data()->mutable_id() = id_of(job);
    frame.mutable_input_data()->set_offset(offset);
    frame.mutable_input_data()->set_data(text);
    frame.mutable_input_data()->set_eof(eof);
    daemon.send(frame);
  };
  give(0, "one\n");
  REQUIRE(daemon.run_until([&] { return daemon.job(job).out == "one\n"; }));
  const int hellos = daemon.hellos;
  daemon.cut_link();
  REQUIRE(daemon.run_until([&] { return daemon.hellos > hellos; }));
  REQUIRE(daemon.hello.pilot().inventory_size() == 1);
  CHECK(daemon.hello.pilot().inventory(0).stdin_bytes() == 4);
  CHECK_FALSE(daemon.hello.pilot().inventory(0).stdin_eof());
  give(8, "three\n", true);  // what lies between was on the link that was cut
  give(0, "one\ntwo\n");
  give(4, "two\nthree\n", true);
  give(4, "two\nthree\n", true);
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).out == "one\ntwo\nthree\n");
}

TEST_CASE("input that nobody reads is told as taken only when it can never be") {
  Running daemon;
  const auto job = daemon.submit_shell("while ! test -e go; do sleep 0.02; done; exec 0<&-; while ! test -e end; do sleep 0.02; done",
                                       [](v1::JobSpec& s) { s.mutable_command()->set_stdin_open(true); });
  const auto deaf = daemon.submit_shell("while ! test -e end; do sleep 0.02; done");
  REQUIRE(daemon.wait_running(job));
  REQUIRE(daemon.wait_running(deaf));
  for (const auto id : {job, deaf}) {
    v1::Frame frame;
    *frame.mutable_input_data()->mutable_id() = id_of(id);
    frame.mutable_input_data()->set_data(std::string(1 << 20, 'x'));
    daemon.send(frame);
  }
  REQUIRE(daemon.run_until([&] { return daemon.inputs_taken[deaf] == 1 << 20; }));
  CHECK(daemon.inputs_taken[job] < 1 << 20);  // a pipe's content at most
  std::ofstream(daemon.dir / "go") << "go\n";
  REQUIRE(daemon.run_until([&] { return daemon.inputs_taken[job] == 1 << 20; }));
  CHECK(daemon.job(job).ends == 0);
  std::ofstream(daemon.dir / "end") << "end\n";
  REQUIRE(daemon.wait_end(job));
  REQUIRE(daemon.wait_end(deaf));
}

TEST_CASE("a job's environment: ours, the resource's, the job's; nothing of a launcher") {
  setenv("OMPI_COMM_WORLD_SIZE", "17", 1);
  setenv("SLURM_JOB_ID", "17", 1);
  setenv("SLURM_CONF", "/etc/slurm.conf", 1);
  Running daemon;
  unsetenv("OMPI_COMM_WORLD_SIZE");
  unsetenv("SLURM_JOB_ID");
  unsetenv("SLURM_CONF");
  const auto job = daemon.submit_shell("env", [](v1::JobSpec& s) {
    s.set_threads(3);
    (*s.mutable_env())["MINE"] = "a b=c";
  });
  REQUIRE(daemon.wait_end(job));
  const std::string& out = daemon.job(job).out;
  auto has = [&](const std::string& line) { return ("\n" + out).find("\n" + line + "\n") != std::string::npos; };
  CHECK(has("MINE=a b=c"));
  CHECK(has("OMP_NUM_THREADS=3"));
  CHECK(has("FLOTILLA_JOB=" + std::to_string(job)));
  CHECK(has("FLOTILLA_ATTEMPT=1"));
  CHECK(has("FLOTILLA_PILOT=7"));
  CHECK(has("FLOTILLA_NODE=0"));
  CHECK(has("FLOTILLA_RESOURCE=local"));
  CHECK(has("FLOTILLA_INSTANCE=" + to_hex(daemon.start.instance())));
  CHECK(has("SLURM_CONF=/etc/slurm.conf"));
  CHECK(out.find("OMPI_COMM_WORLD_SIZE") == std::string::npos);
  CHECK(out.find("SLURM_JOB_ID") == std::string::npos);
  CHECK(out.find("join secret") == std::string::npos);
}

TEST_CASE("output into files, merged output; a job's limits are the caller's") {
  rlimit own{};
  getrlimit(RLIMIT_NOFILE, &own);
  const rlimit before = own;
  own.rlim_cur = 1000;
  setrlimit(RLIMIT_NOFILE, &own);
  Running daemon;
  setrlimit(RLIMIT_NOFILE, &before);
  const auto limit = daemon.submit_shell("sleep 0.05; sh -c 'ulimit -n'");
  REQUIRE(daemon.wait_end(limit));
  CHECK(daemon.job(limit).out == "1000\n");
  const auto files = daemon.submit_shell("echo o; echo e >&2; exit 1", [](v1::JobSpec& s) {
    s.mutable_command()->set_stdout_file("o.txt");
    s.mutable_command()->set_stderr_file("e.txt");
  });
  const auto merged = daemon.submit_shell("echo o; echo e >&2", [](v1::JobSpec& s) { s.mutable_command()->set_merge_stderr(true); });
  REQUIRE(daemon.wait_end(files));
  REQUIRE(daemon.wait_end(merged));
  CHECK(read_whole(daemon.dir / "o.txt") == "o\n");
  CHECK(read_whole(daemon.dir / "e.txt") == "e\n");
  CHECK(daemon.job(files).out.empty());
  CHECK(daemon.job(files).end.exit().stderr_tail() == "e\n");
  CHECK(daemon.job(merged).out == "o\ne\n");
  CHECK(daemon.job(merged).err.empty());
}

TEST_CASE("a terminal: size, resize, input, end of file, signals to the foreground") {
  Running daemon;
  const auto job = daemon.submit_shell(
      "trap 'stty size' WINCH; test -t 0 && test -t 1 && test -t 2 && echo terminal; stty size; tty >/dev/null && echo named;"
      // The signal of a resize may interrupt a read: it reads again.
      "read line; echo got $line; until read line; do :; done; echo got $line; cat; echo after",
      [](v1::JobSpec& s) {
        s.mutable_command()->set_terminal(true);
        s.mutable_command()->set_stdin_open(true);
        s.mutable_command()->mutable_window()->set_rows(33);
        s.mutable_command()->mutable_window()->set_columns(99);
      });
  auto& seen = daemon.job(job);
  REQUIRE(daemon.run_until([&] { return seen.out.find("named\r\n") != std::string::npos; }));
  CHECK(seen.out.find("terminal\r\n33 99\r\n") == 0);
  std::uint64_t typed = 0;
  auto type = [&](const std::string& text) {
    v1::Frame frame;
    *frame.mutable_input_data()->mutable_id() = id_of(job);
    frame.mutable_input_data()->set_data(text);
    frame.mutable_input_data()->set_offset(typed);
    typed += text.size();
    daemon.send(frame);
  };
  type("hello\n");
  REQUIRE(daemon.run_until([&] { return seen.out.find("got hello\r\n") != std::string::npos; }));
  v1::Frame resize;
  *resize.mutable_resize_terminal()->mutable_id() = id_of(job);
  resize.mutable_resize_terminal()->mutable_window()->set_rows(50);
  resize.mutable_resize_terminal()->mutable_window()->set_columns(132);
  daemon.send(resize);
  type("world\n");
  REQUIRE(daemon.run_until([&] { return seen.out.find("got world\r\n") != std::string::npos; }));
  REQUIRE(daemon.run_until([&] { return seen.out.find("50 132\r\n") != std::string::npos; }));
  v1::Frame end;
  *end.mutable_input_data()->mutable_id() = id_of(job);
  end.mutable_input_data()->set_offset(typed);
  end.mutable_input_data()->set_eof(true);
  daemon.send(end);
  REQUIRE(daemon.wait_end(job));
  CHECK(seen.out.find("after\r\n") != std::string::npos);
  CHECK(seen.end.exit().code() == 0);

  const auto interrupted = daemon.submit_shell("echo ready; exec sleep 100", [](v1::JobSpec& s) {
    s.mutable_command()->set_terminal(true);
    s.mutable_command()->set_stdin_open(true);
  });
  REQUIRE(daemon.run_until([&] { return daemon.job(interrupted).out.find("ready") != std::string::npos; }));
  v1::Frame signal;
  *signal.mutable_signal_attempt()->mutable_id() = id_of(interrupted);
  signal.mutable_signal_attempt()->set_signal(SIGINT);
  daemon.send(signal);
  REQUIRE(daemon.wait_end(interrupted));
  CHECK(daemon.job(interrupted).end.exit().signal() == SIGINT);
}

TEST_CASE("a signal reaches the whole group") {
  Running daemon;
  const auto job = daemon.submit_shell("trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done");
  REQUIRE(daemon.run_until([&] { return daemon.job(job).out == "ready\n"; }));
  v1::Frame signal;
  *signal.mutable_signal_attempt()->mutable_id() = id_of(job);
  signal.mutable_signal_attempt()->set_signal(SIGUSR1);
  daemon.send(signal);
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).out.find("caught") != std::string::npos);
}

TEST_CASE("cancel reaches a process that called setsid and forked twice, also one that ignores TERM") {
  Running daemon;
  const auto job = daemon.submit_shell(
      "setsid sh -c 'trap \"\" TERM; sh -c \"trap \\\"\\\" TERM; echo far; while :; do sleep 1; done\" & echo near; wait' & echo started; "
      "wait");
  auto& seen = daemon.job(job);
  REQUIRE(daemon.run_until([&] { return seen.out.find("far") != std::string::npos && seen.out.find("started") != std::string::npos; }));
  // An orphan in a session of its own, with no trace of us in its environment.
  const auto orphan = daemon.submit_shell(
      "(setsid env -i /bin/sh -c 'trap \"\" TERM; echo $$ > pid; sleep 1000' &) ; while ! test -s pid; do sleep 0.02; done; echo ok; exec "
      "sleep 1000");
  REQUIRE(daemon.run_until([&] { return daemon.job(orphan).out == "ok\n"; }));
  const pid_t hidden = std::stoi(read_whole(daemon.dir / "pid"));
  CHECK(process_exists(hidden));
  daemon.cancel(job, 200);
  REQUIRE(daemon.wait_end(job));
  CHECK(seen.end.exit().kind() == v1::CANCELED_BY_USER);
  CHECK(process_exists(hidden));
  daemon.cancel(orphan, 200);
  REQUIRE(daemon.wait_end(orphan));
  CHECK_FALSE(process_exists(hidden));
  // Of ours the pilot alone is left.
  CHECK(processes_of(daemon.start.instance()) == std::vector<pid_t>{daemon.outcome.pilot});
}

TEST_CASE("what a job leaves behind when it ends is ended") {
  Running daemon;
  const auto job = daemon.submit_shell("sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &); echo done");
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).end.exit().code() == 0);
  CHECK(daemon.job(job).out == "done\n");
  CHECK(processes_of(daemon.start.instance()) == std::vector<pid_t>{daemon.outcome.pilot});
}

TEST_CASE("what a job leaves behind is ended also while another job runs, and however soon after its start the job ends") {
  Running daemon;
  const auto other = daemon.submit_shell("exec sleep 1000");
  REQUIRE(daemon.wait_running(other));
  const auto before = processes_of(daemon.start.instance());
  REQUIRE(before.size() == 2);
  // The one left behind may be in the midst of exec, where no environment shows whose it is.
  for (int i = 0; i < 100; ++i) REQUIRE(daemon.wait_end(daemon.submit_shell("setsid sleep 1000 > /dev/null 2>&1 &")));
  CHECK(processes_of(daemon.start.instance()) == before);
}

TEST_CASE("a job is ended at its time limit") {
  Running daemon;
  const auto job = daemon.submit_shell("sleep 1000", [](v1::JobSpec& s) { s.set_time_limit_ms(200); });
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).end.exit().kind() == v1::TIME_LIMIT);
  CHECK(daemon.job(job).end.exit().message().find("time limit of 200 ms") != std::string::npos);
}

TEST_CASE("slots: what does not fit waits its turn; canceled before it began") {
  Running daemon;
  const auto wide = daemon.submit_shell("echo $$; sleep 1000", [](v1::JobSpec& s) { s.set_processes(3); });
  const auto second = daemon.submit_shell("sleep 1000", [](v1::JobSpec& s) { s.set_processes(2); });
  const auto third = daemon.submit_shell("true");
  REQUIRE(daemon.wait_running(wide));
  const auto free = daemon.submit_shell("echo beside", [](v1::JobSpec& s) { s.set_no_slots(true); });
  REQUIRE(daemon.wait_end(free));
  CHECK(daemon.job(second).started == 0);
  CHECK(daemon.job(third).started == 0);  // it would fit, but then the wide ones would starve
  daemon.cancel(second);
  REQUIRE(daemon.wait_end(second));
  CHECK(daemon.job(second).end.exit().kind() == v1::CANCELED_BY_USER);
  CHECK(daemon.job(second).started == 0);
  REQUIRE(daemon.wait_end(third));
  CHECK(daemon.job(third).end.exit().code() == 0);
  const auto too_wide = daemon.submit_shell("true", [](v1::JobSpec& s) { s.set_processes(5); });
  REQUIRE(daemon.wait_end(too_wide));
  CHECK(daemon.job(too_wide).end.exit().kind() == v1::REFUSED);
  daemon.cancel(wide, 100);
  REQUIRE(daemon.wait_end(wide));
}

TEST_CASE("beside a running job: its folder and environment") {
  Running daemon;
  const auto job = daemon.submit_shell("echo here > mark; echo ready; sleep 1000", [](v1::JobSpec& s) {
    s.set_working_folder("");
    s.set_private_folder(true);
    (*s.mutable_env())["OF_THE_JOB"] = "yes";
  });
  REQUIRE(daemon.run_until([&] { return daemon.job(job).out == "ready\n"; }));
  v1::JobSpec spec;
  for (const char* word : {"/bin/sh", "-c", "cat mark; echo $OF_THE_JOB"}) spec.mutable_command()->add_argv(word);
  spec.set_beside_job(job);
  const auto beside = daemon.submit(spec, [&](v1::StartAttempt& start) { *start.mutable_beside() = id_of(job); });
  REQUIRE(daemon.wait_end(beside));
  CHECK(daemon.job(beside).out == "here\nyes\n");
  const std::filesystem::path folder = daemon.job(job).running.folder();
  CHECK(daemon.job(beside).running.folder() == folder.string());
  CHECK(std::filesystem::exists(folder));
  daemon.cancel(job, 100);
  REQUIRE(daemon.wait_end(job));
  REQUIRE(daemon.run_until([&] { return !std::filesystem::exists(folder); }));
  const auto late = daemon.submit(spec, [&](v1::StartAttempt& start) { *start.mutable_beside() = id_of(job); });
  REQUIRE(daemon.wait_end(late));
  CHECK(daemon.job(late).end.exit().kind() == v1::REFUSED);
}

TEST_CASE("input files come by their hash, are checked and kept") {
  Running daemon;
  const std::string content = random_bytes(2'500'000);
  const std::string hash = sha256(content);
  bool damage = false;
  daemon.on_need = [&](const v1::NeedBlob& need) {
    for (std::uint64_t at = need.offset(); at < content.size(); at += 1 << 20) {
      v1::Frame frame;
      auto& data = *frame.mutable_blob_data();
      data.set_sha256(need.sha256());
      data.set_offset(at);
      data.set_data(content.substr(at, 1 << 20));
      if (damage) (*data.mutable_data())[5] ^= 1;
      data.set_last(at + (1 << 20) >= content.size());
      daemon.send(frame);
    }
  };
  auto with_file = [&](v1::JobSpec& s) {
    s.set_working_folder("");
    auto& file = *s.add_files();
    file.set_name("deep/er/data.bin");
    file.set_sha256(hash);
    file.set_size(content.size());
    file.set_mode(0755);
  };
  damage = true;
  const auto damaged = daemon.submit_shell("true", with_file);
  REQUIRE(daemon.wait_end(damaged));
  CHECK(daemon.job(damaged).end.exit().kind() == v1::START_FAILED);
  CHECK(daemon.job(damaged).end.exit().message().find("damaged") != std::string::npos);
  damage = false;
  const auto first =
      daemon.submit_shell("sha256sum deep/er/data.bin; test -x deep/er/data.bin && echo x; pwd; echo > deep/er/data.bin", with_file);
  REQUIRE(daemon.wait_end(first));
  CHECK(daemon.job(first).out.find(to_hex(hash)) == 0);
  CHECK(daemon.job(first).out.find("\nx\n") != std::string::npos);
  CHECK(daemon.blob_taken >= 2'000'000);
  CHECK(daemon.blob_taken <= content.size());
  const auto asked = daemon.needs.size();
  const auto second = daemon.submit_shell("sha256sum deep/er/data.bin", with_file);
  REQUIRE(daemon.wait_end(second));
  CHECK(daemon.job(second).out.find(to_hex(hash)) == 0);  // the first job's writing did not reach the cache
  CHECK(daemon.needs.size() == asked);
  const auto never = daemon.submit_shell("true", [&](v1::JobSpec& s) {
    with_file(s);
    s.mutable_files(0)->set_sha256(sha256("nobody has it"));
    s.set_start_timeout_ms(100);
    daemon.on_need = nullptr;
  });
  REQUIRE(daemon.wait_end(never));
  CHECK(daemon.job(never).end.exit().kind() == v1::START_TIMEOUT);
  REQUIRE(daemon.run_until([&] { return !std::filesystem::exists(daemon.job(first).running.folder()); }));
  const auto outside = daemon.submit_shell("true", [&](v1::JobSpec& s) {
    with_file(s);
    s.mutable_files(0)->set_name("../escape");
  });
  REQUIRE(daemon.wait_end(outside));
  CHECK(daemon.job(outside).end.exit().kind() == v1::START_FAILED);
}

TEST_CASE("200 MB of output under flow control") {
  Running daemon;
  const auto job = daemon.submit_shell("head -c 200000000 /dev/zero; echo end");
  daemon.take_output = false;
  // Without a window nothing beyond the first credit comes.
  REQUIRE(daemon.run_until([&] { return daemon.job(job).out.size() == 1 << 20; }));
  daemon.run_for(200ms);
  CHECK(daemon.job(job).out.size() == 1 << 20);
  CHECK(daemon.job(job).ends == 0);  // the pilot holds 64 MiB, then the job waits in its write
  daemon.take_output = true;
  v1::Frame window;
  *window.mutable_output_window()->mutable_id() = id_of(job);
  window.mutable_output_window()->set_stream(1);
  window.mutable_output_window()->set_offset(1 << 20);
  window.mutable_output_window()->set_credit(1 << 20);
  daemon.send(window);
  const auto begin = std::chrono::steady_clock::now();
  REQUIRE(daemon.wait_end(job, 60s));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("200 MB of output: %.2f s, %.0f MB/s\n", seconds, 200 / seconds);
  CHECK(daemon.job(job).out.size() == 200'000'004);
  CHECK(daemon.job(job).out.substr(200'000'000) == "end\n");
}

TEST_CASE("setup lines may take their time, and are seen; beyond the limit, or when nobody wants them, they are ended") {
  {
    FakeDaemon daemon;
    daemon.start.add_setup("echo loading modules; while ! test -e " + (daemon.dir / "go").string() + "; do sleep 0.02; done");
    std::ofstream(daemon.dir / "go") << "go\n";
    daemon.launch();
    CHECK(daemon.outcome.code == 0);
    CHECK(daemon.outcome.out.find("SETUP 600000 setting up\n") == 0);
    CHECK(daemon.outcome.out.find("SETUP 0\nSTARTED ") != std::string::npos);
  }
  {
    FakeDaemon daemon;
    daemon.start.set_setup_timeout_ms(500);
    daemon.start.add_setup("echo loading modules; sleep 600");
    daemon.launch();
    CHECK(daemon.outcome.code == 1);
    CHECK(daemon.outcome.out.find("SETUP 500 setting up: loading modules\n") != std::string::npos);
    CHECK(daemon.outcome.err.find("did not end within 1 s (setup_timeout of the resource)\nloading modules") != std::string::npos);
    CHECK(processes_of(daemon.start.instance()).empty());
  }
}

TEST_CASE("setup lines: their environment is the jobs'; a failing one says so") {
  {
    FakeDaemon daemon;
    daemon.start.add_setup("FROM_SETUP='x  y'; export FROM_SETUP");
    daemon.start.add_setup("export PATH=/opt/own/bin:$PATH");
    daemon.launch();
    REQUIRE(daemon.outcome.code == 0);
    const auto job = daemon.submit_shell("echo \"$FROM_SETUP\"; echo $PATH; env | grep -c flotilla_code");
    REQUIRE(daemon.wait_end(job));
    CHECK(daemon.job(job).out.find("x  y\n/opt/own/bin:") == 0);
    CHECK(daemon.job(job).out.find("\n0\n") != std::string::npos);
  }
  FakeDaemon daemon;
  daemon.start.add_setup("echo before");
  daemon.start.add_setup("echo 'no such module' >&2; false");
  daemon.launch();
  CHECK(daemon.outcome.code == 1);
  CHECK(daemon.outcome.err.find("setup line 2 failed") != std::string::npos);
  CHECK(daemon.outcome.err.find("no such module") != std::string::npos);
  CHECK(processes_of(daemon.start.instance()).empty());
  CHECK_FALSE(std::filesystem::exists(daemon.dir / "run"));
}
