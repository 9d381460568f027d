#include "client/amuse/python_files.hpp"

#include <filesystem>
#include <system_error>

#include "flotilla/client.hpp"

namespace flotilla::amuse {
namespace fs = std::filesystem;

std::vector<std::string> python_files(const std::string& folder, const std::string& script) {
  std::vector<std::string> files;
  bool found = false;
  std::error_code problem;
  for (const auto& entry : fs::directory_iterator(folder, problem)) {
    const auto name = entry.path().filename().string();
    if (name != script && !name.ends_with(".py")) continue;
    if (!entry.is_regular_file(problem)) continue;
    found = found || name == script;
    files.push_back(entry.path().string());
  }
  if (found) return files;
  FlotillaError::Details details;
  details.code = ErrorCode::not_found;
  details.message = "the worker's script " + script + " is not in " + folder;
  throw NotFoundError(details);
}

}  // namespace flotilla::amuse
