#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <flotilla/client.hpp>
#include <flotilla/code.hpp>
#include <fstream>
#include <condition_variable>
#include <mutex>
#include <thread>

using namespace flotilla;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

// A daemon of its own for each test, and nothing of it left afterwards.
class Place {
 public:
  Place() {
    char name[] = "/tmp/fl-cpp-XXXXXX";
    REQUIRE(mkdtemp(name));
    folder_ = name;
    setenv("FLOTILLA_STATE_DIR", (folder_ / "state").c_str(), 1);
    setenv("FLOTILLA_CONFIG", (folder_ / "config.toml").c_str(), 1);
    setenv("FLOTILLA_RUNTIME_DIR", (folder_ / "run").c_str(), 1);
  }
  ~Place() {
    try {
      Daemon({.start = false}).shutdown(true);
    } catch (const FlotillaError&) {
      // A test that never started one.
    }
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  const fs::path& folder() const { return folder_; }
  fs::path fifo(const char* name) const {
    const fs::path path = folder_ / name;
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    return path;
  }

 private:
  fs::path folder_;
};

std::string test_worker() {
  const char* path = std::getenv("FLOTILLA_TEST_WORKER");
  REQUIRE(path);
  return path;
}

template <class Kind, class F>
Kind thrown(F what) {
  try {
    what();
  } catch (const Kind& error) {
    return error;
  }
  FAIL("nothing was thrown");
  std::abort();
}

}  // namespace

TEST_CASE("without a daemon the error says what to do") {
  Place place;
  const auto error = thrown<UnavailableError>([] { Daemon({.start = false}); });
  CHECK(error.retry());
  CHECK(error.hint().find("flotilla daemon start") != std::string::npos);
  const auto missing = thrown<UnavailableError>([] { Daemon({.program = "/no-such-flotilla"}); });
  CHECK(missing.message().find("/no-such-flotilla") != std::string::npos);
}

TEST_CASE("commands: output, ends, files, limits, futures") {
  Place place;
  Daemon daemon;
  CHECK(daemon.info().pid > 0);

  const auto result = daemon.run({.argv = {"sh", "-c", "echo out; echo err >&2"}});
  CHECK(result.standard_output == "out\n");
  CHECK(result.standard_error == "err\n");
  CHECK(result.info.state == JobState::finished);

  const auto failed = thrown<JobFailedError>([&] { daemon.run({.argv = {"sh", "-c", "echo so it was >&2; exit 3"}}); });
  REQUIRE(failed.exit());
  CHECK(failed.exit()->kind == ExitKind::exited);
  CHECK(failed.exit()->code == 3);
  CHECK(std::string(failed.what()).find("so it was") != std::string::npos);

  CHECK(daemon.run({.argv = {"cat"}, .standard_input = std::string("\0\xff", 2)}).standard_output == std::string("\0\xff", 2));
  {
    const Job job = daemon.submit({.argv = {"cat"}, .open_input = true});
    Attachment attached = job.attach();
    attached.write("hello ");
    attached.write("there");
    attached.close_input();
    std::string text;
    std::optional<Attachment::Event> last;
    while (auto event = attached.next()) {
      text += event->data;
      last = std::move(event);
    }
    CHECK(text == "hello there");
    REQUIRE(last);
    CHECK(last->kind == Attachment::Event::Kind::end);
    CHECK(last->exit.ok());
  }

  std::ofstream(place.folder() / "data.txt") << "from a file\n";
  CHECK(daemon
            .run({.argv = {"cat", "data.txt", "more"},
                  .files = {{.path = place.folder() / "data.txt"}, {.name = "more", .content = "and memory\n"}}})
            .standard_output == "from a file\nand memory\n");
  CHECK_THROWS_AS(daemon.run({.argv = {"true"}, .files = {{.path = "/no/such/file"}}}), NotFoundError);

  const Job sleeper = daemon.submit({.argv = {"sleep", "600"}});
  sleeper.wait_running(30s);
  CHECK_THROWS_AS(sleeper.wait(50ms), TimedOutError);
  CHECK_THROWS_AS(sleeper.result(50ms), TimedOutError);
  auto waiting = sleeper.wait_async();
  sleeper.signal(SIGUSR1);
  CHECK(waiting.get().exit.signal == SIGUSR1);
  CHECK(daemon.submit({.argv = {"sleep", "600"}, .time_limit = 200ms}).wait(30s).exit.kind == ExitKind::time_limit);

  const Job nowhere = daemon.submit({.argv = {"true"}, .label = "nobody-has-this"});
  CHECK(nowhere.why().sentence.find("nobody-has-this") != std::string::npos);
  nowhere.cancel();
  CHECK(nowhere.wait(30s).state == JobState::canceled);

  std::vector<std::future<JobResult>> many;
  for (int i = 0; i < 20; ++i) many.push_back(daemon.run_async({.argv = {"echo", std::to_string(i)}}));
  for (int i = 0; i < 20; ++i) CHECK(many[static_cast<std::size_t>(i)].get().standard_output == std::to_string(i) + "\n");
  CHECK_THROWS_AS(daemon.job(1'000'000'000), NotFoundError);
}

TEST_CASE("a wait that lasts tells why, once") {
  Place place;
  struct Told {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<WaitNotice> notices;
    WaitNotice wait_for(std::size_t count) {
      std::unique_lock lock(mutex);
      REQUIRE(changed.wait_for(lock, 30s, [&] { return notices.size() >= count; }));
      return notices[count - 1];
    }
  } told;
  const Daemon daemon({.on_waiting = [&](const WaitNotice& notice) {
    std::lock_guard lock(told.mutex);
    told.notices.push_back(notice);
    told.changed.notify_all();
  }});
  const auto jobs = daemon.submit_many({{.argv = {"true"}, .label = "nobody-has-this"}, {.argv = {"true"}, .label = "nobody-has-this"}});
  auto first = jobs[0].wait_async();
  auto second = jobs[1].result_async();
  const auto notice = told.wait_for(1);
  CHECK((notice.job == jobs[0].id() || notice.job == jobs[1].id()));
  CHECK(notice.sentence.find("no pilot has the label 'nobody-has-this'") != std::string::npos);
  CHECK(notice.sentence.find("flotilla pilot start") != std::string::npos);
  CHECK(jobs[0].why_async().get().sentence == notice.sentence);

  auto started = daemon.start_worker_async({.executable = "true", .label = "nor-this"});
  const auto worker = told.wait_for(2);
  CHECK(worker.sentence.find("'nor-this'") != std::string::npos);
  daemon.job(worker.job).cancel();
  CHECK_THROWS_AS(started.get(), FlotillaError);
  auto blocking = std::async(std::launch::async, [&] { return daemon.start_worker({.executable = "true", .label = "this-neither"}); });
  const auto third = told.wait_for(3);
  CHECK(third.sentence.find("'this-neither'") != std::string::npos);
  daemon.job(third.job).cancel();
  CHECK_THROWS_AS(blocking.get(), FlotillaError);
  for (const Job& job : jobs) job.cancel();
  CHECK(first.get().state == JobState::canceled);
  CHECK_THROWS_AS(second.get(), JobFailedError);
  CHECK(told.notices.size() == 3);
}

TEST_CASE("output comes while the job runs") {
  Place place;
  Daemon daemon;
  const fs::path gate = place.fifo("gate");
  const Job job = daemon.submit({.argv = {"sh", "-c", "echo first; cat " + gate.native() + "; echo last"}});
  std::string text;
  const auto exit = job.follow([&](int stream, std::string_view data) {
    CHECK(stream == 1);
    text += data;
    if (text == "first\n") std::ofstream(gate) << "middle\n";  // only now does it go on
  });
  CHECK(exit.ok());
  CHECK(text == "first\nmiddle\nlast\n");
  CHECK(job.output() == text);
}

TEST_CASE("resources and pilots") {
  Place place;
  Daemon daemon;
  const Resource far = daemon.add_resource({.name = "far", .location = "me@far.example.org:2222", .env = {{"A", "1"}}});
  CHECK(far.info().spec.env.at("A") == "1");
  CHECK_THROWS_AS(daemon.add_resource({.name = "far", .location = "other"}), AlreadyExistsError);
  far.remove();
  CHECK_THROWS_AS(daemon.resource("far"), NotFoundError);
  CHECK_FALSE(thrown<InvalidArgumentError>([&] { daemon.add_resource({.name = "bad name!", .location = "h", .transport = "pigeon"}); })
                  .faults()
                  .empty());

  const Pilot pilot = daemon.start_pilot({.resource = "local", .slots_per_node = 1, .label = "extra"});
  CHECK(pilot.wait_async(30s).get().slots == 1);
  CHECK(daemon.run({.argv = {"echo", "on it"}, .label = "extra"}).standard_output == "on it\n");
  pilot.stop();
  CHECK(pilot.wait_ended(30s).state == PilotState::finished);
}

TEST_CASE("workers: called, counted, ended, and their deaths explained") {
  Place place;
  Daemon daemon;
  {
    Worker worker = daemon.start_worker({.executable = test_worker()});
    RemoteCode code(worker.fd(), worker.code_options<CodeOptions>());
    CHECK(code.call<std::int32_t>("add", 2, 3) == 5);
    CHECK(worker.counters()[0] == 1);
    CHECK(worker.counters()[1] > 44);
    const std::vector<double> values(100'000, 0.5);
    CHECK(code.call<std::vector<double>>("total", values)[99'999] == 50'000.0);
    CHECK_FALSE(worker.exit());
    CHECK_NOTHROW(worker.check());
    const Job job = worker.job();
    worker.close();
    CHECK(worker.closed());
    CHECK(job.wait(30s).state == JobState::finished);
  }
  {
    Worker worker = daemon.start_worker({.executable = fs::path(test_worker()).filename(), .files = {{.path = test_worker()}}});
    RemoteCode code(worker.fd(), worker.code_options<CodeOptions>());
    const std::string said = thrown<ChannelClosed>([&] { code.call("leave", 7); }).what();
    CHECK(said.find('7') != std::string::npos);
    CHECK(said.find("the last words") != std::string::npos);
    const auto reason = worker.exit(10s);
    REQUIRE(reason);
    CHECK(reason->code == 7);
    CHECK(thrown<WorkerFailedError>([&] { worker.check(); }).exit()->stderr_tail.find("the last words") != std::string::npos);
  }
  {
    auto future = daemon.start_worker_async({.executable = test_worker()});
    Worker worker = future.get();
    RemoteCode code(worker.fd(), worker.code_options<CodeOptions>());
    CHECK_THROWS_AS(code.call("fall"), ChannelClosed);
    CHECK(worker.exit(10s)->signal == SIGKILL);
  }
  {
    const auto error = thrown<WorkerFailedError>([&] {
      daemon.start_worker({.executable = "sh", .args = {"-c", "echo no licence >&2; exit 5"}});
    });
    REQUIRE(error.exit());
    CHECK(error.exit()->code == 5);
    CHECK(std::string(error.what()).find("no licence") != std::string::npos);
  }
  {
    Worker worker = daemon.start_worker({.executable = test_worker()});
    std::optional<ExitReason> said = ExitReason{};
    std::thread waiting([&] { said = worker.exit(60s); });
    worker.close();
    waiting.join();
    CHECK_FALSE(said);
  }
}

TEST_CASE("a wait outlives a daemon that is killed") {
  Place place;
  Daemon daemon;
  const fs::path gate = place.fifo("gate");
  const Job job = daemon.submit({.argv = {"sh", "-c", "echo before; cat " + gate.native() + "; echo after"}});
  job.wait_running(30s);
  auto waiting = job.wait_async();
  auto result = job.result_async();
  const int pid = daemon.info().pid;
  const int ended = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  REQUIRE(kill(pid, SIGKILL) == 0);
  pollfd polled{ended, POLLIN, 0};
  REQUIRE(poll(&polled, 1, 20'000) == 1);
  close(ended);
  const std::string command = std::string(std::getenv("FLOTILLA_PROGRAM")) + " daemon start >/dev/null";
  REQUIRE(std::system(command.c_str()) == 0);
  std::ofstream(gate) << "between\n";
  CHECK(waiting.get().state == JobState::finished);
  CHECK(result.get().standard_output == "before\nbetween\nafter\n");
  CHECK(daemon.info().pid != pid);
}

TEST_CASE("questions on the terminal: secrets are not echoed, a server's escape sequences do not get there") {
  int master = -1, slave = -1;
  REQUIRE(openpty(&master, &slave, nullptr, nullptr, nullptr) == 0);
  fcntl(master, F_SETFD, FD_CLOEXEC);
  const auto read_until = [&](const std::string& end) {
    std::string text;
    for (char c; text.find(end) == std::string::npos;) {
      pollfd polled{master, POLLIN, 0};
      if (poll(&polled, 1, 20'000) != 1 || read(master, &c, 1) != 1) break;
      text += c;
    }
    return text;
  };
  const auto ask = [&](const char* kind, const char* text) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (int fd : {0, 1, 2}) posix_spawn_file_actions_adddup2(&actions, slave, fd);
    const char* program = std::getenv("FLOTILLA_TEST_QUESTION");
    REQUIRE(program);
    const char* argv[] = {"setsid", "--ctty", program, kind, text, nullptr};
    pid_t pid = 0;
    REQUIRE(posix_spawnp(&pid, "setsid", &actions, nullptr, const_cast<char**>(argv), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  };
  const auto echoes = [&] {
    termios state{};
    REQUIRE(tcgetattr(master, &state) == 0);
    return (state.c_lflag & ECHO) != 0;
  };
  pid_t pid = ask("secret", "Pass\033[2Jword:");
  CHECK(read_until("Pass[2Jword: ") == "far: Pass[2Jword: ");
  CHECK_FALSE(echoes());
  REQUIRE(write(master, "s3cret\n", 7) == 7);
  CHECK(read_until("answer=s3cret.") == "\r\nanswer=s3cret.");
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(echoes());

  pid = ask("host_key", "unknown key");
  CHECK(read_until("(yes/no)? ").find("far: unknown key") != std::string::npos);
  REQUIRE(write(master, "yes\n", 4) == 4);
  CHECK(read_until("answer=yes.").find("answer=yes.") != std::string::npos);
  CHECK(waitpid(pid, &status, 0) == pid);
  close(slave);
  close(master);
}
