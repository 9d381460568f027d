// Messages as JSON, as `--json` and only that prints them. Stable: names as in the .proto files, every scalar present,
// enumerators in lower case without their type's prefix ("running"), 64-bit numbers as numbers, bytes in hexadecimal.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>
#include <vector>

namespace flotilla::cli {

std::string to_json(const google::protobuf::Message& message);
// "JOB_RUNNING" of "JobState" is "running".
std::string enum_text(const google::protobuf::EnumValueDescriptor& value);

template <class Enum>
std::string state_text(Enum value) {
  const auto* descriptor = google::protobuf::GetEnumDescriptor<Enum>()->FindValueByNumber(value);
  return descriptor ? enum_text(*descriptor) : std::to_string(static_cast<int>(value));
}

std::string json_string(std::string_view text);  // quoted; what is not UTF-8 becomes U+FFFD
// Two blanks for each level; `parts` are JSON values.
std::string json_list(const std::vector<std::string>& parts);

}  // namespace flotilla::cli
