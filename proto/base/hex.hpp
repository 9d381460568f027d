// Hexadecimal, base64, hashes, comparing secrets: functions of their arguments alone.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace flotilla {

std::string to_hex(std::string_view bytes);
std::optional<std::string> from_hex(std::string_view text);

// Nothing for what is no base64.
std::string from_base64(std::string_view text);

// SHA-256 of a buffer: 32 bytes.
std::string sha256(std::string_view data);
// HMAC-SHA1, 20 bytes: for formats of others that have it.
std::string hmac_sha1(std::string_view key, std::string_view data);

// Takes the same time wherever the difference is.
bool equal_secret(std::string_view a, std::string_view b);

}  // namespace flotilla
