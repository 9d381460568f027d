#include "client/cli/daemon_start.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <vector>

#include "client/cli/core/units.hpp"
#include "proto/base/paths.hpp"

namespace flotilla::cli {
namespace fs = std::filesystem;
namespace {

constexpr int start_limit_ms = 60'000;     // a journal of a million jobs is read in 2 s; disks may be slow
constexpr std::size_t shown_bytes = 2000;  // of what a failed start printed

Result<unique_fd> lock_start() {
  if (auto made = make_private_dir(runtime_dir()); !made) return fail(made.error());
  const fs::path file = runtime_dir() / "start.lock";
  unique_fd fd(open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail(errno_error(Code::permission_denied, "open " + file.string()));
  while (flock(fd.get(), LOCK_EX) != 0)
    if (errno != EINTR) return fail(errno_error(Code::unavailable, "lock " + file.string()));
  return fd;
}

// The user's environment as it is (PATH, SSH_AUTH_SOCK), without what marks a process as part of a job: sweeps look for that.
std::vector<std::string> daemon_environment() {
  static constexpr const char* dropped[] = {"FLOTILLA_INSTANCE",  "FLOTILLA_JOB",    "FLOTILLA_ATTEMPT",
                                            "FLOTILLA_PILOT",     "FLOTILLA_NODE",   "FLOTILLA_RESOURCE",
                                            "FLOTILLA_STATE_DIR", "FLOTILLA_CONFIG", "FLOTILLA_RUNTIME_DIR"};
  std::vector<std::string> out;
  for (char** entry = environ; *entry; ++entry) {
    bool drop = false;
    for (const char* name : dropped)
      drop = drop || (std::strncmp(*entry, name, std::strlen(name)) == 0 && (*entry)[std::strlen(name)] == '=');
    if (!drop) out.emplace_back(*entry);
  }
  // Relative paths would mean another place in the daemon's working directory.
  const auto absolute = [&](const char* name, const fs::path& path) {
    if (const char* value = std::getenv(name); value && *value) out.push_back(std::string(name) + "=" + path.string());
  };
  absolute("FLOTILLA_STATE_DIR", state_dir());
  absolute("FLOTILLA_CONFIG", config_file());
  absolute("FLOTILLA_RUNTIME_DIR", runtime_dir());
  return out;
}

// The last lines of a file, at most shown_bytes.
std::string tail_of(const fs::path& file) {
  const unique_fd fd(open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return {};
  const off_t size = lseek(fd.get(), 0, SEEK_END);
  const off_t from = size > static_cast<off_t>(shown_bytes) ? size - static_cast<off_t>(shown_bytes) : 0;
  std::string text(static_cast<std::size_t>(size - from), '\0');
  const ssize_t n = pread(fd.get(), text.data(), text.size(), from);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  if (from > 0) text.erase(0, text.find('\n') + 1);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string program_path() {
  char path[4096];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  if (n > 0) {
    path[n] = '\0';
    // Rebuilt while we run: the name leads to another file, the link still to ours.
    struct stat named {
    }, linked{};
    if (stat(path, &named) == 0 && stat("/proc/self/exe", &linked) == 0 && named.st_ino == linked.st_ino) return path;
  }
  return "/proc/self/exe";
}

struct Spawned {
  pid_t pid = 0;
  unique_fd ready;  // the daemon writes one line
};

Result<Spawned> spawn_daemon(const fs::path& output, LocalPilot local_pilot) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "make a pipe"));
  unique_fd read_end(ends[0]), write_end(ends[1]);
  constexpr int ready_fd = 3;
  const unique_fd out(open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_APPEND, 0600));
  if (!out) return fail(errno_error(Code::permission_denied, "open " + output.string()));

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, out.get(), 2);
  // dup2 onto itself clears the close-on-exec flag here, as glibc promises for file actions.
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), ready_fd);
  posix_spawn_file_actions_addchdir_np(&actions, "/");
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  sigdelset(&all, SIGKILL);
  sigdelset(&all, SIGSTOP);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  const std::vector<std::string> environment = daemon_environment();
  std::vector<char*> environment_pointers;
  for (const auto& entry : environment) environment_pointers.push_back(const_cast<char*>(entry.c_str()));
  environment_pointers.push_back(nullptr);
  std::string words[] = {"flotilla", "daemon", "run", "--ready-fd", std::to_string(ready_fd)};
  std::string without = "--no-local-pilot";
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(),
                       words[3].data(), words[4].data(), local_pilot == LocalPilot::none ? without.data() : nullptr,
                       nullptr};

  Spawned spawned;
  const std::string program = program_path();
  const int problem = posix_spawn(&spawned.pid, program.c_str(), &actions, &attributes, arguments, environment_pointers.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (problem != 0) {
    errno = problem;
    return fail(errno_error(Code::unavailable, "start " + program + " daemon run"));
  }
  spawned.ready = std::move(read_end);
  return spawned;
}

}  // namespace

Result<DaemonSocket> connect_daemon_socket() {
  const fs::path path = daemon_socket();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.native().size() >= sizeof address.sun_path)
    return fail(Code::invalid_argument, "the socket's path " + path.string() + " is too long",
                "set FLOTILLA_RUNTIME_DIR to a shorter one (at most 90 characters)");
  std::strcpy(address.sun_path, path.c_str());
  DaemonSocket out;
  out.fd.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!out.fd) return fail(errno_error(Code::resource_exhausted, "make a socket"));
  while (connect(out.fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    if (errno == EINTR) continue;
    if (errno == ENOENT || errno == ECONNREFUSED)
      return fail(Code::not_found, "the daemon is not running", "start it with 'flotilla daemon start'");
    return fail(errno_error(Code::unavailable, "connect to the daemon at " + path.string()));
  }
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(out.fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return fail(errno_error(Code::unavailable, "ask who listens at " + path.string()));
  if (peer.uid != getuid())
    return fail(Code::permission_denied, "the socket " + path.string() + " belongs to user " + std::to_string(peer.uid) + ", not to you",
                "set FLOTILLA_RUNTIME_DIR to a directory of your own");
  out.pid = peer.pid;
  return out;
}

std::filesystem::path stopped_marker() { return runtime_dir() / "stopped"; }

bool wait_for_end(int pid, int limit_ms) {
  const unique_fd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!process) return errno == ESRCH;
  for (;;) {
    pollfd wait{process.get(), POLLIN, 0};
    const int n = poll(&wait, 1, limit_ms);
    if (n > 0) return true;
    if (n == 0) return false;
    if (errno != EINTR) return false;
  }
}

Result<bool> start_daemon(LocalPilot local_pilot) {
  const auto lock = lock_start();
  if (!lock) return fail(lock.error());
  // Another command may have started it while this one waited for the lock.
  if (auto there = connect_daemon_socket(); there || there.error().code != Code::not_found) {
    if (!there) return fail(there.error());
    return false;
  }
  unlink(stopped_marker().c_str());
  const fs::path output = runtime_dir() / "daemon.out";
  auto spawned = spawn_daemon(output, local_pilot);
  if (!spawned) return fail(spawned.error());

  std::string said;
  bool silent = false;
  for (;;) {
    pollfd wait{spawned->ready.get(), POLLIN, 0};
    const int n = poll(&wait, 1, start_limit_ms);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) {
      silent = true;
      break;
    }
    char buffer[4096];
    const ssize_t got = read(spawned->ready.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    said.append(buffer, static_cast<std::size_t>(got));
    if (said == "ready\n") return true;
  }
  if (silent)
    return fail(
        Code::timeout,
        "the daemon (process " + std::to_string(spawned->pid) + ") was started but is not ready after " + format_duration(start_limit_ms),
        "its log is in " + state_dir().string());
  int status = 0;
  constexpr int end_limit_ms = 10'000;
  const bool ended = wait_for_end(spawned->pid, end_limit_ms) && waitpid(spawned->pid, &status, WNOHANG) > 0;
  Error error{Code::unavailable, "the daemon did not start: ", {}, Retry::no, {}};
  while (!said.empty() && said.back() == '\n') said.pop_back();
  if (!said.empty()) error.message += said;
  else if (!ended) error.message += "process " + std::to_string(spawned->pid) + " closed its readiness pipe, but goes on";
  else if (WIFSIGNALED(status)) error.message += "it was killed by " + format_signal(WTERMSIG(status));
  else error.message += "it ended with code " + std::to_string(WEXITSTATUS(status));
  if (const std::string printed = tail_of(output); !printed.empty()) error.message += "\nIts last lines:\n" + printed;
  error.hint = "its log is in " + state_dir().string() + "; 'flotilla daemon run' shows it live";
  return fail(std::move(error));
}

}  // namespace flotilla::cli
