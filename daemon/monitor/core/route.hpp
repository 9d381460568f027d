// What a request of a browser asks for, and whether it may: decided from its headers alone.
// Everything here is hostile input until the token has been seen.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flotilla::monitor {

// The headers that matter. Views into the request, empty = not sent.
struct RequestView {
  std::string_view method;
  std::string_view target;  // "/path?query", as sent
  std::string_view host;
  std::string_view origin;
  std::string_view fetch_site;  // Sec-Fetch-Site: which site the browser says the request comes from
  std::string_view cookie;
  std::string_view authorization;
  std::string_view last_event_id;
  bool known_user = false;  // not a header: a process of the user's own, where those need no token
};

// Who is let in: the port that we listen on, and the secret.
struct Access {
  std::uint16_t port = 0;
  std::string token;
  // Cookies do not tell ports apart, so that the port is in the name: two daemons of one host keep apart.
  std::string cookie_name() const { return "flotilla_" + std::to_string(port); }
};

enum class Target { login, page, info, snapshot, events, job, output, refused };
enum class Form { json, html };  // how a refusal is told: the API in JSON, a person in HTML

struct Route {
  Target target = Target::refused;
  bool head = false;  // headers only
  std::string path;   // page: "/index.html"
  std::uint64_t job = 0;
  std::uint32_t stream = 1;  // 1 stdout, 2 stderr
  std::uint64_t tail_bytes = 0;
  std::string last_event_id;
  // refused
  unsigned status = 0;
  Form form = Form::json;
  std::string code;  // a name of flotilla.v1.ErrorCode
  std::string message;
  std::string hint;
};

constexpr std::uint64_t default_tail_bytes = 64u << 10;
constexpr std::uint64_t most_tail_bytes = 1u << 20;  // a browser shows no more with comfort

Route route(const RequestView& request, const Access& access);

// "a%20b+c" -> "a b c"; a broken escape stays as it is.
std::string decode_component(std::string_view text);
// The value of `name` in "a=1&name=2"; empty when it is not there.
std::string query_value(std::string_view query, std::string_view name);
// The value of `name` in "a=1; name=2".
std::string_view cookie_value(std::string_view cookies, std::string_view name);

}  // namespace flotilla::monitor
