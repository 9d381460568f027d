#include "client/cli/core/json.hpp"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/generated_enum_reflection.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <vector>

#include "proto/base/hex.hpp"

namespace flotilla::cli {
namespace {
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[40];
  return {text, std::to_chars(text, std::end(text), value, std::chars_format::general, 15).ptr};
}

void write(std::string& out, const Message& message, int level);

// One value of a field; index -1 = not repeated.
void write_value(std::string& out, const Message& message, const FieldDescriptor& field, int index, int level) {
  const Reflection& get = *message.GetReflection();
  const bool many = index >= 0;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      out += std::to_string(many ? get.GetRepeatedInt32(message, &field, index) : get.GetInt32(message, &field));
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      out += std::to_string(many ? get.GetRepeatedInt64(message, &field, index) : get.GetInt64(message, &field));
      break;
    case FieldDescriptor::CPPTYPE_UINT32:
      out += std::to_string(many ? get.GetRepeatedUInt32(message, &field, index) : get.GetUInt32(message, &field));
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      out += std::to_string(many ? get.GetRepeatedUInt64(message, &field, index) : get.GetUInt64(message, &field));
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      out += number(many ? get.GetRepeatedDouble(message, &field, index) : get.GetDouble(message, &field));
      break;
    case FieldDescriptor::CPPTYPE_FLOAT:
      out += number(many ? get.GetRepeatedFloat(message, &field, index) : get.GetFloat(message, &field));
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      out += (many ? get.GetRepeatedBool(message, &field, index) : get.GetBool(message, &field)) ? "true" : "false";
      break;
    case FieldDescriptor::CPPTYPE_ENUM: {
      const int value = many ? get.GetRepeatedEnumValue(message, &field, index) : get.GetEnumValue(message, &field);
      const auto* known = field.enum_type()->FindValueByNumber(value);
      out += known ? json_string(enum_text(*known)) : std::to_string(value);
      break;
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string text = many ? get.GetRepeatedString(message, &field, index) : get.GetString(message, &field);
      out += json_string(field.type() == FieldDescriptor::TYPE_BYTES ? to_hex(text) : text);
      break;
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      write(out, many ? get.GetRepeatedMessage(message, &field, index) : get.GetMessage(message, &field), level);
      break;
  }
}

void write_map(std::string& out, const Message& message, const FieldDescriptor& field, int level) {
  const Reflection& get = *message.GetReflection();
  std::map<std::string, std::string> entries;  // in order: the wire has none
  for (int i = 0; i < get.FieldSize(message, &field); ++i) {
    const Message& entry = get.GetRepeatedMessage(message, &field, i);
    const auto* key_field = entry.GetDescriptor()->map_key();
    const auto* value_field = entry.GetDescriptor()->map_value();
    std::string key, value;
    write_value(key, entry, *key_field, -1, level);
    if (key_field->cpp_type() != FieldDescriptor::CPPTYPE_STRING) key = "\"" + key + "\"";
    write_value(value, entry, *value_field, -1, level + 1);
    entries[key] = value;
  }
  if (entries.empty()) {
    out += "{}";
    return;
  }
  const std::string indent(static_cast<std::size_t>(level + 1) * 2, ' ');
  out += "{";
  bool first = true;
  for (const auto& [key, value] : entries) {
    out += (first ? "\n" : ",\n") + indent + key + ": " + value;
    first = false;
  }
  out += "\n" + std::string(static_cast<std::size_t>(level) * 2, ' ') + "}";
}

void write(std::string& out, const Message& message, int level) {
  const Reflection& get = *message.GetReflection();
  const auto* type = message.GetDescriptor();
  const std::string indent(static_cast<std::size_t>(level + 1) * 2, ' ');
  out += "{";
  bool first = true;
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor& field = *type->field(i);
    const bool is_message = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (!field.is_repeated() && (is_message || field.containing_oneof()) && !get.HasField(message, &field)) continue;
    out += (first ? "\n" : ",\n") + indent + "\"" + field.name() + "\": ";
    first = false;
    if (field.is_map()) {
      write_map(out, message, field, level + 1);
    } else if (field.is_repeated()) {
      const int count = get.FieldSize(message, &field);
      out += "[";
      for (int k = 0; k < count; ++k) {
        if (k > 0) out += ", ";
        write_value(out, message, field, k, level + 1);
      }
      out += "]";
    } else {
      write_value(out, message, field, -1, level + 1);
    }
  }
  if (!first) out += "\n" + std::string(static_cast<std::size_t>(level) * 2, ' ');
  out += "}";
}

}  // namespace

std::string enum_text(const google::protobuf::EnumValueDescriptor& value) {
  // The prefix is the first word of the type's name: JobState -> JOB_, ExitKind -> EXIT_.
  const std::string& type = value.type()->name();
  std::size_t end = 1;
  while (end < type.size() && !(type[end] >= 'A' && type[end] <= 'Z')) ++end;
  std::string prefix = type.substr(0, end) + "_";
  std::string text = value.name();
  const auto upper = [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; };
  std::transform(prefix.begin(), prefix.end(), prefix.begin(), upper);
  if (text.compare(0, prefix.size(), prefix) == 0) text.erase(0, prefix.size());
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

std::string to_json(const Message& message) {
  std::string out;
  write(out, message, 0);
  return out;
}

std::string json_string(std::string_view text) {
  static constexpr char replacement[] = "\xEF\xBF\xBD";
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      switch (lead) {
        case '"': out += "\\\""; break;
        case '\\': out += "\\\\"; break;
        case '\n': out += "\\n"; break;
        case '\r': out += "\\r"; break;
        case '\t': out += "\\t"; break;
        default:
          if (lead < 0x20 || lead == 0x7F) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", lead);
            out += escape;
          } else {
            out += text[i];
          }
      }
      ++i;
      continue;
    }
    const std::size_t length = lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    bool good = length != 0 && i + length <= text.size();
    unsigned code = length == 2 ? lead & 0x1Fu : length == 3 ? lead & 0x0Fu : lead & 0x07u;
    for (std::size_t k = 1; good && k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      good = (next & 0xC0) == 0x80;
      code = code << 6 | (next & 0x3Fu);
    }
    // Refused: forms that are longer than needed, surrogates, what lies beyond Unicode.
    if (good)
      good = code >= (length == 2 ? 0x80u : length == 3 ? 0x800u : 0x10000u) && code <= 0x10FFFFu && !(code >= 0xD800u && code <= 0xDFFFu);
    if (good) out.append(text.substr(i, length)), i += length;
    else out += replacement, ++i;
  }
  return out + "\"";
}

std::string json_list(const std::vector<std::string>& parts) {
  if (parts.empty()) return "[]";
  std::string out = "[";
  for (std::size_t i = 0; i < parts.size(); ++i) {
    out += i == 0 ? "\n  " : ",\n  ";
    for (const char c : parts[i]) {
      out += c;
      if (c == '\n') out += "  ";
    }
  }
  return out + "\n]";
}

}  // namespace flotilla::cli
