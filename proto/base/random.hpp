// Random bytes from the kernel, and hexadecimal.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace flotilla {

std::string random_bytes(std::size_t count);
std::string to_hex(std::string_view bytes);
std::optional<std::string> from_hex(std::string_view text);
inline std::string random_hex(std::size_t bytes) { return to_hex(random_bytes(bytes)); }

// SHA-256 of a buffer: 32 bytes.
std::string sha256(std::string_view data);

// Takes the same time wherever the difference is.
bool equal_secret(std::string_view a, std::string_view b);

}  // namespace flotilla
