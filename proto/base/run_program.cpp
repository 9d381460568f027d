#include "proto/base/run_program.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "proto/base/unique_fd.hpp"

extern char** environ;

namespace flotilla {

Result<ProgramEnd> run_program(const std::vector<std::string>& argv, Listen listen, std::chrono::milliseconds time_limit,
                               std::size_t size_limit) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "cannot make a pipe"));
  unique_fd read_end(ends[0]), write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
  if (listen == Listen::output_and_errors) posix_spawn_file_actions_adddup2(&actions, write_end.get(), 2);
  // Signals that this program takes in a thread of its own are not blocked there.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  auto words = argv;
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  pid_t pid = 0;
  const int problem = posix_spawnp(&pid, pointers[0], &actions, &attributes, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (problem) return fail(Code::not_found, "cannot run '" + argv[0] + "': " + std::strerror(problem));
  write_end.reset();
  fcntl(read_end.get(), F_SETFL, O_NONBLOCK);
  const unique_fd ended(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  ProgramEnd end;
  char part[4096];
  const auto last = std::chrono::steady_clock::now() + time_limit;
  for (bool over = false; !over;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(last - std::chrono::steady_clock::now()).count();
    pollfd polled[]{{read_end.get(), POLLIN, 0}, {ended.get(), POLLIN, 0}};
    const int ready = ::poll(polled, 2, time_limit < std::chrono::milliseconds(0) ? -1 : static_cast<int>(std::max<std::int64_t>(0, left)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      ::kill(pid, SIGKILL);
      break;
    }
    over = polled[1].revents;
    ssize_t count;
    while ((count = ::read(read_end.get(), part, sizeof part)) > 0)
      if (end.said.size() < size_limit) end.said.append(part, static_cast<std::size_t>(count));
    over = over || count == 0;
  }
  int status = 0;
  pid_t waited;
  while ((waited = ::waitpid(pid, &status, 0)) < 0 && errno == EINTR) {}
  end.code = waited != pid       ? -1  // the host program ignores SIGCHLD
             : WIFEXITED(status) ? WEXITSTATUS(status)
                                 : 128 + WTERMSIG(status);
  return end;
}

}  // namespace flotilla
