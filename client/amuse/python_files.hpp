// The files that dynamic Python code is sent with.
#pragma once

#include <string>
#include <vector>

namespace flotilla::amuse {

// The paths of `script` and of all *.py in `folder`, not below it. Throws a FlotillaError when the script is not there.
std::vector<std::string> python_files(const std::string& folder, const std::string& script);

}  // namespace flotilla::amuse
