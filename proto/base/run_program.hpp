// A small program of this machine, run to its end, and what it says.
#pragma once

#include <string>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla {

struct ProgramEnd {
  int status = 0;  // as of waitpid; -1 where somebody else takes the ends of processes here
  std::string said;
  bool ok() const { return status == 0; }
};

enum class Listen { output, output_and_errors };

// argv[0] is looked up in PATH. Its input is empty; without output_and_errors its errors go where ours go. Ends with the program, not with
// what it leaves running. Fails only where it cannot be run: not_found with the cause.
Result<ProgramEnd> run_program(const std::vector<std::string>& argv, Listen listen, std::size_t limit = 1u << 20);

}  // namespace flotilla
