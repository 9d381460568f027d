#include "pilot/process/spawn.hpp"

#include "proto/base/open_files.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>

namespace flotilla::pilot {
namespace {

constexpr const char* default_path = "/usr/local/bin:/usr/bin:/bin";

struct FileActions {
  posix_spawn_file_actions_t value;
  FileActions() { posix_spawn_file_actions_init(&value); }
  ~FileActions() { posix_spawn_file_actions_destroy(&value); }
  FileActions(const FileActions&) = delete;
  FileActions& operator=(const FileActions&) = delete;
};

// The same for every process, so made once.
struct Attributes {
  posix_spawnattr_t group, session;
  Attributes() {
    sigset_t all, none;
    sigfillset(&all);
    sigemptyset(&none);
    for (auto* attributes : {&group, &session}) {
      posix_spawnattr_init(attributes);
      posix_spawnattr_setsigdefault(attributes, &all);
      posix_spawnattr_setsigmask(attributes, &none);
    }
    posix_spawnattr_setpgroup(&group, 0);
    posix_spawnattr_setflags(&group, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setflags(&session, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
  }
};

enum class Runnable { yes, absent, folder, not_executable };
Runnable look_at(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return errno == EACCES ? Runnable::not_executable : Runnable::absent;
  if (S_ISDIR(info.st_mode)) return Runnable::folder;
  if ((info.st_mode & 0111) == 0 || access(path.c_str(), X_OK) != 0) return Runnable::not_executable;
  return Runnable::yes;
}

std::string absolute_in(const std::string& folder, const std::string& path) {
  return !path.empty() && path[0] == '/' ? path : folder + "/" + path;
}

std::string interpreter_of(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  char start[256] = {};
  const ssize_t n = read(fd, start, sizeof start - 1);
  close(fd);
  if (n < 3 || start[0] != '#' || start[1] != '!') return {};
  std::string line(start + 2, strcspn(start + 2, "\n"));
  const auto begin = line.find_first_not_of(" \t");
  if (begin == std::string::npos) return {};
  return line.substr(begin, line.find_first_of(" \t\r", begin) - begin);
}

}  // namespace

Result<std::string> find_executable(const std::string& name, const Environment& environment, const std::string& folder,
                                    const std::string& host) {
  const std::string start = "cannot run '" + name + "': ";
  if (name.empty()) return fail(Code::invalid_argument, "cannot run a command without a name");
  if (name.find('/') != std::string::npos) {
    const std::string path = absolute_in(folder, name);
    switch (look_at(path)) {
      case Runnable::yes: return path;
      case Runnable::folder: return fail(Code::not_found, start + path + " is a folder on " + host);
      case Runnable::not_executable:
        return fail(Code::permission_denied, start + path + " is not executable on " + host, "chmod +x it there");
      case Runnable::absent: return fail(Code::not_found, start + "there is no " + path + " on " + host);
    }
  }
  const std::string_view path_list = environment.get("PATH").value_or(default_path);
  std::string unusable;
  for (std::size_t at = 0; at <= path_list.size();) {
    const std::size_t colon = std::min(path_list.find(':', at), path_list.size());
    std::string part(path_list.substr(at, colon - at));
    const std::string path = absolute_in(folder, part.empty() ? name : part + "/" + name);
    const Runnable found = look_at(path);
    if (found == Runnable::yes) return path;
    if (found == Runnable::not_executable && unusable.empty()) unusable = path;
    at = colon + 1;
  }
  if (!unusable.empty()) return fail(Code::permission_denied, start + unusable + " is not executable on " + host);
  return fail(Code::not_found, start + "not found in PATH on " + host,
              "give its full path, or set PATH in the job's or the resource's env");
}

Result<pid_t> spawn(const SpawnRequest& request, const std::string& host) {
  static const Attributes attributes;
  if (request.argv.empty()) return fail(Code::invalid_argument, "cannot run a command without a name");
  auto path = find_executable(request.argv[0], *request.environment, request.folder, host);
  if (!path) return fail(path.error());

  FileActions actions;
  if (!request.terminal.empty()) {
    // The first terminal that a session's leader opens becomes its controlling terminal.
    posix_spawn_file_actions_addopen(&actions.value, 0, request.terminal.c_str(), O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&actions.value, 0, 1);
    posix_spawn_file_actions_adddup2(&actions.value, 0, 2);
  } else {
    posix_spawn_file_actions_adddup2(&actions.value, request.stdin_fd, 0);
    posix_spawn_file_actions_adddup2(&actions.value, request.stdout_fd, 1);
    posix_spawn_file_actions_adddup2(&actions.value, request.stderr_fd, 2);
  }
  // Libraries open files without O_CLOEXEC on other threads.
  posix_spawn_file_actions_addclosefrom_np(&actions.value, 3);
  posix_spawn_file_actions_addchdir_np(&actions.value, request.folder.c_str());

  std::vector<char*> arguments;
  for (const auto& argument : request.argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  auto variables = request.environment->pointers();
  const auto* attribute = request.grouping == Grouping::own_session ? &attributes.session : &attributes.group;
  pid_t pid = -1;
  int error = posix_spawn(&pid, path->c_str(), &actions.value, attribute, arguments.data(), variables.data());
  if (error == ENOEXEC) {  // a script without a first line that says what runs it: the shell does, as from a shell
    static char shell[] = "/bin/sh";
    arguments[0] = const_cast<char*>(path->c_str());
    arguments.insert(arguments.begin(), shell);
    error = posix_spawn(&pid, shell, &actions.value, attribute, arguments.data(), variables.data());
  }
  if (error == 0) {
    restore_open_file_limit(pid);
    return pid;
  }

  const std::string start = "cannot run '" + request.argv[0] + "' on " + host + ": ";
  struct stat info {};
  if (stat(request.folder.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || access(request.folder.c_str(), X_OK) != 0)
    return fail(Code::not_found, start + "cannot enter its folder " + request.folder);
  if (error == ENOENT) {
    const std::string interpreter = interpreter_of(*path);
    if (!interpreter.empty())
      return fail(Code::not_found, start + "its interpreter " + interpreter + " (first line of " + *path + ") is not there");
    return fail(Code::not_found, start + "its dynamic loader is not there (" + *path + " is for another system)");
  }
  return fail(error == EAGAIN || error == ENOMEM ? Code::resource_exhausted : Code::failed_precondition, start + std::strerror(error));
}

}  // namespace flotilla::pilot
