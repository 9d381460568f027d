#include "daemon/transport/core/location.hpp"

#include <charconv>

namespace flotilla::daemon {

Result<Location> parse_location(const std::string& text) {
  const auto wrong = [&](const std::string& what) {
    return fail(Code::invalid_argument, "location '" + text + "': " + what, "write it as user@host:port");
  };
  Location location;
  std::string rest = text;
  if (const auto at = rest.rfind('@'); at != std::string::npos) {
    location.user = rest.substr(0, at);
    rest = rest.substr(at + 1);
    if (location.user.empty()) return wrong("the user is missing before '@'");
  }
  std::string port;
  bool has_port = false;
  if (!rest.empty() && rest.front() == '[') {
    const auto end = rest.find(']');
    if (end == std::string::npos) return wrong("']' is missing");
    location.host = rest.substr(1, end - 1);
    if (end + 1 < rest.size()) {
      if (rest[end + 1] != ':') return wrong("after ']' only ':port' may follow");
      port = rest.substr(end + 2);
      has_port = true;
    }
  } else if (const auto colon = rest.find(':'); colon != std::string::npos && rest.find(':', colon + 1) == std::string::npos) {
    location.host = rest.substr(0, colon);
    port = rest.substr(colon + 1);
    has_port = true;
  } else {
    location.host = rest;  // no colon, or a bare IPv6 address
  }
  if (location.host.empty()) return wrong("the host is missing");
  if (location.host.find_first_of("[]") != std::string::npos) return wrong("brackets stand around an IPv6 address alone");
  // Both travel to programs as arguments: nothing that could be taken for an option, and no blanks.
  for (const auto* part : {&location.user, &location.host}) {
    if (!part->empty() && part->front() == '-') return wrong("'" + *part + "' begins with '-'");
    for (const unsigned char c : *part)
      if (c <= ' ' || c == 0x7f || c == '\'' || c == '"' || c == '\\' || c == '`' || c == '$' || c == ';' || c == '|' || c == '&' ||
          c == '<' || c == '>' || c == '(' || c == ')')
        return wrong("'" + *part + "' has a character that no name has");
  }
  if (has_port) {
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), location.port);
    if (error != std::errc() || end != port.data() + port.size() || location.port < 1 || location.port > 65535)
      return wrong("'" + port + "' is no port (1 to 65535)");
  }
  return location;
}

std::string format_location(const Location& location) {
  std::string text = location.user.empty() ? "" : location.user + "@";
  const bool bracket = location.host.find(':') != std::string::npos;
  text += bracket ? "[" + location.host + "]" : location.host;
  if (location.port) text += ":" + std::to_string(location.port);
  return text;
}

}  // namespace flotilla::daemon
