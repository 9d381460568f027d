#include "client/lib/start.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "proto/channel/hand_over.hpp"

extern char** environ;

namespace flotilla::detail {
namespace {

constexpr std::size_t words_limit = 16u << 10;  // of what `flotilla daemon start` says

// Runs `program daemon start` and waits for it; the daemon itself is in a session of its own by then.
Status start_daemon(const std::string& program) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "cannot make a pipe"));
  unique_fd read_end(ends[0]), write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), 2);
  std::string words[] = {program, "daemon", "start"};
  char* argv[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
  pid_t pid = 0;
  const int failed = posix_spawnp(&pid, program.c_str(), &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed)
    return fail(Code::unavailable, "no daemon runs, and it cannot be started: cannot run '" + program + "': " + std::strerror(failed),
                "put the program flotilla into PATH, or its path into FLOTILLA_PROGRAM");
  write_end.reset();
  // Until it has ended, not until the pipe has: a descendant may hold that open.
  fcntl(read_end.get(), F_SETFL, O_NONBLOCK);
  const unique_fd ended(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  std::string said;
  char part[1024];
  for (bool over = false; !over;) {
    pollfd polled[]{{read_end.get(), POLLIN, 0}, {ended.get(), POLLIN, 0}};
    if (::poll(polled, 2, -1) < 0 && errno != EINTR) break;
    over = polled[1].revents;
    long count;
    while ((count = ::read(read_end.get(), part, sizeof part)) > 0)
      if (said.size() < words_limit) said.append(part, static_cast<std::size_t>(count));
    over = over || count == 0;
  }
  int status = 0;
  pid_t waited;
  while ((waited = ::waitpid(pid, &status, 0)) < 0 && errno == EINTR) {}
  // ECHILD: the host program ignores SIGCHLD; whether it worked shows when the socket is tried again.
  if (waited == pid && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
    while (!said.empty() && said.back() == '\n') said.pop_back();
    return fail(Code::unavailable, "the daemon cannot be started: " + (said.empty() ? "'" + program + " daemon start' failed" : said),
                "run '" + program + " daemon start' to see why");
  }
  return {};
}

Result<unique_fd> try_connect(const std::filesystem::path& socket) {
  auto fd = channel::connect_unix(socket);
  if (!fd) return fd;
  if (auto status = channel::check_peer_uid(fd->get()); !status) return fail(status.error());
  return fd;
}

}  // namespace

Result<unique_fd> reach_daemon(const std::filesystem::path& socket, bool start, const std::string& program) {
  auto fd = try_connect(socket);
  if (fd || fd.error().code != Code::unavailable) return fd;
  if (!start)
    return fail(Code::unavailable, "no daemon runs (nobody listens at " + socket.native() + ")", "run 'flotilla daemon start'", Retry::yes);
  const char* from_environment = std::getenv("FLOTILLA_PROGRAM");
  if (auto status = start_daemon(!program.empty()                        ? program
                                 : from_environment && *from_environment ? from_environment
                                                                         : "flotilla");
      !status)
    return fail(status.error());
  return try_connect(socket);
}

}  // namespace flotilla::detail
