#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <flotilla/client.hpp>
#include <flotilla/code.hpp>
#include <fstream>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <typeindex>

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
    std::ofstream(folder_ / "config.toml").flush();
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

void kill_and_await(int pid) {
  const int ended = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  REQUIRE(kill(pid, SIGKILL) == 0);
  pollfd polled{ended, POLLIN, 0};
  REQUIRE(poll(&polled, 1, 20'000) == 1);
  close(ended);
}
void start_daemon() {
  const std::string command = std::string(std::getenv("FLOTILLA_PROGRAM")) + " daemon start >/dev/null";
  REQUIRE(std::system(command.c_str()) == 0);
}

// What a daemon's on_waiting was told.
struct Told {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<WaitNotice> notices;
  void operator()(const WaitNotice& notice) {
    std::lock_guard lock(mutex);
    notices.push_back(notice);
    changed.notify_all();
  }
  WaitNotice wait_for(std::size_t count) {
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, 30s, [&] { return notices.size() >= count; }));
    return notices[count - 1];
  }
};

// A daemon that asks a question, and says what was answered.
class PlayedDaemon {
 public:
  explicit PlayedDaemon(const std::string& socket, const char* protocol = nullptr) {
    const char* program = std::getenv("FLOTILLA_TEST_DAEMON");
    REQUIRE(program);
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    const char* argv[] = {program, socket.c_str(), protocol, nullptr};
    REQUIRE(posix_spawn(&pid_, program, &actions, nullptr, const_cast<char**>(argv), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    said_ = ends[0];
    REQUIRE(line() == "ready");
  }
  ~PlayedDaemon() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(said_);
  }
  PlayedDaemon(const PlayedDaemon&) = delete;
  PlayedDaemon& operator=(const PlayedDaemon&) = delete;
  std::string line() {
    std::string text;
    for (char c;;) {
      pollfd polled{said_, POLLIN, 0};
      if (poll(&polled, 1, 20'000) != 1 || read(said_, &c, 1) != 1) return text + " (nothing more was said)";
      if (c == '\n') return text;
      text += c;
    }
  }

 private:
  pid_t pid_ = 0;
  int said_ = -1;
};

// Another machine, as far as ssh can tell: sshd on loopback. $HOME is its user's while it lives, without a key that it would take.
class Sshd {
 public:
  explicit Sshd(const fs::path& folder) : folder_(folder / "sshd"), home_(std::getenv("HOME") ? std::getenv("HOME") : "") {
    fs::create_directories(folder_);
    fs::create_directories(folder / "home/.ssh");
    if (geteuid() == 0) fs::create_directories("/run/sshd");
    setenv("HOME", (folder / "home").c_str(), 1);
    unsetenv("SSH_AUTH_SOCK");
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0);
    REQUIRE(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    close(fd);
    port_ = ntohs(address.sin_port);
    std::ofstream(folder_ / "config") << "ListenAddress 127.0.0.1\nPort " << port_ << "\nHostKey " << (folder_ / "key").native()
                                      << "\nPidFile none\nAuthorizedKeysFile none\nUsePAM no\nPasswordAuthentication no\n"
                                         "KbdInteractiveAuthentication no\nLogLevel QUIET\n";
    start();
  }
  ~Sshd() {
    stop();
    setenv("HOME", home_.c_str(), 1);
  }
  Sshd(const Sshd&) = delete;
  Sshd& operator=(const Sshd&) = delete;
  std::string location() const { return "127.0.0.1:" + std::to_string(port_); }
  // With a new host key.
  void start() {
    fs::remove(folder_ / "key");
    REQUIRE(std::system(("ssh-keygen -q -t ed25519 -N '' -f " + (folder_ / "key").native()).c_str()) == 0);
    const std::string config = folder_ / "config";
    const char* argv[] = {"/usr/sbin/sshd", "-D", "-f", config.c_str(), nullptr};
    REQUIRE(posix_spawn(&pid_, argv[0], nullptr, nullptr, const_cast<char**>(argv), environ) == 0);
    const int ended = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
    for (bool listens = false; !listens;) {
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const sockaddr_in address = loopback(port_);
      listens = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
      close(fd);
      pollfd polled{ended, POLLIN, 0};
      REQUIRE(poll(&polled, 1, listens ? 0 : 20) == 0);  // it has not ended
    }
    close(ended);
  }
  void stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGTERM);
    waitpid(std::exchange(pid_, 0), nullptr, 0);
  }

 private:
  static sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    return address;
  }
  fs::path folder_;
  std::string home_;
  int port_ = 0;
  pid_t pid_ = 0;
};

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
  Told told;
  const Daemon daemon({.on_waiting = std::ref(told)});
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

TEST_CASE("a worker that waits can be given up, and a job be followed no more") {
  Place place;
  Told told;
  Daemon daemon({.on_waiting = std::ref(told)});
  std::stop_source by_future, by_thread, followed;
  auto future = daemon.start_worker_async({.executable = "true", .label = "nor-this"}, by_future.get_token());
  const auto first = told.wait_for(1);
  auto blocking = std::async(std::launch::async,
                             [&] { return daemon.start_worker({.executable = "true", .label = "this-neither"}, by_thread.get_token()); });
  const auto second = told.wait_for(2);
  by_future.request_stop();
  CHECK_THROWS_AS(future.get(), CanceledError);
  by_thread.request_stop();
  CHECK_THROWS_AS(blocking.get(), CanceledError);
  for (const auto job : {first.job, second.job}) {
    const auto info = daemon.job(job).wait(30s);
    CHECK(info.state == JobState::canceled);
    CHECK(info.exit.kind == ExitKind::client_gone);
  }
  CHECK_THROWS_AS(daemon.start_worker({.executable = test_worker()}, by_thread.get_token()), CanceledError);  // before it began

  const Job job = daemon.submit({.argv = {"sh", "-c", "echo here; exec sleep 600"}});
  const auto stop_at_first = [&](int, std::string_view) { followed.request_stop(); };
  CHECK_THROWS_AS(job.follow(stop_at_first, followed.get_token()), CanceledError);
  CHECK(job.info().state == JobState::running);
  kill_and_await(daemon.info().pid);  // nor is a daemon waited for that is gone
  CHECK_THROWS_AS(job.follow(stop_at_first, followed.get_token()), CanceledError);
  start_daemon();
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
  kill_and_await(pid);
  start_daemon();
  std::ofstream(gate) << "between\n";
  CHECK(waiting.get().state == JobState::finished);
  CHECK(result.get().standard_output == "before\nbetween\nafter\n");
  CHECK(daemon.info().pid != pid);
}

TEST_CASE("after a restart a wait lasts as long as its job, and no longer than its limit") {
  Place place;
  const Daemon daemon({.restart_limit = 4s});
  const Job job = daemon.submit({.argv = {"sleep", "6"}});
  const Job endless = daemon.submit({.argv = {"sleep", "600"}});
  endless.wait_running(30s);
  auto ended = job.wait_async();
  auto running = daemon.wait_all_async({job});
  auto limited = endless.result_async(2s);
  auto also_limited = daemon.wait_all_async({endless}, 2s);
  kill_and_await(daemon.info().pid);
  start_daemon();
  CHECK(ended.get().state == JobState::finished);
  CHECK(running.get().front().state == JobState::finished);
  CHECK_THROWS_AS(limited.get(), TimedOutError);
  CHECK_THROWS_AS(also_limited.get(), TimedOutError);
  CHECK(endless.wait_running_async(30s).get().state == JobState::running);
  endless.cancel();

  kill_and_await(daemon.info().pid);
  CHECK_THROWS_AS(endless.wait(), UnavailableError);
  CHECK_THROWS_AS(endless.wait(100ms), TimedOutError);
  start_daemon();
}

TEST_CASE("what is written just before leaving a job gets there") {
  Place place;
  const Daemon daemon;
  for (int i = 0; i < 10; ++i) {
    const Job job = daemon.submit({.argv = {"cat"}, .open_input = true});
    job.wait_running(30s);
    {
      Attachment attached = job.attach();
      attached.write("all of it\n");
      attached.close_input();
    }
    CHECK(job.wait(30s).state == JobState::finished);
    CHECK(job.output() == "all of it\n");
  }
}

TEST_CASE("the cause of an end is told soon without a daemon, and who asks for it stands in nobody's way") {
  Place place;
  const Daemon daemon;
  Worker worker = daemon.start_worker({.executable = test_worker()});
  RemoteCode code(worker.fd(), worker.code_options<CodeOptions>());
  CHECK(code.call<std::int32_t>("add", 2, 3) == 5);
  std::string stat;
  std::getline(std::ifstream("/proc/" + std::to_string(worker.info().pid) + "/stat"), stat);
  int pilot = 0;
  REQUIRE(std::sscanf(stat.c_str() + stat.rfind(')'), ") %*c %d", &pilot) == 1);

  // One thread waits for the end with no limit: others are not held up by it.
  std::optional<ExitReason> said;
  std::thread waiting([&] { said = worker.exit(no_limit); });
  CHECK_FALSE(worker.exit(50ms));
  CHECK_NOTHROW(worker.check());

  for (const int pid : {daemon.info().pid, pilot}) kill_and_await(pid);
  const auto begin = std::chrono::steady_clock::now();
  const auto died = thrown<ChannelClosed>([&] {
    for (;;) code.call<std::int32_t>("add", 2, 3);  // its guard ends it a moment later
  });
  const std::string text = worker.explain_end();
  CHECK(std::chrono::steady_clock::now() - begin < 5s);  // asked twice, each within 1.5 s
  CHECK(text.find("was lost") != std::string::npos);
  CHECK(std::string(died.what()).find("was lost") != std::string::npos);
  start_daemon();
  waiting.join();
  CHECK(said);
}

TEST_CASE("what a message cannot hold is refused before it is sent") {
  Place place;
  const Daemon daemon;
  const auto says = [](const FlotillaError& error, const char* text) { return error.message().find(text) != std::string::npos; };
  CHECK(says(thrown<InvalidArgumentError>([&] { daemon.submit({.argv = {"ls", "caf\xe9"}}); }), "argv[1] is not UTF-8: 'caf\\xe9'"));
  CHECK(says(thrown<InvalidArgumentError>([&] { daemon.run({.argv = {"true"}, .env = {{"A", "\xff"}}}); }), "variable A"));
  CHECK(says(thrown<InvalidArgumentError>([&] { daemon.submit({.argv = {"true"}, .files = {{.name = "\xff", .content = "x"}}}); }),
             "input file"));
  CHECK(says(thrown<InvalidArgumentError>([&] { daemon.start_worker({.executable = "true", .args = {"\xc0\x80"}}); }), "args[0]"));
  const std::string much(65u << 20, 'x');
  CHECK(thrown<ResourceExhaustedError>([&] { daemon.submit({.argv = {"cat"}, .standard_input = much}); }).hint().find("input file") !=
        std::string::npos);
  CHECK_THROWS_AS(daemon.run({.argv = {"cat"}, .standard_input = much}), ResourceExhaustedError);
}

TEST_CASE("each code of an error has its class") {
  Place place;
  const std::string socket = place.folder() / "played.sock";
  const PlayedDaemon played(socket);
  const Daemon daemon({.socket = socket});
  const std::map<int, std::type_index> classes{
      {0, typeid(InternalError)},           {1, typeid(InvalidArgumentError)},
      {2, typeid(NotFoundError)},           {3, typeid(AlreadyExistsError)},
      {4, typeid(FailedPreconditionError)}, {5, typeid(UnavailableError)},
      {6, typeid(PermissionDeniedError)},   {7, typeid(AuthenticationFailedError)},
      {8, typeid(HostKeyUnknownError)},     {9, typeid(HostKeyChangedError)},
      {10, typeid(TimedOutError)},          {11, typeid(CanceledError)},
      {12, typeid(UnsupportedError)},       {13, typeid(ResourceExhaustedError)},
      {14, typeid(VersionMismatchError)},   {15, typeid(WorkerFailedError)},
      {16, typeid(InternalError)},          {99, typeid(InternalError)},  // of a newer daemon
  };
  for (const auto& [code, type] : classes) {
    INFO(code);
    const std::string name = "fails-" + std::to_string(code);
    try {
      daemon.resource(name);
      FAIL_CHECK("nothing was thrown");
    } catch (const FlotillaError& error) {
      CHECK(std::type_index(typeid(error)) == type);
      CHECK(static_cast<int>(error.code()) == (code == 0 || code == 99 ? 16 : code));
      CHECK(error.message() == "it broke");
      CHECK(error.hint() == "mend it");
      CHECK(error.retry());
      CHECK(error.faults() == std::vector<std::string>{"one", "two"});
      REQUIRE(error.exit());
      CHECK(error.exit()->kind == ExitKind::signaled);
      CHECK(error.exit()->signal == SIGKILL);
      CHECK(error.what() == std::string("it broke\n  - one\n  - two\nlast lines of its stderr:\nhelp\nmend it"));
    }
  }
}

TEST_CASE("a daemon of another version is refused, and a call that it does not know") {
  Place place;
  const std::string newer = place.folder() / "newer.sock", older = place.folder() / "older.sock";
  const PlayedDaemon first(newer, "4000000000");
  const auto mismatch = thrown<VersionMismatchError>([&] { Daemon({.socket = newer}); });
  CHECK(mismatch.message().find("a build of another time") != std::string::npos);
  CHECK(mismatch.message().find("speaks protocol 4000000000") != std::string::npos);
  CHECK(mismatch.hint().find("flotilla daemon restart") != std::string::npos);
  const PlayedDaemon second(older);
  const Daemon daemon({.socket = older});
  const auto unknown = thrown<VersionMismatchError>([&] { (void)daemon.pilots(); });
  CHECK(unknown.message().find("does not know this call") != std::string::npos);
  CHECK(unknown.hint().find("flotilla daemon restart") != std::string::npos);
}

TEST_CASE("what goes wrong with a real daemon is of the class that says what it is") {
  Place place;
  const Daemon daemon({.on_waiting = [](const WaitNotice&) {}});
  const auto says = [](const FlotillaError& error, const char* text) {
    INFO(error.what());
    CHECK(std::string(error.what()).find(text) != std::string::npos);
  };

  says(thrown<NotFoundError>([&] { daemon.pilot(1'000'000'000); }), "1000000000");
  says(thrown<NotFoundError>([&] { daemon.start_pilot({.resource = "nowhere"}); }), "nowhere");
  says(thrown<InvalidArgumentError>([&] { daemon.submit({.argv = {}}); }), "argv");
  CHECK(thrown<InvalidArgumentError>([&] { daemon.submit({.argv = {""}, .processes = 0, .env = {{"1X", "y"}}}); }).faults().size() > 1);

  const Pilot pilot = daemon.start_pilot({.resource = "local", .slots_per_node = 1, .label = "narrow"});
  pilot.wait(30s);
  pilot.stop();
  pilot.wait_ended(30s);
  says(thrown<FailedPreconditionError>([&] { pilot.wait(30s); }), "finished: stopped by the user");
  const Job ended = daemon.submit({.argv = {"true"}});
  ended.wait(30s);
  says(thrown<FailedPreconditionError>([&] { ended.signal(SIGUSR1); }), "is finished, not running");

  const auto job = thrown<JobFailedError>([&] { daemon.run({.argv = {"sh", "-c", "echo out of stars >&2; kill -SEGV $$"}}); });
  REQUIRE(job.exit());
  CHECK(job.exit()->kind == ExitKind::signaled);
  CHECK(job.exit()->signal == SIGSEGV);
  CHECK(job.exit()->stderr_tail == "out of stars\n");
  says(job, "killed by signal 11 (SIGSEGV)");
  says(thrown<JobFailedError>([&] { daemon.run({.argv = {"no-such-command"}}); }), "no-such-command");
  CHECK(thrown<JobFailedError>([&] { daemon.run({.argv = {"true"}, .label = "nobody-has-this", .queue_timeout = 100ms}); }).exit()->kind ==
        ExitKind::queue_timeout);

  const auto worker = thrown<WorkerFailedError>([&] {
    daemon.start_worker({.executable = "sh", .args = {"-c", "echo no licence >&2; kill -ABRT $$"}});
  });
  REQUIRE(worker.exit());
  CHECK(worker.exit()->signal == SIGABRT);
  CHECK(worker.exit()->stderr_tail == "no licence\n");
  says(worker, "killed by signal 6 (SIGABRT) before it connected back");
  says(thrown<WorkerFailedError>([&] { daemon.start_worker({.executable = "no-such-worker"}); }), "no-such-worker");
  const auto late = thrown<TimedOutError>([&] {
    daemon.start_worker({.executable = "sh", .args = {"-c", "echo still loading >&2; exec sleep 600"}, .start_timeout = 300ms});
  });
  REQUIRE(late.exit());
  CHECK(late.exit()->kind == ExitKind::start_timeout);
  CHECK(late.exit()->stderr_tail == "still loading\n");
  CHECK(thrown<TimedOutError>([&] { daemon.start_worker({.executable = "true", .label = "nobody-has-this", .queue_timeout = 100ms}); })
            .exit()
            ->kind == ExitKind::queue_timeout);

  auto waiting = daemon.start_worker_async({.executable = "sh", .args = {"-c", "exec sleep 600"}, .name = "loads"});
  const auto started = [&] {
    for (const auto deadline = std::chrono::steady_clock::now() + 30s; std::chrono::steady_clock::now() < deadline;)
      for (const auto& each : daemon.jobs())
        if (each.name == "loads") return each.id;
    FAIL("it does not come");
    std::abort();
  }();
  daemon.job(started).wait_running(30s);
  daemon.job(started).cancel();
  CHECK(thrown<CanceledError>([&] { waiting.get(); }).exit()->kind == ExitKind::canceled);

  const Job endless = daemon.submit({.argv = {"sleep", "600"}});
  endless.wait_running(30s);
  kill_and_await(daemon.info().pid);
  CHECK(thrown<UnavailableError>([&] { (void)endless.info(); }).retry());
  start_daemon();
  Daemon().job(endless.id()).cancel();
}

TEST_CASE("what goes wrong with a login is of the class that says what it is") {
  Place place;
  Sshd sshd(place.folder());
  const Daemon daemon({.prompts = [](const Prompt&) { return std::nullopt; }});
  const Resource far = daemon.add_resource({.name = "far", .location = sshd.location()});
  const auto unknown = thrown<HostKeyUnknownError>([&] { far.connect(); });
  CHECK(unknown.message().find("SHA256:") != std::string::npos);
  CHECK_FALSE(unknown.hint().empty());

  const Daemon trusting({.prompts = [](const Prompt&) { return std::nullopt; }, .accept_new_host_keys = true});
  const auto refused = thrown<AuthenticationFailedError>([&] { trusting.resource("far").connect_async().get(); });
  CHECK(refused.message().find(sshd.location().substr(0, 9)) != std::string::npos);

  sshd.stop();
  sshd.start();
  const auto changed = thrown<HostKeyChangedError>([&] { trusting.resource("far").connect(); });
  CHECK(changed.message().find("SHA256:") != std::string::npos);
  CHECK_FALSE(changed.hint().empty());

  sshd.stop();
  CHECK(thrown<UnavailableError>([&] { far.connect(); }).message().find("refused") != std::string::npos);
  far.remove();
  CHECK_THROWS_AS(far.connect(), NotFoundError);
  sshd.start();
}

TEST_CASE("a file of many jobs is read once") {
  Place place;
  const Daemon daemon;
  const fs::path data = place.folder() / "data";
  fs::create_directory(place.folder() / "other");
  std::ofstream(data) << std::string(32u << 20, 'x') << "one\n";
  std::ofstream(place.folder() / "other" / "data") << "two\n";
  const CommandSpec spec{.argv = {"tail", "-n", "1", "data"}, .label = "nobody-has-this", .files = {{.path = data}}};
  CommandSpec without = spec;
  without.files.clear();
  // Processor time of this process: what else the machine does is not in it.
  const auto cost_of = [&](std::size_t count, const CommandSpec& what) {
    const auto begin = std::clock();
    for (const Job& job : daemon.submit_many(std::vector<CommandSpec>(count, what))) job.cancel();
    return std::clock() - begin;
  };
  cost_of(1, spec);  // it goes to the daemon
  const auto once = std::min({cost_of(1, spec), cost_of(1, spec), cost_of(1, spec)});
  CHECK(cost_of(100, spec) - cost_of(100, without) < 30 * once);

  std::vector<CommandSpec> both(2, {.argv = {"tail", "-c", "4", "data"}, .files = {{.path = data}}});
  both[1].files = {{.path = place.folder() / "other" / "data"}};
  const auto jobs = daemon.submit_many(both);
  daemon.wait_all(jobs, 60s);
  CHECK(jobs[0].output() == "one\n");
  CHECK(jobs[1].output() == "two\n");
}

TEST_CASE("the questions of the next daemon are answered too") {
  Place place;
  const std::string socket = place.folder() / "played.sock";
  auto played = std::make_unique<PlayedDaemon>(socket);
  std::atomic<int> asked = 0;
  const Daemon daemon({.socket = socket, .prompts = [&](const Prompt& prompt) {  // on a thread of the library
                         return prompt.text == "Password:" ? "answer " + std::to_string(++asked) : "asked: " + prompt.text;
                       }});
  const Resource far = daemon.resource("far");
  far.connect();
  CHECK(played->line() == "answer 1");
  far.connect();  // the same daemon: asked once
  played.reset();
  fs::remove(socket);
  played = std::make_unique<PlayedDaemon>(socket);
  CHECK(played->line() == "answer 2");
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
  const auto ask = [&](const char* kind, const char* text, const char* more = nullptr) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (int fd : {0, 1, 2}) posix_spawn_file_actions_adddup2(&actions, slave, fd);
    const char* program = std::getenv("FLOTILLA_TEST_QUESTION");
    REQUIRE(program);
    const char* argv[] = {"setsid", "--ctty", program, kind, text, more, nullptr};
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

  // Ctrl-C ends the program as always, and leaves the echo on.
  pid = ask("secret", "Password:");
  CHECK(read_until("Password: ").find("Password: ") != std::string::npos);
  CHECK_FALSE(echoes());
  REQUIRE(write(master, "half\x03", 5) == 5);
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGINT);
  CHECK(echoes());

  // Who leaves the daemon is not held up by a question.
  {
    Place place;
    const std::string socket = place.folder() / "played.sock";
    PlayedDaemon played(socket);
    const fs::path go = place.fifo("go");
    pid = ask("leave", socket.c_str(), go.c_str());
    CHECK(read_until("far: Password: ").find("far: Password: ") != std::string::npos);
    CHECK_FALSE(echoes());
    std::ofstream(go) << "x";
    CHECK(read_until("left.").find("left.") != std::string::npos);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(echoes());
  }

  close(slave);
  close(master);
}
