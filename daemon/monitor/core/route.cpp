#include "daemon/monitor/core/route.hpp"

#include <charconv>
#include <optional>

#include "proto/base/hex.hpp"

namespace flotilla::monitor {
namespace {

constexpr std::string_view api_prefix = "/api/";

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  std::uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Route refuse(Route base, unsigned status, std::string code, std::string message, std::string hint = {}) {
  base.target = Target::refused;
  base.status = status;
  base.code = std::move(code);
  base.message = std::move(message);
  base.hint = std::move(hint);
  return base;
}

// A page elsewhere whose name was pointed at 127.0.0.1 (DNS rebinding) sends its own name here.
bool own_host(std::string_view host, std::uint16_t port) {
  auto number = ":" + std::to_string(port);
  if (host.size() <= number.size() || !host.ends_with(number)) return false;
  host.remove_suffix(number.size());
  return host == "127.0.0.1" || host == "localhost";
}

bool own_origin(std::string_view origin, std::uint16_t port) {
  constexpr std::string_view scheme = "http://";
  return origin.starts_with(scheme) && own_host(origin.substr(scheme.size()), port);
}

bool has_token(const RequestView& request, const Access& access) {
  constexpr std::string_view bearer = "Bearer ";
  if (request.authorization.starts_with(bearer)) return equal_secret(request.authorization.substr(bearer.size()), access.token);
  auto cookie = cookie_value(request.cookie, access.cookie_name());
  return !cookie.empty() && equal_secret(cookie, access.token);
}

Route api_route(Route route, std::string_view path, std::string_view query) {
  route.form = Form::json;
  if (path == "/api/v1/info") {
    route.target = Target::info;
    return route;
  }
  if (path == "/api/v1/snapshot") {
    route.target = Target::snapshot;
    return route;
  }
  if (path == "/api/v1/events") {
    route.target = Target::events;
    return route;
  }
  constexpr std::string_view jobs = "/api/v1/jobs/";
  if (path.starts_with(jobs)) {
    auto rest = path.substr(jobs.size());
    auto slash = rest.find('/');
    auto id = parse_number(rest.substr(0, slash));
    if (!id || *id == 0) return refuse(std::move(route), 400, "INVALID_ARGUMENT", "a job is named by its number, as in /api/v1/jobs/12");
    route.job = *id;
    if (slash == std::string_view::npos) {
      route.target = Target::job;
      return route;
    }
    if (rest.substr(slash) == "/output") {
      auto stream = query_value(query, "stream");
      auto tail = query_value(query, "tail");
      if (stream.empty() || stream == "1" || stream == "stdout") {
        route.stream = 1;
      } else if (stream == "2" || stream == "stderr") {
        route.stream = 2;
      } else {
        return refuse(std::move(route), 400, "INVALID_ARGUMENT", "stream must be 1 (stdout) or 2 (stderr)");
      }
      route.tail_bytes = default_tail_bytes;
      if (!tail.empty()) {
        auto bytes = parse_number(tail);
        if (!bytes || *bytes == 0) return refuse(std::move(route), 400, "INVALID_ARGUMENT", "tail must be a number of bytes, 1 or more");
        route.tail_bytes = std::min(*bytes, most_tail_bytes);
      }
      route.target = Target::output;
      return route;
    }
  }
  return refuse(std::move(route), 404, "NOT_FOUND", "there is nothing at this address of the API",
                "the API has /api/v1/info, /snapshot, /events, /jobs/ID and /jobs/ID/output");
}

}  // namespace

std::string decode_component(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+') {
      out += ' ';
    } else if (text[i] == '%' && i + 2 < text.size() && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0) {
      out += static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string query_value(std::string_view query, std::string_view name) {
  while (!query.empty()) {
    auto pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), pair.size() + 1));
    auto equals = pair.find('=');
    if (equals != std::string_view::npos && pair.substr(0, equals) == name) return decode_component(pair.substr(equals + 1));
  }
  return {};
}

std::string_view cookie_value(std::string_view cookies, std::string_view name) {
  while (!cookies.empty()) {
    auto pair = cookies.substr(0, cookies.find(';'));
    cookies.remove_prefix(std::min(cookies.size(), pair.size() + 1));
    while (!pair.empty() && pair.front() == ' ') pair.remove_prefix(1);
    auto equals = pair.find('=');
    if (equals != std::string_view::npos && pair.substr(0, equals) == name) return pair.substr(equals + 1);
  }
  return {};
}

Route route(const RequestView& request, const Access& access) {
  Route route;
  auto target = request.target;
  auto path = target.substr(0, target.find('?'));
  auto query = path.size() < target.size() ? target.substr(path.size() + 1) : std::string_view();
  route.form = path.starts_with(api_prefix) ? Form::json : Form::html;
  route.head = request.method == "HEAD";

  if (!own_host(request.host, access.port))
    return refuse(std::move(route), 421, "PERMISSION_DENIED", "this page answers only to the names 127.0.0.1 and localhost with its port",
                  "open the address that 'flotilla web' prints");
  if (!route.head && request.method != "GET")
    return refuse(std::move(route), 405, "UNSUPPORTED", "only GET and HEAD are understood here",
                  "use the flotilla command, or the C++ and Python libraries, to change anything");

  // The link that was printed. It may be followed from anywhere (a mail, a chat): it carries the secret itself.
  if (path == "/") {
    auto token = query_value(query, "token");
    if (!token.empty()) {
      if (!equal_secret(token, access.token))
        return refuse(std::move(route), 401, "PERMISSION_DENIED", "the token in this link is not the one of the daemon that runs now",
                      "run 'flotilla web' for a fresh link");
      route.target = Target::login;
      return route;
    }
  }
  if (!request.known_user && !has_token(request, access))
    return refuse(std::move(route), 401, "PERMISSION_DENIED", "this browser has not been let in",
                  "run 'flotilla web' and open the link that it prints");
  // A browser attaches the cookie for pages of other ports too ("same-site"), and asks from its user's process for any site; those are
  // not ours.
  bool foreign =
      (!request.origin.empty() && !own_origin(request.origin, access.port)) ||
      (route.form == Form::json && !request.fetch_site.empty() && request.fetch_site != "same-origin" && request.fetch_site != "none");
  if (foreign) return refuse(std::move(route), 403, "PERMISSION_DENIED", "another site may not read this page");

  if (route.form == Form::json) {
    route.last_event_id = std::string(request.last_event_id);
    return api_route(std::move(route), path, query);
  }
  route.target = Target::page;
  route.path = path == "/" ? std::string("/index.html") : std::string(path);
  return route;
}

}  // namespace flotilla::monitor
