// Durations, sizes and ages as people write and read them. Pure: the present moment comes in.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "proto/base/result.hpp"

namespace flotilla::cli {

// "90", "90s", "1.5h", "2h30m", "1 d 4 h", "250ms", "10 min", "1:30:00" (hours), "02:30" (minutes), in milliseconds.
// A bare number is seconds. Refused: nothing, negative, no unit known, more than 100 years.
Result<std::int64_t> parse_duration(std::string_view text);

// "4096", "64k", "64 KiB", "1.5G", "2 MB": bytes. k, M, G, T and KiB... are powers of 1024, kB, MB... of 1000.
Result<std::int64_t> parse_size(std::string_view text);

// "INT", "SIGINT", "int", "2".
Result<int> parse_signal(std::string_view text);
// "SIGINT"; "signal 77" for what has no name.
std::string format_signal(int number);

// "KEY=VALUE": KEY must be a name that a shell takes.
Result<std::pair<std::string, std::string>> parse_assignment(std::string_view text);

std::string format_duration(std::int64_t ms);                  // "340 ms", "12.3 s", "3 min 20 s", "2 h 5 min", "4 d 3 h"
std::string format_size(std::uint64_t bytes);                  // "17 B", "1.5 KiB", "300 MiB"
std::string format_count(double value);                        // "17", "1.2 k", "3.4 M"
std::string format_age(std::int64_t ms, std::int64_t now_ms);  // "12 s ago", "just now", "-" for 0

// Output of another program or machine in one line of a terminal: control characters become "?", at most `columns` wide
// (in characters; a cut is shown by "…"). 0 = any width.
std::string printable(std::string_view text, std::size_t columns = 0);
// Characters of UTF-8 text, as a terminal counts columns (wide characters count as one).
std::size_t width(std::string_view text);
// Fills to that width.
std::string pad(std::string_view text, std::size_t columns, bool right = false);
// Breaks at blanks; lines after the first start with `indent` blanks. Lines that start with a blank are kept as they are.
std::string wrap(std::string_view text, std::size_t columns, std::size_t indent = 0);

// For `sh`: quoted only where needed.
std::string shell_quote(std::string_view word);

}  // namespace flotilla::cli
