#include "daemon/monitor/request.hpp"

#include "daemon/monitor/json.hpp"

namespace flotilla::monitor {
namespace {

struct Header {
  const char* name;
  const char* value;
};

constexpr Header common_headers[] = {
    {"Content-Security-Policy",
     "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
     "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
    {"Cache-Control", "no-store"},
    {"X-Content-Type-Options", "nosniff"},
    {"X-Frame-Options", "DENY"},
    {"Referrer-Policy", "no-referrer"},
    {"Cross-Origin-Opener-Policy", "same-origin"},
    {"Cross-Origin-Resource-Policy", "same-origin"},
};

std::string_view view(boost::beast::string_view text) { return {text.data(), text.size()}; }

std::string escape_html(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

}  // namespace

void prepare(Parser& parser) {
  parser.header_limit(most_header_bytes);
  parser.body_limit(0);
}

RequestView view_of(const Request& request) {
  RequestView out;
  out.method = view(request.method_string());
  out.target = view(request.target());
  out.host = view(request[http::field::host]);
  out.origin = view(request[http::field::origin]);
  out.fetch_site = view(request["Sec-Fetch-Site"]);
  out.cookie = view(request[http::field::cookie]);
  out.authorization = view(request[http::field::authorization]);
  out.last_event_id = view(request["Last-Event-ID"]);
  return out;
}

Response make_response(const Request& request, unsigned status, std::string_view type, std::string body) {
  Response response(static_cast<http::status>(status), request.version());
  for (const auto& header : common_headers) response.set(header.name, header.value);
  response.set(http::field::content_type, boost::beast::string_view(type.data(), type.size()));
  response.keep_alive(request.keep_alive());
  response.content_length(body.size());
  if (request.method() != http::verb::head) response.body() = std::move(body);
  return response;
}

Response make_refusal(const Request& request, const Route& route) {
  std::string body;
  if (route.form == Form::html) {
    body = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Flotilla</title><h1>Flotilla</h1><p>" +
           escape_html(route.message) + ".</p>";
    if (!route.hint.empty()) body += "<p>What to do: " + escape_html(route.hint) + ".</p>";
    body += "</html>\n";
  } else {
    body = error_json(route.code, route.message, route.hint);
  }
  auto response =
      make_response(request, route.status, route.form == Form::html ? "text/html; charset=utf-8" : "application/json", std::move(body));
  if (route.status == 405) response.set(http::field::allow, "GET, HEAD");
  return response;
}

Response make_bad_request(boost::system::error_code error) {
  Request none;
  none.version(11);
  none.keep_alive(false);
  if (error == http::error::header_limit || error == http::error::buffer_overflow)
    return make_response(none, 431, "application/json",
                         error_json("INVALID_ARGUMENT", "the headers of this request are longer than 8 KiB",
                                    "delete the cookies of 127.0.0.1 in this browser"));
  if (error == http::error::unexpected_body || error == http::error::body_limit)
    return make_response(none, 413, "application/json", error_json("INVALID_ARGUMENT", "a request has no body here", ""));
  return make_response(none, 400, "application/json",
                       error_json("INVALID_ARGUMENT", "this is not an HTTP request: " + error.message(), ""));
}

std::string stream_head(std::string_view type) {
  std::string out = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: ";
  out += type;
  out += "\r\n";
  for (const auto& header : common_headers) {
    out += header.name;
    out += ": ";
    out += header.value;
    out += "\r\n";
  }
  out += "\r\n";
  return out;
}

}  // namespace flotilla::monitor
