#include "pilot/setup.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <utility>

#include "proto/base/clock.hpp"
#include "proto/base/log.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {
namespace {

constexpr std::size_t messages_limit = 16u << 10;  // of what the lines print
constexpr std::size_t environment_limit = 4u << 20;
constexpr auto shown_interval = std::chrono::milliseconds(250);  // between two lines that are shown to the user
constexpr std::size_t line_limit = 200;

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (char c : text) {
    if (c == '\'') quoted += "'\\''";
    else quoted += c;
  }
  return quoted + "'";
}

}  // namespace

std::string build_setup_script(const std::vector<std::string>& lines, const std::string& agent) {
  std::string script;
  for (std::size_t i = 0; i < lines.size(); ++i)
    script += "eval " + shell_quoted(lines[i]) + " 3>&- || { flotilla_code=$?; echo " +
              shell_quoted("setup line " + std::to_string(i + 1) + " failed: " + lines[i]) +
              " \"(code $flotilla_code)\" >&2; exit $flotilla_code; }\n";
  // Not `env -0`: that is not everywhere, and here it would be found by a PATH that the lines have set.
  return script + "exec " + shell_quoted(agent) + " pilot --print-environment\n";
}

Result<Environment> run_setup(const std::vector<std::string>& lines, const Environment& environment, const std::string& folder,
                              const std::string& host, std::chrono::milliseconds limit, const std::function<void(std::string)>& on_line) {
  int out[2], messages[2];
  if (pipe2(out, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "make a pipe for the setup lines"));
  unique_fd out_read(out[0]), out_write(out[1]);
  if (pipe2(messages, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "make a pipe for the setup lines"));
  unique_fd messages_read(messages[0]), messages_write(messages[1]);
  unique_fd null(open("/dev/null", O_RDONLY | O_CLOEXEC));

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  const int high = fcntl(out_write.get(), F_DUPFD_CLOEXEC, 10);
  posix_spawn_file_actions_adddup2(&actions, null.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, messages_write.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, messages_write.get(), 2);
  posix_spawn_file_actions_adddup2(&actions, high, 3);
  posix_spawn_file_actions_addclosefrom_np(&actions, 4);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);

  std::string shell = "/bin/sh", option = "-c";
  std::string script = build_setup_script(lines, "/proc/" + std::to_string(getpid()) + "/exe");
  char* arguments[] = {shell.data(), option.data(), script.data(), nullptr};
  auto variables = environment.pointers();
  pid_t pid = -1;
  const int error = posix_spawn(&pid, shell.c_str(), &actions, &attributes, arguments, variables.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(high);
  out_write.reset();
  messages_write.reset();
  if (error != 0) return fail(Code::failed_precondition, "cannot run the setup lines on " + host + ": /bin/sh: " + std::strerror(error));

  std::string captured, said;
  const auto deadline = BootClock::now() + limit;
  bool late = false;
  std::string line, shown;  // the one that is being written; the last that was
  auto next_shown = BootClock::now();
  // The environment's pipe tells the end; the other may be kept open by something that the lines started.
  while (out_read) {
    pollfd watched[2] = {{out_read.get(), POLLIN, 0}, {messages_read ? messages_read.get() : -1, POLLIN, 0}};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - BootClock::now()).count();
    const auto until_shown = std::chrono::ceil<std::chrono::milliseconds>(next_shown - BootClock::now()).count();
    if (!shown.empty() && until_shown <= 0) {
      next_shown = BootClock::now() + shown_interval;
      if (on_line) on_line(std::exchange(shown, {}));
    }
    const auto wait = shown.empty() ? left : std::min<decltype(left)>(left, std::max<decltype(left)>(until_shown, 1));
    const int ready = left > 0 ? poll(watched, 2, static_cast<int>(wait)) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0 && left > wait) continue;
    if (ready <= 0) {
      late = true;
      break;
    }
    char buffer[16384];
    if (watched[0].revents) {
      const ssize_t n = read(out_read.get(), buffer, sizeof buffer);
      if (n > 0 && captured.size() < environment_limit) captured.append(buffer, static_cast<std::size_t>(n));
      else if (n == 0 || (n < 0 && errno != EINTR)) out_read.reset();
    }
    if (watched[1].revents) {
      const ssize_t n = read(messages_read.get(), buffer, sizeof buffer);
      if (n > 0) {
        said.append(buffer, static_cast<std::size_t>(n));
        for (ssize_t i = 0; i < n; ++i) {
          if (buffer[i] != '\n' && buffer[i] != '\r') {
            if (line.size() < line_limit) line += buffer[i];
          } else if (!line.empty()) {
            shown = std::exchange(line, {});
          }
        }
      } else if (n == 0 || errno != EINTR) messages_read.reset();
      if (said.size() > 2 * messages_limit) said.erase(0, said.size() - messages_limit);
    }
  }
  if (late) kill(-pid, SIGKILL);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
  if (messages_read) {
    fcntl(messages_read.get(), F_SETFL, O_NONBLOCK);
    char buffer[16384];
    for (ssize_t n; said.size() < 2 * messages_limit && (n = read(messages_read.get(), buffer, sizeof buffer)) > 0;)
      said.append(buffer, static_cast<std::size_t>(n));
  }
  if (!said.empty()) spdlog::info("setup lines said:\n{}", said);
  if (late)
    return fail(Code::timeout, "the setup lines on " + host + " did not end within " + std::to_string((limit.count() + 999) / 1000) +
                                   " s (setup_timeout of the resource)" + (said.empty() ? "" : "\n" + said));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return fail(Code::failed_precondition, "the setup lines failed on " + host +
                                               (WIFEXITED(status) ? " (exit code " + std::to_string(WEXITSTATUS(status)) + ")"
                                                                  : " (signal " + std::to_string(WTERMSIG(status)) + ")") +
                                               (said.empty() ? "" : "\n" + said));

  std::vector<std::string> entries;
  for (std::size_t at = 0; at < captured.size();) {
    const std::size_t end = std::min(captured.find('\0', at), captured.size());
    entries.push_back(captured.substr(at, end - at));
    at = end + 1;
  }
  if (entries.empty())
    return fail(Code::failed_precondition,
                "the setup lines on " + host + " ended the shell before their end" + (said.empty() ? "" : "\n" + said));
  std::erase_if(entries, [](const std::string& entry) {
    return entry.starts_with("flotilla_code=") || entry.starts_with("_=") || entry.starts_with("SHLVL=") || entry.starts_with("OLDPWD=");
  });
  return Environment(std::move(entries));
}

}  // namespace flotilla::pilot
