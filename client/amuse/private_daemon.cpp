#include "client/amuse/private_daemon.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"

extern char** environ;

namespace flotilla::amuse {
namespace fs = std::filesystem;
using namespace std::chrono_literals;
namespace {

constexpr auto death_shows = 500ms;   // a connection that ended tells of a death a moment before the process is gone
constexpr int end_limit_ms = 10'000;  // for the daemon's process, when all else has ended
constexpr auto restart_limit = 2min;  // one that died is started again at once; `daemon start` takes 60 s at most
constexpr int quick_deaths = 3;       // in a row: it will not stay the next time either
constexpr auto quick = 5s;

DaemonOptions options_of(const std::string& program) {
  DaemonOptions how;
  how.program = program;
  how.on_waiting = [](const WaitNotice&) {};  // the script is told when it is over
  how.restart_limit = restart_limit;
  return how;
}

unique_fd process_of(const Daemon& daemon) { return unique_fd(static_cast<int>(syscall(SYS_pidfd_open, daemon.info().pid, 0))); }

// In a session of its own: what ends the script's processes does not end it. Empty where it cannot be started.
unique_fd start_guard(std::string program, std::string folder, bool keep) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {};
  const unique_fd far(ends[0]);
  unique_fd near(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_adddup2(&actions, far.get(), 0);
  for (const int fd : {1, 2}) posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_WRONLY, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  std::string words[] = {"amuse", "guard", "keep"};
  char* argv[] = {program.data(), words[0].data(), words[1].data(), folder.data(), keep ? words[2].data() : nullptr, nullptr};
  pid_t pid = 0;
  const int problem = posix_spawnp(&pid, program.c_str(), &actions, &attributes, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (problem) return {};
  return near;
}

// Every job, pilot and hub, and the daemon: its process has ended then. One that has died is started for it: its pilots would stay.
// The error's faults() are what could not be ended.
void end_daemon(const std::string& program) {
  auto how = options_of(program);
  how.prompts = [](const Prompt&) { return std::nullopt; };
  for (int rest = 2;; --rest) {
    unique_fd process;
    const auto await_end = [&] {
      pollfd wait{process.get(), POLLIN, 0};
      while (process && ::poll(&wait, 1, end_limit_ms) < 0 && errno == EINTR) {}
    };
    try {
      const Daemon daemon(how);
      process = process_of(daemon);
      daemon.shutdown(true);
      return await_end();
    } catch (const UnavailableError& error) {
      await_end();
      // It may have been dying as we asked: the next one does it. What it told at its own end is the last word.
      if (rest == 0 || !error.faults().empty()) throw;
    }
  }
}

void remove_all_of(const fs::path& folder) {
  std::error_code ignored;
  fs::remove_all(runtime_dir(), ignored);
  fs::remove_all(folder, ignored);
}

}  // namespace

PrivateDaemon::PrivateDaemon(const PrivateDaemonOptions& options) : program_(options.program), keep_(options.debug) {
  static const fs::path base = state_dir();  // later the environment names the one before
  folder_ = base / ("amuse-" + std::to_string(getpid()) + "-" + random_hex(3));
  const auto failed = [](const Error& error) {
    FlotillaError::Details details;
    details.code = ErrorCode::failed_precondition;
    details.message = error.message;
    details.hint = error.hint;
    return FailedPreconditionError(details);
  };
  if (auto made = make_private_dir(folder_); !made) throw failed(made.error());
  // The script's user opens the page with the link that AMUSE makes, which has no token.
  std::string config = "[local_pilot]\nstart = false\n\n[pilots]\ncutoff = \"5m\"\n\n[daemon]\nweb_access = \"user\"\n";
  if (options.web_port > 0) config += "web_port = " + std::to_string(options.web_port) + "\n";
  config += options.debug ? "debug = true\nlog_links = \"~/distributed-amuse-logs\"\n" : "leave_nothing = true\n";
  if (auto written = write_file(folder_ / "config.toml", config); !written) throw failed(written.error());
  setenv("FLOTILLA_STATE_DIR", (folder_ / "state").c_str(), 1);
  setenv("FLOTILLA_CONFIG", (folder_ / "config.toml").c_str(), 1);
  unsetenv("FLOTILLA_RUNTIME_DIR");
  ending_.reset(eventfd(0, EFD_CLOEXEC));
  if (!ending_) throw failed(errno_error(Code::resource_exhausted, "cannot make an event descriptor"));
  guard_ = start_guard(options.program, folder_.string(), keep_);
  start();
  keeper_ = std::thread([this] { keep_alive(); });
}

PrivateDaemon::~PrivateDaemon() { end(); }

void PrivateDaemon::start() {
  Daemon fresh(options_of(program_));
  process_ = process_of(fresh);
  const std::lock_guard lock(mutex_);
  daemon_ = std::move(fresh);
  ++starts_;
  running_ = true;
  changed_.notify_all();
}

// Its jobs and pilots outlive it, but not for long: it is started again at once, whether it is asked for anything or not.
void PrivateDaemon::keep_alive() {
  for (int deaths = 0;;) {
    const auto began = std::chrono::steady_clock::now();
    pollfd waits[2] = {{process_.get(), POLLIN, 0}, {ending_.get(), POLLIN, 0}};
    while (::poll(waits, 2, process_ ? -1 : 0) < 0) {}  // without: it was dead before it could be watched
    if (waits[1].revents) return;
    {
      const std::lock_guard lock(mutex_);
      running_ = false;
      changed_.notify_all();
    }
    deaths = std::chrono::steady_clock::now() - began < quick ? deaths + 1 : 1;
    std::string problem = "it died " + std::to_string(deaths) + " times in a row";
    if (deaths < quick_deaths) {
      std::fprintf(stderr, "the daemon of this script died; it is started again\n");
      try {
        start();
        continue;
      } catch (const FlotillaError& error) {
        problem = error.what();
      }
    }
    std::fprintf(stderr, "the daemon of this script died, and is not started again: %s\n", problem.c_str());
    const std::lock_guard lock(mutex_);
    over_ = true;
    changed_.notify_all();
    return;
  }
}

std::pair<Daemon, unsigned> PrivateDaemon::current() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return running_ || over_; });
  return {*daemon_, starts_};
}

Daemon PrivateDaemon::daemon() const { return current().first; }

bool PrivateDaemon::back_since(unsigned start) const {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, death_shows, [&] { return !running_ || starts_ != start || over_; })) return false;
  changed_.wait(lock, [this] { return running_ || over_; });
  return running_ && !over_;
}

void PrivateDaemon::end() {
  const std::uint64_t one = 1;
  if (!ending_) return;
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
    changed_.notify_all();
  }
  if (::write(ending_.get(), &one, sizeof one) < 0) std::perror("the daemon's end");
  if (keeper_.joinable()) keeper_.join();
  bool clear = true;
  try {
    end_daemon(program_);
  } catch (const FlotillaError& error) {
    std::fprintf(stderr, "not all of this script could be ended: %s\n", error.message().c_str());
    for (const auto& fault : error.faults()) std::fprintf(stderr, "  %s\n", fault.c_str());
    clear = !error.faults().empty();  // the daemon has ended: what it could not reach ends by itself, and nothing here can hasten that
    if (!clear)
      std::fprintf(stderr, "its files are kept in %s; to try again: FLOTILLA_STATE_DIR=%s flotilla daemon stop --all\n", folder_.c_str(),
                   (folder_ / "state").c_str());
  }
  if (clear && !keep_) remove_all_of(folder_);
  const char word = 'e';
  if (guard_ && ::write(guard_.get(), &word, 1) < 0) std::perror("the guard");
  guard_.reset();
  ending_.reset();
}

int run_guard(const fs::path& folder, bool keep) {
  // Typed by hand it ends nothing.
  if (state_dir() != folder / "state" || !folder.filename().string().starts_with("amuse-")) return 64;
  char word;
  ssize_t count;
  while ((count = ::read(0, &word, 1)) < 0 && errno == EINTR) {}
  if (count > 0) return 0;
  try {
    end_daemon("/proc/self/exe");
  } catch (const std::exception&) {
    return 1;  // its files tell what happened
  }
  if (!keep) remove_all_of(folder);
  return 0;
}

}  // namespace flotilla::amuse
