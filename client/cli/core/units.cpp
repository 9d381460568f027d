#include "client/cli/core/units.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

namespace flotilla::cli {
namespace {

constexpr std::int64_t second = 1000;
constexpr std::int64_t minute = 60 * second;
constexpr std::int64_t hour = 60 * minute;
constexpr std::int64_t day = 24 * hour;
constexpr std::int64_t longest_ms = 36525 * day;  // 100 years: what is longer is a slip of the pen
constexpr double largest_size = 9.0e18;           // fits into 63 bits

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Takes digits with an optional fraction off the front; false when there are none.
bool take_number(std::string_view& text, double& value) {
  std::size_t end = 0;
  while (end < text.size() && ((text[end] >= '0' && text[end] <= '9') || text[end] == '.')) ++end;
  if (end == 0) return false;
  const auto done = std::from_chars(text.data(), text.data() + end, value, std::chars_format::fixed);
  if (done.ec != std::errc() || done.ptr != text.data() + end) return false;
  text.remove_prefix(end);
  return true;
}

std::string_view take_word(std::string_view& text) {
  std::size_t end = 0;
  while (end < text.size() && ((text[end] | 32) >= 'a' && (text[end] | 32) <= 'z')) ++end;
  const auto word = text.substr(0, end);
  text.remove_prefix(end);
  return word;
}

// Milliseconds of a unit, 0 = no such unit.
std::int64_t duration_unit(std::string_view word) {
  struct Unit {
    std::string_view name;
    std::int64_t ms;
  };
  static constexpr std::array units{Unit{"ms", 1},           Unit{"s", second},     Unit{"sec", second}, Unit{"second", second},
                                    Unit{"seconds", second}, Unit{"m", minute},     Unit{"min", minute}, Unit{"minute", minute},
                                    Unit{"minutes", minute}, Unit{"h", hour},       Unit{"hour", hour},  Unit{"hours", hour},
                                    Unit{"d", day},          Unit{"day", day},      Unit{"days", day},   Unit{"w", 7 * day},
                                    Unit{"week", 7 * day},   Unit{"weeks", 7 * day}};
  const std::string name = lower(word);
  for (const auto& unit : units)
    if (unit.name == name) return unit.ms;
  return 0;
}

tl::unexpected<Error> bad_duration(std::string_view text, const std::string& why) {
  return fail(Code::invalid_argument, "'" + std::string(text) + "' is no duration: " + why, "write it like 90s, 10min, 2h30m or 1d");
}

// "1:30:00" and "02:30".
Result<std::int64_t> parse_clock(std::string_view text) {
  std::array<std::int64_t, 3> part{};
  std::size_t count = 0;
  std::string_view rest = text;
  for (;;) {
    std::int64_t value = 0;
    const auto done = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (done.ec != std::errc() || value < 0 || count == part.size())
      return bad_duration(text, "a clock has the form HOURS:MINUTES:SECONDS or MINUTES:SECONDS");
    part[count++] = value;
    rest.remove_prefix(static_cast<std::size_t>(done.ptr - rest.data()));
    if (rest.empty()) break;
    if (rest.front() != ':') return bad_duration(text, "a clock has only digits and colons");
    rest.remove_prefix(1);
  }
  for (std::size_t i = 1; i < count; ++i)
    if (part[i] > 59) return bad_duration(text, std::to_string(part[i]) + " is more than 59");
  if (part[0] > longest_ms / hour) return bad_duration(text, "longer than 100 years");
  if (count == 3) return part[0] * hour + part[1] * minute + part[2] * second;
  return part[0] * minute + part[1] * second;
}

constexpr int largest_signal = 64;

std::string fixed(double value, int digits) {
  std::array<char, 330> text;  // as many as the largest has
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed, digits).ptr};
}
std::string number_text(double value) { return fixed(value, value < 9.95 && value != std::floor(value) ? 1 : 0); }

}  // namespace

Result<std::int64_t> parse_duration(std::string_view text) {
  std::string_view rest = trim(text);
  if (rest.empty()) return bad_duration(text, "nothing is given");
  if (rest.front() == '-') return bad_duration(text, "it is negative");
  if (rest.find(':') != std::string_view::npos) return parse_clock(rest);
  double total = 0;
  bool first = true;
  std::int64_t last_unit = 0;
  while (!rest.empty()) {
    double value = 0;
    if (!take_number(rest, value)) return bad_duration(text, "a number is missing before '" + std::string(rest) + "'");
    rest = trim(rest);
    const std::string_view word = take_word(rest);
    std::int64_t unit = second;
    if (!word.empty()) {
      unit = duration_unit(word);
      if (unit == 0) return bad_duration(text, "'" + std::string(word) + "' is no unit of time");
    } else if (!first || !rest.empty()) {
      return bad_duration(text, "a unit is missing");
    }
    if (!first && unit >= last_unit) return bad_duration(text, "units go from the larger to the smaller");
    total += value * static_cast<double>(unit);
    if (total > static_cast<double>(longest_ms)) return bad_duration(text, "longer than 100 years");
    last_unit = unit;
    first = false;
    rest = trim(rest);
  }
  if (total > 0 && total < 1) return bad_duration(text, "less than a millisecond");
  return static_cast<std::int64_t>(std::llround(total));
}

Result<std::int64_t> parse_size(std::string_view text) {
  const auto bad = [&](const std::string& why) {
    return fail(Code::invalid_argument, "'" + std::string(text) + "' is no size: " + why, "write it like 4096, 64k, 10MiB or 1.5G");
  };
  std::string_view rest = trim(text);
  if (rest.empty()) return bad("nothing is given");
  if (rest.front() == '-') return bad("it is negative");
  double value = 0;
  if (!take_number(rest, value)) return bad("it does not start with a number");
  const std::string unit = lower(trim(rest));
  double factor = 1;
  if (!unit.empty() && unit != "b") {
    static constexpr std::string_view letters = "kmgtp";
    const std::size_t power = letters.find(unit[0]);
    const std::string_view tail = std::string_view(unit).substr(1);
    if (power == std::string_view::npos || !(tail.empty() || tail == "ib" || tail == "b"))
      return bad("'" + std::string(trim(rest)) + "' is no unit of size");
    factor = std::pow(tail == "b" ? 1000.0 : 1024.0, static_cast<double>(power + 1));
  }
  const double bytes = value * factor;
  if (bytes > largest_size) return bad("it is too large");
  return static_cast<std::int64_t>(std::llround(bytes));
}

Result<int> parse_signal(std::string_view text) {
  int number = 0;
  const auto done = std::from_chars(text.data(), text.data() + text.size(), number);
  if (done.ec == std::errc() && done.ptr == text.data() + text.size()) {
    if (number >= 1 && number <= largest_signal) return number;
    return fail(Code::invalid_argument, "there is no signal " + std::string(text), "signals are 1 to 64");
  }
  std::string name(text);
  for (char& c : name)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  if (name.rfind("SIG", 0) == 0) name.erase(0, 3);
  for (number = 1; number <= largest_signal; ++number)
    if (const char* known = sigabbrev_np(number); known && name == known) return number;
  return fail(Code::invalid_argument, "there is no signal '" + std::string(text) + "'", "use a name such as INT, TERM, USR1 or a number");
}

std::string format_signal(int number) {
  if (const char* known = sigabbrev_np(number)) return std::string("SIG") + known;
  return "signal " + std::to_string(number);
}

Result<std::pair<std::string, std::string>> parse_assignment(std::string_view text) {
  const std::size_t at = text.find('=');
  if (at == std::string_view::npos) return fail(Code::invalid_argument, "'" + std::string(text) + "' is no KEY=VALUE: the '=' is missing");
  const std::string_view key = text.substr(0, at);
  bool good = !key.empty() && !(key[0] >= '0' && key[0] <= '9');
  for (const char c : key) good = good && (c == '_' || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'));
  if (!good)
    return fail(Code::invalid_argument, "'" + std::string(key) + "' is no name for a variable",
                "names have letters, digits and '_', and do not start with a digit");
  return std::pair(std::string(key), std::string(text.substr(at + 1)));
}

std::string format_duration(std::int64_t ms) {
  if (ms < 0) return "-" + format_duration(-ms);
  if (ms < second) return std::to_string(ms) + " ms";
  if (ms < minute) return fixed(static_cast<double>(ms) / second, ms < 10 * second ? 2 : 1) + " s";
  const auto two = [&](std::int64_t large, const char* large_name, std::int64_t small, const char* small_name) {
    const std::int64_t whole = ms / large, rest = (ms % large) / small;
    std::string out = std::to_string(whole) + " " + large_name;
    if (rest != 0) out += " " + std::to_string(rest) + " " + small_name;
    return out;
  };
  if (ms < hour) return two(minute, "min", second, "s");
  if (ms < day) return two(hour, "h", minute, "min");
  return two(day, "d", hour, "h");
}

std::string format_size(std::uint64_t bytes) {
  static constexpr std::array names{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  std::size_t at = 0;
  while (value >= 1023.95 && at + 1 < names.size()) {
    value /= 1024;
    ++at;
  }
  return (at == 0 ? std::to_string(bytes) : number_text(value)) + " " + names[at];
}

std::string format_count(double value) {
  static constexpr std::array names{"", " k", " M", " G"};
  std::size_t at = 0;
  while (value >= 999.5 && at + 1 < names.size()) {
    value /= 1000;
    ++at;
  }
  return number_text(value) + names[at];
}

std::string format_age(std::int64_t ms, std::int64_t now_ms) {
  if (ms == 0) return "-";
  const std::int64_t age = now_ms - ms;
  if (age < second) return "just now";
  if (age < minute) return std::to_string(age / second) + " s ago";
  if (age < hour) return std::to_string(age / minute) + " min ago";
  if (age < day) return std::to_string(age / hour) + " h ago";
  return std::to_string(age / day) + " d ago";
}

std::size_t width(std::string_view text) {
  std::size_t columns = 0;
  for (const char c : text)
    if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) ++columns;  // not a continuation byte
  return columns;
}

std::string printable(std::string_view text, std::size_t columns) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x20 || lead == 0x7F) {
      out += lead == '\t' || lead == '\n' || lead == '\r' ? ' ' : '?';
      ++i;
      continue;
    }
    const std::size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    bool good = length != 0 && i + length <= text.size();
    for (std::size_t k = 1; good && k < length; ++k) good = (static_cast<unsigned char>(text[i + k]) & 0xC0) == 0x80;
    // U+0080 to U+009F are control characters too (0x9B starts an escape sequence on some terminals).
    if (good && lead == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0) good = false;
    if (good) out.append(text.substr(i, length)), i += length;
    else out += '?', ++i;
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  if (columns == 0 || width(out) <= columns) return out;
  std::size_t end = 0, seen = 0;
  while (end < out.size()) {
    if ((static_cast<unsigned char>(out[end]) & 0xC0) != 0x80 && ++seen == columns) break;
    ++end;
  }
  return out.substr(0, end) + "…";
}

std::string pad(std::string_view text, std::size_t columns, bool right) {
  const std::size_t have = width(text);
  if (have >= columns) return std::string(text);
  const std::string fill(columns - have, ' ');
  return right ? fill + std::string(text) : std::string(text) + fill;
}

std::string wrap(std::string_view text, std::size_t columns, std::size_t indent) {
  const std::string margin(indent, ' ');
  std::string out;
  bool first_line = true;
  while (true) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (!first_line) out += "\n";
    if (!line.empty() && line.front() == ' ') {
      if (!first_line) out += margin;
      out += line;
    } else {
      std::size_t column = indent;
      bool line_start = true;
      if (!first_line && !line.empty()) out += margin;
      while (!line.empty()) {
        const std::size_t blank = line.find(' ');
        const std::string_view word = line.substr(0, blank);
        const std::size_t wide = width(word);
        if (!line_start && column + 1 + wide > columns) {
          out += "\n" + margin;
          column = indent;
          line_start = true;
        }
        if (!line_start) out += ' ', ++column;
        out += word;
        column += wide;
        line_start = false;
        if (blank == std::string_view::npos) break;
        line.remove_prefix(blank + 1);
      }
    }
    first_line = false;
    if (end == std::string_view::npos) return out;
    text.remove_prefix(end + 1);
  }
}

std::string shell_quote(std::string_view word) {
  bool plain = !word.empty();
  for (const char c : word)
    plain = plain && ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || std::strchr("_-./:=@%+,", c));
  if (plain) return std::string(word);
  std::string out = "'";
  for (const char c : word) {
    if (c == '\'') out += "'\\''";
    else out += c;
  }
  return out + "'";
}

}  // namespace flotilla::cli
