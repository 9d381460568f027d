// A small program of this machine, run to its end, and what it says.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla {

struct ProgramEnd {
  int code = 0;  // 128 + the signal that ended it; -1 where somebody else takes the ends of processes here
  std::string said;
};

enum class Listen { output, output_and_errors };

constexpr std::chrono::milliseconds no_time_limit{-1};

// argv[0] is looked up in PATH. Its input is empty; without output_and_errors its errors go where ours go. Ends with the program, not with
// what it leaves running; at `time_limit` it is killed. What it says beyond `size_limit` is dropped. Fails only where it cannot be run:
// not_found with the cause.
Result<ProgramEnd> run_program(const std::vector<std::string>& argv, Listen listen, std::chrono::milliseconds time_limit = no_time_limit,
                               std::size_t size_limit = 16u << 20);

}  // namespace flotilla
