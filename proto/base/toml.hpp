// toml++, with the same settings everywhere. Some wrong files ("[[[job") bring its parser to an assertion instead of an error: here that is an exception as well.
#pragma once

#include <stdexcept>

namespace flotilla {
struct TomlFault : std::runtime_error {
  TomlFault() : std::runtime_error("it is no TOML: a key or the name of a table is missing or has a character that it must not have") {}
};
[[noreturn]] inline void throw_toml_fault() { throw TomlFault(); }
}  // namespace flotilla

#define TOML_ASSERT(holds) ((holds) ? static_cast<void>(0) : ::flotilla::throw_toml_fault())
#include <toml++/toml.h>
