#include "pilot/process/process_tree.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace flotilla::pilot {
namespace {

bool read_small(const char* path, std::string& into, std::size_t limit = 1 << 20) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  into.clear();
  char buffer[8192];
  ssize_t n;
  while (into.size() < limit && (n = read(fd, buffer, sizeof buffer)) > 0) into.append(buffer, static_cast<std::size_t>(n));
  close(fd);
  return true;
}

// The command's name may hold anything, also ')' and spaces: the fields begin after the last ')'.
bool parse_stat(const std::string& text, ProcessEntry& entry) {
  const auto close = text.rfind(')');
  if (close == std::string::npos || close + 2 >= text.size()) return false;
  char state = '?';
  int parent = 0, group = 0;
  unsigned long long started = 0;
  if (std::sscanf(text.c_str() + close + 2, "%c %d %d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state,
                  &parent, &group, &started) != 4)
    return false;
  static const long ticks = sysconf(_SC_CLK_TCK);
  entry.state = state;
  entry.parent = parent;
  entry.group = group;
  entry.started = Moment(static_cast<std::int64_t>(started) * (1'000'000'000 / ticks));
  return true;
}

void add_pids(std::string_view text, std::vector<pid_t>& into) {
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    pid_t pid = 0;
    const auto [rest, error] = std::from_chars(at, end, pid);
    if (error == std::errc() && pid > 0) into.push_back(pid);
    at = rest > at ? rest + 1 : at + 1;
  }
}

}  // namespace

std::vector<ProcessEntry> list_processes() {
  std::vector<ProcessEntry> all;
  DIR* proc = opendir("/proc");
  if (!proc) return all;
  std::string text;
  while (const dirent* item = readdir(proc)) {
    if (item->d_name[0] < '1' || item->d_name[0] > '9') continue;
    ProcessEntry entry;
    entry.pid = std::atoi(item->d_name);
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/stat", entry.pid);
    if (read_small(path, text) && parse_stat(text, entry)) all.push_back(entry);
  }
  closedir(proc);
  return all;
}

std::vector<pid_t> tree_below(const std::vector<ProcessEntry>& all, const std::vector<pid_t>& roots) {
  std::unordered_multimap<pid_t, pid_t> children;
  for (const auto& entry : all) children.emplace(entry.parent, entry.pid);
  std::vector<pid_t> tree;
  std::unordered_set<pid_t> seen;
  for (pid_t root : roots)
    if (seen.insert(root).second) tree.push_back(root);
  for (std::size_t i = 0; i < tree.size(); ++i) {
    const auto [begin, end] = children.equal_range(tree[i]);
    for (auto it = begin; it != end; ++it)
      if (seen.insert(it->second).second) tree.push_back(it->second);
  }
  return tree;
}

bool has_environment(pid_t pid, const std::vector<std::string>& entries) { return has_entries(environment_of(pid), entries); }

Children::Children() {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
  fd_ = open(path, O_RDONLY | O_CLOEXEC);
}
Children::~Children() {
  if (fd_ >= 0) close(fd_);
}

const std::vector<pid_t>& Children::list() {
  pids_.clear();
  if (fd_ >= 0) {
    std::string text;
    char buffer[4096];
    ssize_t n;
    off_t at = 0;
    while ((n = pread(fd_, buffer, sizeof buffer, at)) > 0) {
      text.append(buffer, static_cast<std::size_t>(n));
      at += n;
    }
    add_pids(text, pids_);
  } else {
    const pid_t self = getpid();
    for (const auto& entry : list_processes())
      if (entry.parent == self) pids_.push_back(entry.pid);
  }
  return pids_;
}

void end_all_descendants(const std::vector<std::string>& marks, pid_t spare, const std::function<void(pid_t)>& on_stuck) {
  const pid_t self = getpid();
  // What cannot be killed at once (it sits in the kernel, may be for hours) is tried again, ever more seldom.
  for (DeathWait wait;;) {
    const auto all = list_processes();
    auto doomed = tree_below(all, {self});
    if (!marks.empty())
      for (const auto& entry : all)
        if (has_environment(entry.pid, marks)) doomed.push_back(entry.pid);
    pid_t left = 0;
    for (pid_t pid : doomed) {
      if (pid == self || pid == spare || pid == 1) continue;
      if (kill(pid, SIGKILL) == 0) left = pid;
    }
    bool childless = false;
    for (;;) {
      const pid_t reaped = waitpid(-1, nullptr, WNOHANG | __WALL);
      if (reaped > 0) {
        wait = {};
        continue;
      }
      if (reaped < 0 && errno == EINTR) continue;
      childless = reaped < 0;
      break;
    }
    if (childless && !left) return;
    const auto time = wait.next();
    if (wait.first_long() && on_stuck) on_stuck(left);
    const timespec pause{time.count() / 1000, time.count() % 1000 * 1'000'000};
    ppoll(nullptr, 0, &pause, nullptr);
  }
}

}  // namespace flotilla::pilot
