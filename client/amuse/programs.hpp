// Programs of the user's machine, run for what they say.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla::amuse {

struct Ran {
  int code = 0;  // 128 + the signal that ended it
  std::string output;
};
enum class StandardError { passed_on, with_output };
inline constexpr std::chrono::seconds program_limit{60};  // it is killed then, and its code is 137

// words[0] is looked up in PATH; its stdin is empty. Fails only when it cannot be run.
Result<Ran> run_program(std::vector<std::string> words, StandardError errors, std::chrono::milliseconds limit = program_limit);

}  // namespace flotilla::amuse
