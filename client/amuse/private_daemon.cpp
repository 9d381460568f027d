#include "client/amuse/private_daemon.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"

extern char** environ;

namespace flotilla::amuse {
namespace fs = std::filesystem;
namespace {

// In a session of its own: what ends the script's processes does not end it. Empty where it cannot be started.
unique_fd start_guard(std::string program, std::string folder) {
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
  std::string words[] = {"amuse", "guard"};
  char* argv[] = {program.data(), words[0].data(), words[1].data(), folder.data(), nullptr};
  pid_t pid = 0;
  const int problem = posix_spawnp(&pid, program.c_str(), &actions, &attributes, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (problem) return {};
  return near;
}

// Every job, pilot and hub, and the daemon. One that has died is started for it: its pilots would stay.
void end_daemon(const std::string& program) {
  DaemonOptions how;
  how.program = program;
  how.on_waiting = [](const WaitNotice&) {};
  how.prompts = [](const Prompt&) { return std::nullopt; };
  for (int rest = 2;; --rest) {  // it may be dying as we ask
    try {
      Daemon(how).shutdown(true);
      return;
    } catch (const FlotillaError&) {
      if (rest == 0) throw;
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
  const auto name = "amuse-" + std::to_string(getpid()) + "-" + random_hex(3);
  folder_ = state_dir() / name;
  const auto failed = [](const Error& error) {
    FlotillaError::Details details;
    details.code = ErrorCode::failed_precondition;
    details.message = error.message;
    details.hint = error.hint;
    return FailedPreconditionError(details);
  };
  if (auto made = make_private_dir(folder_); !made) throw failed(made.error());
  std::string config = "[local_pilot]\nstart = false\n\n[pilots]\ncutoff = \"5m\"\n\n[daemon]\n";
  if (options.web_port > 0) config += "web_port = " + std::to_string(options.web_port) + "\n";
  config += options.debug ? "debug = true\nlog_links = \"~/distributed-amuse-logs\"\n" : "leave_nothing = true\n";
  if (auto written = write_file(folder_ / "config.toml", config); !written) throw failed(written.error());
  setenv("FLOTILLA_STATE_DIR", (folder_ / "state").c_str(), 1);
  setenv("FLOTILLA_CONFIG", (folder_ / "config.toml").c_str(), 1);
  unsetenv("FLOTILLA_RUNTIME_DIR");
  guard_ = start_guard(options.program, folder_.string());
  DaemonOptions how;
  how.program = options.program;
  how.on_waiting = [](const WaitNotice&) {};  // the script is told when it is over
  daemon_ = std::make_unique<Daemon>(how);
}

PrivateDaemon::~PrivateDaemon() { end(); }

void PrivateDaemon::end() {
  if (!daemon_) return;
  try {
    end_daemon(program_);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "the daemon of this script could not be ended: %s\n", error.what());
  }
  daemon_.reset();
  if (!keep_) remove_all_of(folder_);
  const char word = 'e';
  if (guard_ && ::write(guard_.get(), &word, 1) < 0) std::perror("the guard");
  guard_.reset();
}

int run_guard(const fs::path& folder) {
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
  remove_all_of(folder);
  return 0;
}

}  // namespace flotilla::amuse
