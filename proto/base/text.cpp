#include "proto/base/text.hpp"

#include <google/protobuf/message.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace flotilla {
namespace {

// What is not printable ASCII as \xNN.
std::string shown(std::string_view text) {
  constexpr std::size_t longest = 60;
  std::string out;
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    constexpr char digits[] = "0123456789abcdef";
    if (byte >= 0x20 && byte < 0x7f) out += c;
    else out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
  }
  return out + (text.size() > longest ? "..." : "");
}

// The bytes of the character that begins there; 0 = none does.
std::size_t character_at(std::string_view text, std::size_t at) {
  constexpr std::uint32_t least[] = {0, 0x80, 0x800, 0x10000};  // by the number of bytes that follow: shorter would have done below it
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < 0x80) return 1;
  const std::size_t more = first >= 0xf8 ? 0 : first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : 0;
  if (more == 0 || text.size() - at <= more) return 0;
  std::uint32_t code = first & (0x3fu >> more);
  for (std::size_t k = 1; k <= more; ++k) {
    const auto next = static_cast<unsigned char>(text[at + k]);
    if ((next & 0xc0) != 0x80) return 0;
    code = code << 6 | (next & 0x3fu);
  }
  return code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : more + 1;
}

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// `text` is called with each text field that is not UTF-8: its message, the field, its index (-1 = it is not repeated), its path.
template <class M, class Text>
void for_each_bad_text(M& message, bool maps, const std::string& path, const Text& text) {
  const auto* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  std::string scratch;
  for (const FieldDescriptor* field : fields) {
    if (field->is_map() && !maps) continue;
    const bool is_text = field->type() == FieldDescriptor::TYPE_STRING;
    if (!is_text && field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    const int size = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < size; ++i) {
      auto name = [&] {
        return path + (path.empty() ? "" : ".") + field->name() + (field->is_repeated() ? "[" + std::to_string(i) + "]" : "");
      };
      if (is_text) {
        const std::string& value = field->is_repeated() ? reflection->GetRepeatedStringReference(message, field, i, &scratch)
                                                        : reflection->GetStringReference(message, field, &scratch);
        if (!is_utf8(value)) text(message, *field, field->is_repeated() ? i : -1, name(), value);
      } else if constexpr (std::is_const_v<M>) {
        for_each_bad_text(field->is_repeated() ? reflection->GetRepeatedMessage(message, field, i) : reflection->GetMessage(message, field),
                          maps, name(), text);
      } else {
        for_each_bad_text(
            field->is_repeated() ? *reflection->MutableRepeatedMessage(&message, field, i) : *reflection->MutableMessage(&message, field),
            maps, {}, text);
      }
    }
  }
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_at(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string to_utf8(std::string_view text) {
  std::string clean;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_at(text, i);
    if (length) clean.append(text, i, length);
    else clean += "\xEF\xBF\xBD";
    i += std::max<std::size_t>(1, length);
  }
  return clean;
}

void make_utf8(Message& message) {
  for_each_bad_text(message, false, {},
                    [](Message& in, const FieldDescriptor& field, int index, const std::string&, const std::string& text) {
                      std::string clean = to_utf8(text);
                      if (index < 0) in.GetReflection()->SetString(&in, &field, std::move(clean));
                      else in.GetReflection()->SetRepeatedString(&in, &field, index, std::move(clean));
                    });
}

Status check_text(const Message& message) {
  Status status;
  for_each_bad_text(message, true, {}, [&](const Message&, const FieldDescriptor&, int, const std::string& path, const std::string& text) {
    if (status) status = fail(Code::invalid_argument, path + " is not UTF-8: '" + shown(text) + "'", "words can be given in UTF-8 only");
  });
  return status;
}

Status check_text(const v1::JobSpec& spec) {
  Status status;
  const auto check = [&](const std::string& text, std::string_view what,
                         const char* hint = "file names and words can be given in UTF-8 only") {
    if (status && !is_utf8(text)) status = fail(Code::invalid_argument, std::string(what) + " is not UTF-8: '" + shown(text) + "'", hint);
  };
  const auto numbered = [](const char* what, int i) { return std::string(what) + "[" + std::to_string(i) + "]"; };
  check(spec.name(), "the job's name");
  check(spec.label(), "the label");
  check(spec.client_folder(), "the path of the folder where this runs", "change to another folder, or rename it");
  check(spec.working_folder(), "the working folder");
  for (const auto& [name, value] : spec.env()) {
    check(name, "the name of an environment variable");
    if (!is_utf8(value)) check(value, "the environment variable " + shown(name));
  }
  for (const auto& file : spec.files()) check(file.name(), "the name of an input file");
  const auto& command = spec.command();
  for (int i = 0; i < command.argv_size(); ++i)
    if (!is_utf8(command.argv(i))) check(command.argv(i), numbered("argv", i));
  check(command.stdout_file(), "the name of the file for stdout");
  check(command.stderr_file(), "the name of the file for stderr");
  const auto& worker = spec.worker();
  check(worker.executable(), "the worker's executable");
  for (int i = 0; i < worker.args_size(); ++i)
    if (!is_utf8(worker.args(i))) check(worker.args(i), numbered("args", i));
  check(worker.stdout_file(), "the name of the file for stdout");
  check(worker.stderr_file(), "the name of the file for stderr");
  return status;
}

}  // namespace flotilla
