// Flotilla where an installed AMUSE looks for the program of its distributed code, and away again.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla::amuse {

// What a Python finds of AMUSE.
struct AmusePlace {
  std::string python;                 // that was asked
  std::filesystem::path root;         // the folder of the package `amuse`
  std::filesystem::path distributed;  // of amuse.community.distributed; empty: it is not there
  bool classes = false;               // that Python has flotilla.amuse
};

// `python`: a program, or empty for python3 in PATH.
Result<AmusePlace> find_amuse(const std::string& python);

struct Touched {
  std::vector<std::string> lines;  // "replaced PATH (the old one is PATH.before-flotilla)"
};

// `program`: the flotilla that the installed worker becomes. An AMUSE without amuse.community.distributed gets a package of that name,
// which is flotilla.amuse. Done twice it does nothing more.
Result<Touched> install(const AmusePlace& place, const std::filesystem::path& program);
// What AMUSE starts as its distributed_worker.
struct Installed {
  enum class What { nothing, ours, other_flotilla, another };
  What what = What::nothing;
  std::filesystem::path file;
};
Installed installed(const AmusePlace& place, const std::filesystem::path& program);
// What install() did is undone; nothing where it was not installed.
Result<Touched> uninstall(const AmusePlace& place);

}  // namespace flotilla::amuse
