#include "proto/base/run_program.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "proto/base/unique_fd.hpp"

extern char** environ;

namespace flotilla {

Result<ProgramEnd> run_program(const std::vector<std::string>& argv, Listen listen, std::size_t limit) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "cannot make a pipe"));
  unique_fd read_end(ends[0]), write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
  if (listen == Listen::output_and_errors) posix_spawn_file_actions_adddup2(&actions, write_end.get(), 2);
  auto words = argv;
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  pid_t pid = 0;
  const int problem = posix_spawnp(&pid, pointers[0], &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (problem) return fail(Code::not_found, "cannot run '" + argv[0] + "': " + std::strerror(problem));
  write_end.reset();
  fcntl(read_end.get(), F_SETFL, O_NONBLOCK);
  const unique_fd ended(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  ProgramEnd end;
  char part[4096];
  for (bool over = false; !over;) {
    pollfd polled[]{{read_end.get(), POLLIN, 0}, {ended.get(), POLLIN, 0}};
    if (::poll(polled, 2, -1) < 0 && errno != EINTR) break;
    over = polled[1].revents;
    ssize_t count;
    while ((count = ::read(read_end.get(), part, sizeof part)) > 0)
      if (end.said.size() < limit) end.said.append(part, static_cast<std::size_t>(count));
    over = over || count == 0;
  }
  pid_t waited;
  while ((waited = ::waitpid(pid, &end.status, 0)) < 0 && errno == EINTR) {}
  if (waited != pid) end.status = -1;  // the host program ignores SIGCHLD
  return end;
}

}  // namespace flotilla
