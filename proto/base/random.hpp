// Random bytes from the kernel.
#pragma once

#include <cstddef>
#include <string>

#include "proto/base/hex.hpp"

namespace flotilla {

std::string random_bytes(std::size_t count);
inline std::string random_hex(std::size_t bytes) { return to_hex(random_bytes(bytes)); }

}  // namespace flotilla
