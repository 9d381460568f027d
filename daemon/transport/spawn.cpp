#include "daemon/transport/spawn.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstring>

extern char** environ;

namespace flotilla::daemon {

Result<std::unique_ptr<Child>> Child::start(const std::vector<std::string>& argv, const std::vector<std::string>& env, Errors errors) {
  std::unique_ptr<Child> child(new Child);
  int pair[2], pipe[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return fail(errno_error(Code::resource_exhausted, "make a socket pair"));
  child->stdio_.reset(pair[0]);
  unique_fd theirs(pair[1]), their_errors;
  if (errors == Errors::piped) {
    if (pipe2(pipe, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "make a pipe"));
    child->errors_.reset(pipe[0]);
    their_errors.reset(pipe[1]);
    fcntl(pipe[0], F_SETFL, O_NONBLOCK);
  }
  std::vector<char*> arguments, variables;
  for (const auto& each : argv) arguments.push_back(const_cast<char*>(each.c_str()));
  arguments.push_back(nullptr);
  for (const auto& each : env) variables.push_back(const_cast<char*>(each.c_str()));
  for (char** each = environ; *each; ++each) {
    bool replaced = false;
    for (const auto& own : env) {
      const auto name = own.find('=') + 1;
      replaced = replaced || std::strncmp(*each, own.c_str(), name) == 0;
    }
    if (!replaced) variables.push_back(*each);
  }
  variables.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), 1);
  if (their_errors) posix_spawn_file_actions_adddup2(&actions, their_errors.get(), 2);
  else posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  const int error = posix_spawnp(&child->pid_, arguments[0], &actions, &attributes, arguments.data(), variables.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    child->pid_ = -1;
    errno = error;
    return fail(errno_error(error == ENOENT ? Code::not_found : Code::internal, "start " + argv[0]));
  }
  child->pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, child->pid_, 0)));
  return child;
}

Child::~Child() {
  if (pid_ < 0 || ended()) return;
  kill(pid_, SIGKILL);
  int status;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {}
}

std::optional<int> Child::ended() {
  if (status_ || pid_ < 0) return status_;
  int status = 0;
  const auto got = waitpid(pid_, &status, WNOHANG);
  if (got == pid_) status_ = status;
  else if (got < 0 && errno == ECHILD) status_ = 0;  // reaped by someone else's waitpid(-1)
  return status_;
}

std::string describe_status(int status) {
  if (WIFEXITED(status)) return "exit code " + std::to_string(WEXITSTATUS(status));
  if (WIFSIGNALED(status)) return "signal " + std::to_string(WTERMSIG(status));
  return "status " + std::to_string(status);
}

}  // namespace flotilla::daemon
