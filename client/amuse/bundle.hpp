// A code of this machine with all that it needs, as files that a worker on another machine is started from. They are sent once, and kept there
// by content.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "flotilla/client.hpp"

namespace flotilla::amuse {

struct Bundle {
  std::vector<InputFile> files;            // all below "bundle/"
  std::map<std::string, std::string> env;  // FLOTILLA_AMUSE_BUNDLE_*: the code's place in it, its loader, machine, MPI
};

class Bundles {
 public:
  // Made once for each code. `code`: as a script asks for it, relative to `root` (AMUSE's root directory here) or absolute. A FlotillaError
  // for what cannot be bundled: a script, a program with a library that is missing. Any thread.
  Bundle of(const std::string& root, const std::string& code);

 private:
  std::mutex mutex_;
  std::map<std::string, Bundle> made_;
};

}  // namespace flotilla::amuse
