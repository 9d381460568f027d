#include "proto/base/open_files.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <optional>

namespace flotilla {
namespace {
constexpr rlim_t wanted_open_files = 65536;
std::optional<rlimit> limit_of_children;  // set once, at the start
}  // namespace

void raise_open_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted_open_files) return;
  rlimit raised = limit;
  raised.rlim_cur = std::min(limit.rlim_max, wanted_open_files);
  if (raised.rlim_cur > limit.rlim_cur && setrlimit(RLIMIT_NOFILE, &raised) == 0) limit_of_children = limit;
}

void restore_open_file_limit(pid_t child) {
  if (limit_of_children) prlimit(child, RLIMIT_NOFILE, &*limit_of_children, nullptr);
}

}  // namespace flotilla
