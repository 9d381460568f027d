#include "daemon/transport/core/known_hosts.hpp"

#include <algorithm>
#include <cctype>

#include "proto/base/hex.hpp"

namespace flotilla::daemon {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

bool matches_pattern(std::string_view pattern, std::string_view name) {
  // Only the last '*' needs to be tried again with more: what the ones before it took is enough.
  std::size_t at = 0, in = 0, star = std::string_view::npos, taken = 0;
  while (in < name.size()) {
    if (at < pattern.size() && pattern[at] == '*') {
      star = at++;
      taken = in;
    } else if (at < pattern.size() && (pattern[at] == '?' || pattern[at] == name[in])) {
      ++at;
      ++in;
    } else if (star != std::string_view::npos) {
      at = star + 1;
      in = ++taken;
    } else {
      return false;
    }
  }
  while (at < pattern.size() && pattern[at] == '*') ++at;
  return at == pattern.size();
}

bool matches_hash(std::string_view entry, std::string_view name) {
  // |1|base64 of the salt|base64 of HMAC-SHA1(salt, name)
  const auto middle = entry.find('|', 3);
  if (middle == std::string_view::npos) return false;
  const auto wanted = from_base64(entry.substr(middle + 1));
  return !wanted.empty() && hmac_sha1(from_base64(entry.substr(3, middle - 3)), name) == wanted;
}

bool matches_list(std::string_view list, std::string_view name) {
  bool found = false;
  while (!list.empty()) {
    const auto comma = list.find(',');
    auto each = list.substr(0, comma);
    list = comma == std::string_view::npos ? std::string_view{} : list.substr(comma + 1);
    const bool negated = !each.empty() && each[0] == '!';
    if (negated) each.remove_prefix(1);
    const bool hit = each.substr(0, 3) == "|1|" ? matches_hash(each, name) : matches_pattern(lower(each), name);
    if (hit && negated) return false;
    found = found || hit;
  }
  return found;
}

}  // namespace

std::vector<int> find_known_host_lines(std::string_view file, std::string_view host, int port) {
  auto name = lower(host);
  if (port != 0 && port != 22) name = "[" + name + "]:" + std::to_string(port);
  std::vector<int> lines;
  for (int number = 1; !file.empty(); ++number) {
    const auto end = file.find('\n');
    auto line = file.substr(0, end);
    file = end == std::string_view::npos ? std::string_view{} : file.substr(end + 1);
    const auto skip_blanks = [&] {
      while (!line.empty() && (line[0] == ' ' || line[0] == '\t')) line.remove_prefix(1);
    };
    skip_blanks();
    if (line.empty() || line[0] == '#') continue;
    if (line[0] == '@') {  // @cert-authority, @revoked
      line.remove_prefix(std::min(line.find_first_of(" \t"), line.size()));
      skip_blanks();
    }
    if (matches_list(line.substr(0, line.find_first_of(" \t")), name)) lines.push_back(number);
  }
  return lines;
}

}  // namespace flotilla::daemon
