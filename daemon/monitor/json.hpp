// Messages as JSON for the page: field and enum names as in the .proto files, 64-bit numbers as strings (protobuf's
// own mapping), fields with default values left out.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>

namespace flotilla::monitor {

void append_json(std::string& out, const google::protobuf::Message& message);
// A string with its quotes; control characters and '<' escaped.
void append_json_string(std::string& out, std::string_view text);
// {"error": {"code", "message", "hint"}}
std::string error_json(std::string_view code, std::string_view message, std::string_view hint);

}  // namespace flotilla::monitor
