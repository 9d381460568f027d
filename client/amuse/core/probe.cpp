#include "client/amuse/core/probe.hpp"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

namespace flotilla::amuse {
namespace {

using Status = TestStep::Status;

std::string trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  return std::string(text);
}

std::vector<std::string> words_of(std::string_view line) {
  std::vector<std::string> words;
  for (;;) {
    const auto tab = line.find('\t');
    words.push_back(trimmed(line.substr(0, tab)));
    if (tab == std::string_view::npos) return words;
    line.remove_prefix(tab + 1);
  }
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }
bool is_mpi(std::string_view library) { return library.starts_with("libmpi.so") || library.starts_with("libmpich.so"); }

// The first number with a dot in it.
std::string number_in(std::string_view text) {
  const auto digit = [&](std::size_t i) { return i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])); };
  for (std::size_t i = 0; i < text.size();) {
    if (!digit(i)) {
      ++i;
      continue;
    }
    std::size_t end = i;
    bool dots = false;
    while (digit(end) || (end < text.size() && text[end] == '.' && digit(end + 1))) dots |= text[end++] == '.';
    if (dots) return std::string(text.substr(i, end - i));
    i = end;
  }
  return {};
}

// The first `count` parts of a version.
std::string first_parts(const std::string& version, int count) {
  std::size_t end = 0;
  while (count-- > 0 && end != std::string::npos) end = version.find('.', end + (end > 0));
  return version.substr(0, end);
}

// /usr of /usr/bin/orterun.
std::string prefix_of(const std::string& program) {
  const auto name = program.rfind('/');
  if (name == std::string::npos || name == 0) return {};
  const auto folder = program.rfind('/', name - 1);
  return folder == std::string::npos ? std::string() : program.substr(0, folder);
}

std::string joined(const std::vector<std::string>& parts, std::size_t most = 4) {
  std::string out;
  for (std::size_t i = 0; i < std::min(parts.size(), most); ++i) out += (i ? ", " : "") + parts[i];
  if (parts.size() > most) out += " and " + std::to_string(parts.size() - most) + " more";
  return out;
}

std::string setup_hint(const std::string& resource, const std::string& what) {
  if (resource == "local") return what;
  return what + "; what a job needs there can be in the resource: flotilla resource add ... --setup 'module load ...'";
}

// The same MPI? What the families call themselves differs between a library and its mpiexec.
enum class Likeness { same, unknown, other_version, other };
Likeness compare(const MpiKind& library, const MpiKind& launcher) {
  using Family = MpiKind::Family;
  if (library.family == Family::unknown || launcher.family == Family::unknown) return Likeness::unknown;
  // These have MPICH's mpiexec.
  const bool hydra = launcher.family == Family::mpich && (library.family == Family::mvapich || library.family == Family::intel);
  if (hydra) return Likeness::unknown;
  if (library.family != launcher.family) return Likeness::other;
  if (library.version.empty() || launcher.version.empty()) return Likeness::unknown;
  return first_parts(library.version, 2) == first_parts(launcher.version, 2) ? Likeness::same : Likeness::other_version;
}

}  // namespace

std::string FoundCode::name() const {
  const auto at = path.rfind('/');
  return at == std::string::npos ? path : path.substr(at + 1);
}

bool FoundCode::with_mpi() const { return !mpi.empty() || std::any_of(missing.begin(), missing.end(), is_mpi); }

Probe parse_probe(std::string_view said) {
  Probe probe;
  while (!said.empty()) {
    const auto end = std::min(said.find('\n'), said.size());
    auto words = words_of(said.substr(0, end));
    said.remove_prefix(std::min(end + 1, said.size()));
    const std::string key = words[0];
    words.resize(4);
    if (key == "host") probe.host = words[1];
    if (key == "home") probe.home = words[1];
    if (key == "version") probe.version = version_in(words[1]);
    if (key == "python") probe.python = words[1];
    if (key == "mpiexec")
      probe.mpiexec = words[1], probe.real_mpiexec = words[2].empty() ? words[1] : words[2], probe.mpiexec_says = words[3];
    if (key == "library") probe.libraries.push_back({words[1], words[2].empty() ? words[1] : words[2], words[3]});
    if (key == "code" && !words[1].empty()) probe.codes.push_back({words[1], words[2] == "script", {}, {}});
    if (key == "needs" && !probe.codes.empty()) {
      if (words[2] == "not found") probe.codes.back().missing.push_back(words[1]);
      else if (is_mpi(words[1])) probe.codes.back().mpi = words[2];
    }
    if (key == "end") probe.whole = true;
  }
  return probe;
}

std::string version_in(std::string_view line) {
  const auto equals = line.find('=');
  if (equals == std::string_view::npos) return {};
  const auto open = line.find_first_of("'\"", equals);
  if (open == std::string_view::npos) return {};
  const auto close = line.find(line[open], open + 1);
  return close == std::string_view::npos ? std::string() : std::string(line.substr(open + 1, close - open - 1));
}

std::string MpiKind::text() const {
  static const std::map<Family, const char*> names = {{Family::unknown, "an unknown MPI"},
                                                      {Family::open_mpi, "Open MPI"},
                                                      {Family::mpich, "MPICH"},
                                                      {Family::intel, "Intel MPI"},
                                                      {Family::mvapich, "MVAPICH"}};
  return names.at(family) + (version.empty() ? "" : " " + version);
}

MpiKind mpi_kind(std::string_view says) {
  using Family = MpiKind::Family;
  if (contains(says, "PRRTE")) return {Family::open_mpi, {}};  // Open MPI 5: a version of its own
  if (contains(says, "Open MPI") || contains(says, "OpenRTE")) return {Family::open_mpi, number_in(says)};
  if (contains(says, "MVAPICH")) return {Family::mvapich, number_in(says)};
  if (contains(says, "Intel(R) MPI")) return {Family::intel, number_in(says)};
  if (contains(says, "MPICH") || contains(says, "HYDRA")) return {Family::mpich, number_in(says)};
  return {};
}

TestStep judge_here(const HereFacts& here) {
  TestStep step{.name = "AMUSE here", .status = Status::ok, .message = {}, .hint = {}};
  step.message = "AMUSE" + (here.version.empty() ? "" : " " + here.version) + " in " + here.root + ", of " + here.python;
  if (!here.trouble.empty()) {
    step.status = Status::failed;
    step.message += ", cannot be imported: " + here.trouble;
    step.hint = "'" + here.python + " -c \"import amuse.lab\"' must work; install what it misses, or name another Python with --python";
  } else if (here.numpy.starts_with("2.") && here.version.starts_with("2024.")) {
    step.status = Status::failed;
    step.message += ", with numpy " + here.numpy + ", with which the codes of this AMUSE fail at their first call";
    step.hint = here.python + " -m pip install 'numpy<2'";
  }
  return step;
}

TestStep judge_mpiexec_here(const HereFacts& here) {
  TestStep step{.name = "mpiexec here", .status = Status::ok, .message = {}, .hint = {}};
  if (here.mpiexec.empty()) {
    step.status = Status::skipped;
    step.message = "this AMUSE starts its distributed code without it";
  } else if (here.mpiexec_code == 0) {
    step.message = here.mpiexec + " starts programs";
  } else {
    step.status = Status::failed;
    if (contains(here.mpiexec_said, "OMPI_ALLOW_RUN_AS_ROOT")) {
      step.message = here.mpiexec + ", with which AMUSE starts its distributed code, refuses to work for root";
      step.hint =
          "work as another user, or in the shell where the script runs: export OMPI_ALLOW_RUN_AS_ROOT=1 "
          "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1";
    } else {
      step.message = here.mpiexec + ", with which AMUSE starts its distributed code, does not start programs (exit code " +
                     std::to_string(here.mpiexec_code) + ")";
      if (const auto said = trimmed(here.mpiexec_said); !said.empty()) step.message += ":\n" + said;
      step.hint = "'" + here.mpiexec +
                  " -n 1 true' must work: install the MPI that AMUSE was built with, or put its bin folder into "
                  "PATH; without it, a script can say DistributedAmuse(initialize_mpi=False)";
    }
  }
  return step;
}

TestStep judge_home(const Probe& probe, const std::string& here, const std::string& resource) {
  TestStep step{.name = "AMUSE there", .status = Status::ok, .message = {}, .hint = {}};
  step.message = "AMUSE" + (probe.version.empty() ? "" : " " + probe.version) + " in " + probe.home + " on " + probe.host + ", " +
                 (probe.codes.size() == 1 ? "1 program of its codes" : std::to_string(probe.codes.size()) + " programs of its codes");
  if (probe.codes.empty()) {
    step.status = Status::failed;
    step.message = "AMUSE" + (probe.version.empty() ? "" : " " + probe.version) + " in " + probe.home + " on " + probe.host +
                   " has no code that is built";
    step.hint = "install codes " + std::string(resource == "local" ? "" : "there ") +
                "with that AMUSE's Python: pip install amuse-hermite amuse-sse ...; if another AMUSE is meant, name it with --amuse-dir "
                "(amuse_dir of the resource in a script)";
  } else if (!here.empty() && !probe.version.empty() && here != probe.version) {
    step.status = Status::warning;
    step.message += "; here it is " + here;
    step.hint = "scripts here call the codes there: install the same version on both sides, or expect codes whose functions differ";
  }
  return step;
}

TestStep judge_mpi(const Probe& probe, const std::string& resource) {
  TestStep step{.name = "MPI", .status = Status::ok, .message = {}, .hint = {}};
  std::vector<std::string> unfound;
  std::set<std::string> missing;
  std::size_t built = 0;
  for (const auto& code : probe.codes) {
    built += code.with_mpi();
    if (std::none_of(code.missing.begin(), code.missing.end(), is_mpi)) continue;
    unfound.push_back(code.name());
    for (const auto& library : code.missing)
      if (is_mpi(library)) missing.insert(library);
  }
  const auto launcher = mpi_kind(probe.mpiexec_says);
  if (built == 0) {
    step.status = Status::skipped;
    step.message = "no code here is built with MPI";
    return step;
  }
  if (!unfound.empty()) {
    step.status = Status::failed;
    step.message = joined(unfound) + ": linked with " + joined({missing.begin(), missing.end()}) + ", not found on " + probe.host;
    step.hint = setup_hint(resource, "load the MPI that AMUSE was built with before its codes are started, or build the codes again with " +
                                         (probe.mpiexec.empty() ? "an MPI that is installed" : launcher.text() + ", which is there"));
    return step;
  }
  if (probe.mpiexec.empty()) {
    step.status = Status::failed;
    step.message = "mpiexec is not in PATH on " + probe.host + ": codes with number_of_workers above 1 cannot start (" +
                   std::to_string(built) + " built with MPI)";
    step.hint =
        setup_hint(resource, "install the programs of the MPI that AMUSE was built with (Debian: openmpi-bin), or put them into PATH");
    return step;
  }
  // The worst of all libraries that codes are linked with.
  std::vector<std::string> fitting;
  for (const auto& library : probe.libraries) {
    const auto kind = mpi_kind(library.says);
    std::vector<std::string> users;
    for (const auto& code : probe.codes)
      if (code.mpi == library.path) users.push_back(code.name());
    if (users.empty()) continue;
    const auto likeness = compare(kind, launcher);
    const auto prefix = prefix_of(probe.real_mpiexec);
    const bool beside = !prefix.empty() && library.real_path.starts_with(prefix + "/");
    const auto told = joined(users) + ": " + kind.text() + " (" + library.real_path + "), but mpiexec is " + launcher.text() + " (" +
                      probe.real_mpiexec + ")";
    if (likeness == Likeness::other || likeness == Likeness::other_version) {
      if (step.status == Status::failed && likeness == Likeness::other_version) continue;
      step.status = likeness == Likeness::other ? Status::failed : Status::warning;
      step.message = told;
      step.hint =
          setup_hint(resource, "put the mpiexec of " + kind.text() + " first in PATH, or build the codes again with " + launcher.text());
    } else if (likeness == Likeness::unknown && !beside && step.status == Status::ok) {
      step.status = Status::warning;
      step.message = told + ": whether they belong together is not known";
      step.hint = "where codes with number_of_workers above 1 fail, " +
                  setup_hint(resource, "put the mpiexec that lies beside " + library.path + " first in PATH");
    } else {
      fitting.push_back(kind.family == MpiKind::Family::unknown ? library.real_path : kind.text());
    }
  }
  if (step.status == Status::ok) {
    std::sort(fitting.begin(), fitting.end());
    fitting.erase(std::unique(fitting.begin(), fitting.end()), fitting.end());
    step.message = std::to_string(built) + " of " + std::to_string(probe.codes.size()) +
                   " programs are built with MPI: " + joined(fitting) + ", as is mpiexec (" + probe.real_mpiexec + ")";
  }
  return step;
}

std::string advice_for(const FoundCode& code, std::string_view last_lines, const std::string& resource) {
  if (!code.missing.empty() || contains(last_lines, "error while loading shared libraries")) {
    const auto which = code.missing.empty() ? std::string("this library") : joined(code.missing);
    return setup_hint(resource, "install what holds " + which + ", or load the modules that the code was built with");
  }
  if (contains(last_lines, "GLIBC_") || contains(last_lines, "GLIBCXX_"))
    return "it was built on a newer system: build it on the machine where it runs";
  if (contains(last_lines, "Exec format error") || contains(last_lines, "cannot execute binary file"))
    return "it was built for another kind of machine: build it where it runs";
  if (contains(last_lines, "Permission denied")) return "chmod +x " + code.path;
  if (contains(last_lines, "No module named")) return "install that module for the Python in its first line: head -n 1 " + code.path;
  return "install the code again with the Python of that AMUSE, or start it there by hand to see more: " + code.path;
}

TwoRanks choose_two_ranks(const std::vector<const FoundCode*>& works, const Probe& probe, const TestStep& mpi, unsigned processors) {
  if (std::none_of(probe.codes.begin(), probe.codes.end(), [](const FoundCode& code) { return code.with_mpi(); }))
    return {nullptr, "no code here is built with MPI"};
  if (mpi.status == Status::failed) return {nullptr, "what is said about MPI comes first"};
  if (processors < 2) return {nullptr, probe.host + " has one processor"};
  for (const auto* code : works)
    if (code->with_mpi()) return {code, {}};
  return {nullptr, "no code that is built with MPI works with one"};
}

}  // namespace flotilla::amuse
