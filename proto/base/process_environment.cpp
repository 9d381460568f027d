#include "proto/base/process_environment.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "proto/base/unique_fd.hpp"

namespace flotilla {
namespace {

bool read_proc(pid_t pid, const char* file, std::string& into) {
  constexpr std::size_t limit = 4u << 20;
  const unique_fd fd(open(("/proc/" + std::to_string(pid) + "/" + file).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return false;
  into.clear();
  char buffer[8192];
  for (ssize_t n; into.size() < limit && (n = read(fd.get(), buffer, sizeof buffer)) > 0;) into.append(buffer, static_cast<std::size_t>(n));
  return true;
}

}  // namespace

std::string environment_of(pid_t pid) {
  std::string text;
  if (!read_proc(pid, "environ", text) || text.empty()) return {};
  text.insert(text.begin(), '\0');
  text.push_back('\0');
  return text;
}

bool has_entries(const std::string& environment, const std::vector<std::string>& entries) {
  return !environment.empty() && std::all_of(entries.begin(), entries.end(), [&](const std::string& entry) {
    std::string needle(1, '\0');
    needle += entry;
    needle.push_back('\0');
    return environment.find(needle) != std::string::npos;
  });
}

bool is_in_exec(pid_t pid) {
  std::string text;
  // Who may not see the environment sees no address either.
  if (!read_proc(pid, "environ", text) || !text.empty() || !read_proc(pid, "stat", text)) return false;
  // Fields behind the name: the state is the third, the address of the environment's end, set last, the fifty-first.
  std::size_t at = text.rfind(')');
  if (at == std::string::npos || at + 2 >= text.size() || text[at + 2] == 'Z') return false;
  for (int field = 2; field < 51 && at != std::string::npos; ++field) at = text.find(' ', at + 1);
  return at != std::string::npos && text.compare(at, 3, " 0 ") == 0;
}

}  // namespace flotilla
