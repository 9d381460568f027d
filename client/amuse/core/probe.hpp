// What `flotilla amuse test` finds out, and what is to be thought of it. Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flotilla/client.hpp"

namespace flotilla::amuse {

// An installed code's program.
struct FoundCode {
  std::string path;
  bool script = false;               // begins with #!
  std::string mpi;                   // the MPI library it is linked with, as the linker finds it; empty: none
  std::vector<std::string> missing;  // libraries that are not found
  std::string name() const;
  bool with_mpi() const;  // also when the library is missing
};

struct MpiLibrary {
  std::string path, real_path;
  std::string says;  // MPI_Get_library_version; empty: it could not be asked
};

// What probe_script() said on a machine.
struct Probe {
  std::string host, home, version, python;
  std::string mpiexec, real_mpiexec, mpiexec_says;  // empty: it is not in PATH
  std::vector<MpiLibrary> libraries;
  std::vector<FoundCode> codes;
  bool whole = false;  // it came to its end
};
Probe parse_probe(std::string_view said);

// "2024.6.0" of a line "__version__ = version = '2024.6.0'"; empty when there is none.
std::string version_in(std::string_view line);

// Whose MPI it is and which version, by what its library or its mpiexec says.
struct MpiKind {
  enum class Family { unknown, open_mpi, mpich, intel, mvapich };
  Family family = Family::unknown;
  std::string version;  // "4.1.4"; empty: not said
  std::string text() const;
};
MpiKind mpi_kind(std::string_view says);

// What the user's own Python says.
struct HereFacts {
  std::string python, root, version;
  std::string numpy;         // its version; empty: not installed
  std::string trouble;       // why `import amuse` does not work
  std::string mpiexec;       // that AMUSE starts its workers with; empty: none
  int mpiexec_code = 0;      // of a trial
  std::string mpiexec_said;  // what the trial wrote
};
TestStep judge_here(const HereFacts& here);
TestStep judge_mpiexec_here(const HereFacts& here);

// `resource`: its name, for hints. `here`: AMUSE's version on the user's machine, or empty.
TestStep judge_home(const Probe& probe, const std::string& here, const std::string& resource);
TestStep judge_mpi(const Probe& probe, const std::string& resource);

// A code that did not start: the last lines of its stderr say what to do.
std::string advice_for(const FoundCode& code, std::string_view last_lines, const std::string& resource);

// The code to start with two ranks, or why none is.
struct TwoRanks {
  const FoundCode* code = nullptr;
  std::string reason;
};
// `works`: what has answered with one rank. `mpi`: of judge_mpi.
TwoRanks choose_two_ranks(const std::vector<const FoundCode*>& works, const Probe& probe, const TestStep& mpi, unsigned processors);

}  // namespace flotilla::amuse
