#include "daemon/coordinator/config.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>

#include "proto/base/paths.hpp"
#include "proto/base/toml.hpp"

namespace flotilla::daemon {
namespace {

// The number at the front of the text and the unit behind it.
Result<std::pair<double, std::string>> number_and_unit(const std::string& text) {
  double number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (problem != std::errc{} || number < 0 || !std::isfinite(number))
    return fail(Code::invalid_argument, fmt::format("'{}' does not begin with a number", text));
  std::string unit(end, text.data() + text.size());
  while (!unit.empty() && unit.front() == ' ') unit.erase(0, 1);
  return std::pair{number, unit};
}

struct Key {
  const char* wanted;  // "a text", for the fault
  std::function<Status(const toml::node&)> take;
};

Status wrong(const char* wanted) { return fail(Code::invalid_argument, std::string("wants ") + wanted); }

Status take(const toml::node& node, bool& into) {
  if (!node.is_boolean()) return wrong("true or false");
  into = *node.value<bool>();
  return {};
}
template <class Number>
Status take_number(const toml::node& node, Number& into, std::int64_t most) {
  const auto value = node.is_integer() ? node.value<std::int64_t>() : std::nullopt;
  if (!value || *value < 0 || *value > most) return fail(Code::invalid_argument, fmt::format("wants a whole number from 0 to {}", most));
  into = static_cast<Number>(*value);
  return {};
}
Status take_duration(const toml::node& node, std::int64_t& into, bool may_be_never) {
  if (!node.is_string()) return wrong("a duration in quotes, as \"30m\"");
  const std::string text = *node.value<std::string>();
  if (may_be_never && text == "never") {
    into = -1;
    return {};
  }
  auto value = parse_duration(text);
  if (!value) return fail(value.error());
  if (*value == 0) return wrong(may_be_never ? "more than 0, or \"never\"" : "more than 0");
  into = *value;
  return {};
}

}  // namespace

Result<std::int64_t> parse_duration(const std::string& text) {
  auto parts = number_and_unit(text);
  if (!parts) return fail(parts.error());
  static const std::map<std::string, double> units{{"", 1000},      {"ms", 1},        {"s", 1000},      {"m", 60'000},
                                                   {"min", 60'000}, {"h", 3'600'000}, {"d", 86'400'000}};
  const auto unit = units.find(parts->second);
  if (unit == units.end()) return fail(Code::invalid_argument, fmt::format("'{}': there are the units ms, s, m, h, d", text));
  const double ms = parts->first * unit->second;
  if (ms > 1e15) return fail(Code::invalid_argument, fmt::format("'{}' is too long", text));
  return static_cast<std::int64_t>(std::llround(ms));
}

Result<std::uint64_t> parse_size(const std::string& text) {
  auto parts = number_and_unit(text);
  if (!parts) return fail(parts.error());
  static const std::map<std::string, double> units{
      {"", 1},      {"B", 1},      {"kB", 1e3},      {"MB", 1e6},           {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 1024}, {"MiB", 1048576}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}};
  const auto unit = units.find(parts->second);
  if (unit == units.end()) return fail(Code::invalid_argument, fmt::format("'{}': there are the units B, kB, MB, GB, KiB, MiB, GiB", text));
  const double bytes = parts->first * unit->second;
  if (bytes > 1e18) return fail(Code::invalid_argument, fmt::format("'{}' is too large", text));
  return static_cast<std::uint64_t>(std::llround(bytes));
}

Result<Config> parse_config(const std::string& text, const std::string& name) {
  Config config;
  toml::table table;
  try {
    table = toml::parse(text);
  } catch (const toml::parse_error& problem) {
    return fail(Code::invalid_argument, fmt::format("{}, line {}: {}", name, problem.source().begin.line, problem.description()));
  } catch (const TomlFault& problem) {
    return fail(Code::invalid_argument, fmt::format("{}: {}", name, problem.what()));
  }
  const std::map<std::string, std::map<std::string, std::function<Status(const toml::node&)>>> sections{
      {"daemon",
       {{"debug", [&](const toml::node& n) { return take(n, config.debug); }},
        {"web_port", [&](const toml::node& n) { return take_number(n, config.web_port, 65535); }},
        {"web_access",
         [&](const toml::node& n) -> Status {
           const std::string value = n.value<std::string>().value_or("");
           if (value != "token" && value != "user") return wrong("\"token\" or \"user\"");
           config.web_admits_user = value == "user";
           return {};
         }},
        {"agent",
         [&](const toml::node& n) -> Status {
           if (!n.is_string()) return wrong("a path in quotes");
           config.agent = *n.value<std::string>();
           return {};
         }},
        {"output_limit",
         [&](const toml::node& n) -> Status {
           if (!n.is_string()) return wrong("a size in quotes, as \"1GiB\"");
           auto size = parse_size(*n.value<std::string>());
           if (!size) return fail(size.error());
           config.output_limit_bytes = *size;
           return {};
         }},
        {"durability",
         [&](const toml::node& n) -> Status {
           const std::string value = n.value<std::string>().value_or("");
           if (value != "process" && value != "disk") return wrong("\"process\" or \"disk\"");
           config.durability = value == "disk" ? Durability::disk : Durability::process;
           return {};
         }}}},
      {"local_pilot",
       {{"start", [&](const toml::node& n) { return take(n, config.local_pilot); }},
        {"slots", [&](const toml::node& n) { return take_number(n, config.local_slots, 1 << 20); }}}},
      {"pilots",
       {{"idle", [&](const toml::node& n) { return take_duration(n, config.pilot_idle_ms, true); }},
        {"cutoff", [&](const toml::node& n) { return take_duration(n, config.pilot_cutoff_ms, false); }}}},
  };
  Error error{Code::invalid_argument, name + " is not right", {}, Retry::no, {}};
  for (const auto& [section, node] : table) {
    const std::string section_name(section.str());
    const auto known = sections.find(section_name);
    if (known == sections.end()) {
      error.faults.push_back(fmt::format("line {}: there is no section or key '{}'; there are [daemon], [local_pilot], [pilots]",
                                         node.source().begin.line, section_name));
      continue;
    }
    if (!node.is_table()) {
      error.faults.push_back(fmt::format("line {}: '{}' is a section: write [{}]", node.source().begin.line, section_name, section_name));
      continue;
    }
    for (const auto& [key, value] : *node.as_table()) {
      const std::string key_name(key.str());
      const auto taker = known->second.find(key_name);
      if (taker == known->second.end()) {
        std::string keys;
        for (const auto& [k, t] : known->second) keys += (keys.empty() ? "" : ", ") + k;
        error.faults.push_back(
            fmt::format("line {}: [{}] has no key '{}'; it has: {}", value.source().begin.line, section_name, key_name, keys));
      } else if (auto status = taker->second(value); !status) {
        error.faults.push_back(fmt::format("line {}: {}: {}", value.source().begin.line, key_name, status.error().message));
      }
    }
  }
  if (!error.faults.empty()) return fail(std::move(error));
  return config;
}

Result<Config> load_config(const std::filesystem::path& file, Missing missing) {
  auto text = read_file(file);
  if (!text) {
    struct stat info {};
    const bool there = stat(file.c_str(), &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
    if (!there && missing == Missing::defaults) return Config{};
    Error error = text.error();
    error.message = "the configuration cannot be read: " + error.message;
    error.hint =
        there ? "make it readable, or name another with FLOTILLA_CONFIG" : "FLOTILLA_CONFIG names it; unset that, or make the file";
    return fail(std::move(error));
  }
  return parse_config(*text, file.string());
}

}  // namespace flotilla::daemon
