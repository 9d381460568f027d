// AMUSE messages as bytes.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "flotilla/message.hpp"

namespace flotilla::test {

struct Made {
  std::int32_t call_id = 1, function_id = 2, call_count = 1;
  bool error = false, other_order = false;
  std::vector<std::int32_t> ints;
  std::vector<double> doubles;
  std::vector<bool> bools;
  std::vector<std::string> strings;
  std::vector<double> units;
};

inline std::string message(const Made& made) {
  wire::Header header{wire::native_big_endian != made.other_order, made.error, made.call_id, made.function_id, made.call_count};
  header.counts[wire::int32_type] = static_cast<std::int32_t>(made.ints.size());
  header.counts[wire::float64_type] = static_cast<std::int32_t>(made.doubles.size());
  header.counts[wire::bool_type] = static_cast<std::int32_t>(made.bools.size());
  header.counts[wire::string_type] = static_cast<std::int32_t>(made.strings.size());
  header.units = static_cast<std::int32_t>(made.units.size());
  unsigned char head[wire::header_size];
  wire::format_header(header, head);
  std::string out(reinterpret_cast<const char*>(head), sizeof head);
  const auto add = [&](auto value) {
    if (made.other_order) wire::swap_bytes(&value, 1, sizeof value);
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  for (const auto each : made.ints) add(each);
  for (const auto each : made.doubles) add(each);
  for (const bool each : made.bools) out += static_cast<char>(each);
  for (const auto& each : made.strings) add(static_cast<std::int32_t>(each.size()));
  for (const auto& each : made.strings) out += each + '\0';
  for (const auto each : made.units) add(each);
  return out;
}

}  // namespace flotilla::test
