#include "client/amuse/bundle.hpp"

#include <sys/utsname.h>

#include <filesystem>
#include <fstream>

#include "client/amuse/core/bundle_list.hpp"
#include "proto/base/run_program.hpp"

namespace flotilla::amuse {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail_with(ErrorCode code, std::string message, std::string hint) {
  FlotillaError::Details details;
  details.code = code;
  details.message = std::move(message);
  details.hint = std::move(hint);
  throw FlotillaError(details);
}

std::string ldd(std::vector<std::string> files) {
  files.insert(files.begin(), "ldd");
  auto end = run_program(files, Listen::output);
  if (!end) fail_with(ErrorCode::failed_precondition, "a bundle cannot be made: " + end.error().message, "ldd comes with the C library");
  return end->said;
}

// As the shell script that starts workers looks for it.
fs::path find_code(const fs::path& root, const fs::path& code) {
  std::error_code problem;
  for (const auto& path : {root / code, root / ".." / code, root / "../.." / code})  // `code` alone where it is absolute
    if (fs::is_regular_file(path, problem)) return fs::canonical(path, problem);
  fail_with(ErrorCode::not_found, "there is no " + code.string() + " below " + root.string() + " on this machine",
            "a bundle is made of what is installed here: install this code of AMUSE, or set amuse_dir to where it is over there");
}

bool is_script(const fs::path& file) {
  char begin[2] = {};
  std::ifstream(file).read(begin, 2);
  return begin[0] == '#' && begin[1] == '!';
}

// Open MPI loads the rest of itself when it starts; other MPIs are one library.
std::vector<fs::path> plugins_of_mpi(const Needs& program) {
  auto said = run_program({"ompi_info", "--parsable", "--path", "pkglibdir"}, Listen::output);
  const std::string mark = "path:pkglibdir:";
  const auto at = said ? said->said.find(mark) : std::string::npos;
  if (at == std::string::npos) return {};
  const fs::path folder = said->said.substr(at + mark.size(), said->said.find('\n', at) - at - mark.size());
  std::vector<std::string> files;
  std::error_code problem;
  for (const auto& entry : fs::directory_iterator(folder, problem))
    if (entry.path().extension() == ".so") files.push_back(fs::canonical(entry.path(), problem).string());
  if (files.empty()) return {};
  std::vector<fs::path> found;
  for (const auto& [file, needs] : parse_ldd_of_many(ldd(files)))
    if (runs_within(needs, program)) found.emplace_back(file);
  return found;
}

Bundle make(const fs::path& root, const fs::path& asked) {
  const auto code = find_code(root, asked);
  if (is_script(code))
    fail_with(ErrorCode::unsupported, "a bundle holds no Python: " + code.string() + " is a script",
              "install AMUSE where it is to run, and leave amuse_bundle away for that resource");
  const auto needs = parse_ldd(ldd({code.string()}));
  if (!needs.missing.empty())
    fail_with(ErrorCode::failed_precondition, code.string() + " wants " + needs.missing.front() + ", which is not found on this machine",
              "it does not start here either: build it again");
  Bundle bundle;
  const auto inside = fs::relative(code, root).string();
  const std::string place = inside.starts_with("..") ? "code/" + code.filename().string() : inside;
  bundle.env["FLOTILLA_AMUSE_BUNDLE_CODE"] = place;
  const auto add = [&](const fs::path& from, const std::string& name) {
    bundle.files.push_back({.path = from.string(), .name = "bundle/" + name, .content = {}, .mode = 0700});
  };
  add(code, "amuse/" + place);
  const auto data = code.parent_path() / "data";
  std::error_code problem;
  for (fs::recursive_directory_iterator it(data, problem), end; !problem && it != end; it.increment(problem))
    if (it->is_regular_file(problem) && it->path().extension() != ".pyc")
      add(it->path(), "amuse/" + (fs::path(place).parent_path() / "data" / fs::relative(it->path(), data)).string());
  for (const auto& [name, path] : needs.libraries) add(path, "lib/" + name);
  if (!needs.loader.empty()) {
    const auto name = fs::path(needs.loader).filename().string();
    add(needs.loader, "lib/" + name);
    bundle.env["FLOTILLA_AMUSE_BUNDLE_LOADER"] = name;
    // Plugins may ask for these by name although they are parts of the first today.
    const auto libc = needs.libraries.find("libc.so.6");
    if (libc != needs.libraries.end())
      for (const char* part : {"libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"}) {
        const auto path = fs::path(libc->second).parent_path() / part;
        if (!needs.libraries.contains(part) && fs::exists(path, problem)) add(path, std::string("lib/") + part);
      }
  }
  for (const auto& [name, path] : needs.libraries)
    if (name.starts_with("libmpi.")) {
      bundle.env["FLOTILLA_AMUSE_BUNDLE_MPI"] = name;
      for (const auto& plugin : plugins_of_mpi(needs)) add(plugin, "mpi/" + plugin.filename().string());
    }
  utsname machine{};
  uname(&machine);
  bundle.env["FLOTILLA_AMUSE_BUNDLE_MACHINE"] = machine.machine;
  return bundle;
}

}  // namespace

Bundle Bundles::of(const std::string& root, const std::string& code) {
  const std::lock_guard lock(mutex_);
  const auto it = made_.find(code);
  if (it != made_.end()) return it->second;
  return made_[code] = make(root, code);
}

void add_bundle(WorkerSpec& spec, Bundles& bundles, const std::string& root, const std::string& code) {
  try {
    const auto bundle = bundles.of(root, code);
    spec.files.insert(spec.files.end(), bundle.files.begin(), bundle.files.end());
    spec.env.insert(bundle.env.begin(), bundle.env.end());
  } catch (const FlotillaError& error) {
    spec.env["FLOTILLA_AMUSE_BUNDLE_TROUBLE"] = error.message() + "; " + error.hint();
  }
}

}  // namespace flotilla::amuse
