#include "hub/spawn.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cstring>

#include "proto/base/open_files.hpp"

extern char** environ;

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

namespace flotilla::hub {

Result<Pipe> make_pipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "make a pipe"));
  return Pipe{unique_fd(fds[0]), unique_fd(fds[1])};
}

Result<unique_fd> open_pidfd(int pid) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return fail(errno_error(Code::not_found, "watch process " + std::to_string(pid)));
  return unique_fd(fd);
}

Result<Child> spawn(const Spawn& what) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  const int wanted[3] = {what.in, what.out, what.err};
  for (int i = 0; i < 3; ++i) {
    // dup2 onto itself would leave close-on-exec set: our own 0-2 never come here as pipes (they are /dev/null).
    if (wanted[i] >= 0) posix_spawn_file_actions_adddup2(&actions, wanted[i], i);
    else posix_spawn_file_actions_addopen(&actions, i, "/dev/null", i == 0 ? O_RDONLY : O_WRONLY, 0);
  }
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);

  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setpgroup(&attributes, 0);
  short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
  flags |= what.session == Session::new_session ? POSIX_SPAWN_SETSID : POSIX_SPAWN_SETPGROUP;
  posix_spawnattr_setflags(&attributes, flags);

  std::vector<char*> argv;
  for (const auto& word : what.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  std::vector<std::string> added;
  for (const auto& [name, value] : what.env) added.push_back(name + "=" + value);
  std::vector<char*> env;
  for (char** entry = environ; *entry; ++entry) {
    const char* end = std::strchr(*entry, '=');
    if (end && what.env.contains(std::string(*entry, static_cast<std::size_t>(end - *entry)))) continue;
    env.push_back(*entry);
  }
  for (auto& entry : added) env.push_back(entry.data());
  env.push_back(nullptr);

  pid_t pid = 0;
  const int error = posix_spawnp(&pid, what.program.c_str(), &actions, &attributes, argv.data(), env.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error) {
    errno = error;
    return fail(errno_error(Code::failed_precondition, "run " + what.program));
  }
  restore_open_file_limit(pid);
  Child child;
  child.pid = pid;
  auto watched = open_pidfd(pid);  // a child that is not reaped: the number is its own
  if (!watched) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return fail(watched.error());
  }
  child.pidfd = std::move(*watched);
  return child;
}

ExitStatus reap(const Child& child) {
  siginfo_t info{};
  while (waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(child.pidfd.get()), &info, WEXITED) != 0)
    if (errno != EINTR) return {-1, 0};
  if (info.si_code == CLD_EXITED) return {info.si_status, 0};
  return {-1, info.si_status};
}

}  // namespace flotilla::hub
