#include "proto/base/text.hpp"

#include <cstdint>

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

}  // namespace

bool is_utf8(std::string_view text) {
  constexpr std::uint32_t least[] = {0, 0x80, 0x800, 0x10000};  // by the number of bytes that follow: shorter would have done below it
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto first = static_cast<unsigned char>(text[i]);
    if (first < 0x80) continue;
    const std::size_t more = first >= 0xf8 ? 0 : first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : 0;
    if (more == 0 || text.size() - i <= more) return false;
    std::uint32_t code = first & (0x3fu >> more);
    for (std::size_t k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fu);
    }
    if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
    i += more;
  }
  return true;
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
