#include "daemon/monitor/json.hpp"

#include <google/protobuf/util/json_util.h>

#include <nlohmann/json.hpp>

namespace flotilla::monitor {

void append_json(std::string& out, const google::protobuf::Message& message) {
  static const auto options = [] {
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    return options;
  }();
  std::string text;
  // It fails only for messages with Any or Struct fields, of which we have none; then the thing is shown empty.
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) text = "{}";
  out += text;
}

void append_json_string(std::string& out, std::string_view text) {
  auto quoted = nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  for (char c : quoted) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
}

std::string error_json(std::string_view code, std::string_view message, std::string_view hint) {
  std::string out = "{\"error\":{\"code\":";
  append_json_string(out, code);
  out += ",\"message\":";
  append_json_string(out, message);
  out += ",\"hint\":";
  append_json_string(out, hint);
  out += "}}\n";
  return out;
}

}  // namespace flotilla::monitor
