#include "client/amuse/core/bundle_list.hpp"

#include <algorithm>
#include <array>

namespace flotilla::amuse {
namespace {

std::string_view trimmed(std::string_view text) {
  const auto from = text.find_first_not_of(" \t");
  if (from == std::string_view::npos) return {};
  return text.substr(from, text.find_last_not_of(" \t\r") - from + 1);
}

std::string_view without_address(std::string_view text) { return trimmed(text.substr(0, text.rfind(" (0x"))); }

std::string_view last_part(std::string_view path) { return path.substr(path.rfind('/') + 1); }

// "NAME => PATH (0x...)", "NAME => not found", "PATH (0x...)" for the loader, "linux-vdso.so.1 (0x...)", "statically linked".
void take_line(Needs& needs, std::string_view line) {
  line = trimmed(line);
  const auto arrow = line.find(" => ");
  if (arrow == std::string_view::npos) {
    const auto path = without_address(line);
    if (path.starts_with('/') && last_part(path).starts_with("ld")) needs.loader = path;
    return;
  }
  const auto name = std::string(last_part(trimmed(line.substr(0, arrow))));
  const auto path = without_address(line.substr(arrow + 4));
  if (path == "not found") needs.missing.push_back(name);
  else if (name.starts_with("ld-")) needs.loader = path;
  else if (path.starts_with('/')) needs.libraries[name] = path;
}

template <class Take>
void each_line(std::string_view text, Take&& take) {
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    take(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

}  // namespace

Needs parse_ldd(std::string_view text) {
  Needs needs;
  each_line(text, [&](std::string_view line) { take_line(needs, line); });
  return needs;
}

std::map<std::string, Needs> parse_ldd_of_many(std::string_view text) {
  std::map<std::string, Needs> all;
  Needs* now = nullptr;
  each_line(text, [&](std::string_view line) {
    if (line.starts_with('/') && line.ends_with(':')) now = &all[std::string(line.substr(0, line.size() - 1))];
    else if (now) take_line(*now, line);
  });
  return all;
}

bool is_of_glibc(std::string_view library) {
  static constexpr std::array parts{"libc.so",  "libm.so",    "libpthread.so", "libdl.so",
                                    "librt.so", "libutil.so", "libresolv.so",  "libanl.so"};
  return std::any_of(parts.begin(), parts.end(), [&](std::string_view part) { return library.starts_with(part); });
}

bool runs_within(const Needs& plugin, const Needs& program) {
  return plugin.missing.empty() && std::all_of(plugin.libraries.begin(), plugin.libraries.end(), [&](const auto& each) {
           return program.libraries.contains(each.first) || is_of_glibc(each.first);
         });
}

}  // namespace flotilla::amuse
