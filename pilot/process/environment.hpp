// The environment of what a pilot starts: what it inherited, cleaned, and what is laid over it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flotilla::pilot {

// Set by a batch system or an MPI launcher for the process that we are, wrong for those that we start: an mpiexec that
// sees them believes that it runs inside another. Where sites say how their tools are reached, that stays.
bool is_launcher_variable(std::string_view name);

class Environment {
 public:
  Environment() : base_(std::make_shared<std::vector<std::string>>()) {}
  // "NAME=value" entries; those without '=' are dropped.
  explicit Environment(std::vector<std::string> entries);
  static Environment of_this_process();

  Environment cleaned() const;  // without launcher variables and ours (FLOTILLA_*)
  // A copy shares the base: cheap enough to make one for each job.
  void set(std::string_view name, std::string_view value);
  std::optional<std::string_view> get(std::string_view name) const;  // valid until the next set()
  std::vector<char*> pointers() const;                               // for exec, with the closing null; valid while this lives unchanged
  std::vector<std::string> entries() const;

 private:
  std::shared_ptr<const std::vector<std::string>> base_;
  std::vector<std::string> own_;
};

}  // namespace flotilla::pilot
