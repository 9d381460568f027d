#include "client/amuse/install.hpp"

#include <algorithm>
#include <string_view>

#include "proto/base/paths.hpp"
#include "proto/base/run_program.hpp"

namespace flotilla::amuse {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view mark = "# Made by `flotilla amuse install`; `flotilla amuse uninstall` puts back what was here.";
constexpr const char* kept_suffix = ".before-flotilla";
constexpr const char* worker_name = "distributed_worker";
constexpr auto question_limit = std::chrono::seconds(60);

// In the place of amuse.community.distributed where AMUSE has none.
struct PackageFile {
  const char *name, *text;
};
constexpr PackageFile package_files[] = {
    {"__init__.py", ""},
    {"interface.py", "from flotilla.amuse import *  # noqa: F403\n"},
};

// Not imported: that takes a second, and prints.
constexpr const char* question = R"py(
import importlib.util, os, sys
def place(name, *below):
    try: spec = importlib.util.find_spec(name)
    except ImportError: spec = None
    for folder in list(spec.submodule_search_locations or []) if spec else []:
        if os.path.exists(os.path.join(folder, *below)): return os.path.join(folder, *below)
    return ""
print(place("amuse"))
print(os.path.dirname(place("amuse", "community", "distributed", "interface.py")))
print(sys.executable)
print(place("flotilla", "amuse"))
)py";

// Its output; fails unless it exits with 0.
Result<std::string> ask(const std::string& program, const char* code) {
  auto ran = run_program({program, "-c", code}, Listen::output, question_limit);
  if (!ran) {
    ran.error().hint = "name the Python that has AMUSE with --python";
    return fail(ran.error());
  }
  if (ran->code != 0) return fail(Code::failed_precondition, program + " could not be asked where AMUSE is", "what it said is above");
  return ran->said;
}

bool is_ours(const fs::path& file) {
  const auto text = read_file(file);
  return text && text->find(mark) != std::string::npos;
}

std::string shell_quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string of_package(const PackageFile& file) { return std::string(mark) + "\n" + file.text; }

fs::path folder_of(const AmusePlace& place) { return place.distributed.empty() ? place.root / "community/distributed" : place.distributed; }

bool is_our_package(const fs::path& folder) { return is_ours(folder / "interface.py"); }

// Where AMUSE looks, in its order: in a folder _workers beside the module, then beside the module's file.
std::vector<fs::path> places_of_the_worker(const fs::path& root, const fs::path& distributed) {
  std::vector<fs::path> found;
  for (const auto& file : {distributed / "_workers" / worker_name, root / "_workers" / worker_name}) {
    std::error_code ignored;
    if (fs::exists(file, ignored)) found.push_back(file);
  }
  found.push_back(distributed / worker_name);
  return found;
}

std::string script_for(const fs::path& program) {
  return "#!/bin/sh\n" + std::string(mark) + "\nexec " + shell_quoted(program.string()) + " amuse serve \"$@\"\n";
}

}  // namespace

Result<AmusePlace> find_amuse(const std::string& python) {
  AmusePlace place;
  place.python = python.empty() ? "python3" : python;
  auto said = ask(place.python, question);
  if (!said) return fail(said.error());
  std::vector<std::string> lines;
  for (std::string_view rest = *said; !rest.empty();) {
    const auto end = std::min(rest.find('\n'), rest.size());
    lines.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (lines.size() < 3 || lines[0].empty())
    return fail(Code::not_found, "AMUSE is not installed for " + (lines.size() < 3 ? place.python : lines[2]),
                "activate its environment, or name its Python with --python");
  place.root = lines[0];
  place.distributed = lines[1];
  place.python = lines[2];
  place.classes = lines.size() > 3 && !lines[3].empty();
  return place;
}

Result<Touched> install(const AmusePlace& place, const fs::path& program) {
  Touched touched;
  const auto folder = folder_of(place);
  if (place.distributed.empty() || is_our_package(folder)) {
    if (!place.classes)
      return fail(Code::failed_precondition,
                  "the AMUSE in " + place.root.string() +
                      " has no amuse.community.distributed, and its Python has no package flotilla to stand for it",
                  place.python + " -m pip install 'flotilla[amuse]' (in Flotilla's sources: client/python), then do this again");
    std::error_code problem;
    fs::create_directories(folder, problem);
    if (problem)
      return fail(Code::permission_denied, "cannot make " + folder.string() + ": " + problem.message(),
                  "run this as the user who installed AMUSE");
    for (const auto& each : package_files) {
      const auto file = folder / each.name;
      const bool there = is_ours(file);
      if (there && *read_file(file) == of_package(each)) {
        touched.lines.push_back(file.string() + " is ours already");
        continue;
      }
      if (auto written = write_file(file, of_package(each), 0644); !written) return fail(written.error());
      touched.lines.push_back((there ? "replaced " : "made ") + file.string() + ": AMUSE has none of its own");
    }
  }
  const std::string script = script_for(program);
  for (const auto& file : places_of_the_worker(place.root, folder)) {
    std::error_code problem;
    const fs::path kept = file.string() + kept_suffix;
    const bool there = fs::exists(fs::symlink_status(file, problem));
    if (there && is_ours(file)) {
      if (*read_file(file) == script) {
        touched.lines.push_back(file.string() + " is ours already");
        continue;
      }
    } else if (there) {
      fs::rename(file, kept, problem);
      if (problem)
        return fail(Code::permission_denied, "cannot rename " + file.string() + ": " + problem.message(),
                    "run this as the user who installed AMUSE");
    }
    if (auto written = write_file(file, script, 0755); !written) return fail(written.error());
    touched.lines.push_back((there ? "replaced " : "made ") + file.string() +
                            (fs::exists(kept, problem) ? " (what was there is " + kept.filename().string() + " beside it)" : ""));
  }
  return touched;
}

Installed installed(const AmusePlace& place, const fs::path& program) {
  if (place.distributed.empty()) return {};
  const auto first = places_of_the_worker(place.root, place.distributed).front();
  const auto text = read_file(first);
  if (!text) return {};
  return {!is_ours(first)                ? Installed::What::another
          : *text == script_for(program) ? Installed::What::ours
                                         : Installed::What::other_flotilla,
          first};
}

Result<Touched> uninstall(const AmusePlace& place) {
  Touched touched;
  const auto folder = folder_of(place);
  const bool ours = is_our_package(folder);
  for (const auto& file : places_of_the_worker(place.root, folder)) {
    std::error_code problem;
    if (!is_ours(file)) continue;
    const fs::path kept = file.string() + kept_suffix;
    if (fs::exists(fs::symlink_status(kept, problem))) {
      fs::rename(kept, file, problem);
      if (!problem) touched.lines.push_back("put back " + file.string());
    } else {
      fs::remove(file, problem);
      if (!problem) touched.lines.push_back("removed " + file.string());
    }
    if (problem)
      return fail(Code::permission_denied, "cannot put back " + file.string() + ": " + problem.message(),
                  "run this as the user who installed AMUSE");
  }
  if (!ours) return touched;
  for (const auto& each : package_files) {
    std::error_code problem;
    const auto file = folder / each.name;
    if (!is_ours(file)) continue;
    fs::remove(file, problem);
    if (problem)
      return fail(Code::permission_denied, "cannot remove " + file.string() + ": " + problem.message(),
                  "run this as the user who installed AMUSE");
    touched.lines.push_back("removed " + file.string());
  }
  std::error_code ignored;
  fs::remove_all(folder / "__pycache__", ignored);
  fs::remove(folder, ignored);  // if nothing else is there
  return touched;
}

}  // namespace flotilla::amuse
