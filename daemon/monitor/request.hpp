// From bytes to a RequestView, and from a Route to the headers of an answer. No sockets here.
#pragma once

#include <boost/beast/http.hpp>
#include <string>
#include <string_view>

#include "daemon/monitor/core/route.hpp"

namespace flotilla::monitor {

namespace http = boost::beast::http;

// Requests have no body: one that brings a body is refused by the parser.
using Parser = http::request_parser<http::empty_body>;
using Request = http::request<http::empty_body>;
using Response = http::response<http::string_body>;

constexpr std::uint32_t most_header_bytes = 8u << 10;

void prepare(Parser& parser);
// The views are into `request`.
RequestView view_of(const Request& request);

// Status, type and the headers that all answers have: nothing is kept, framed, sniffed or loaded from elsewhere.
Response make_response(const Request& request, unsigned status, std::string_view type, std::string body);
// What a refused route is answered with, as JSON or as a small page.
Response make_refusal(const Request& request, const Route& route);
// What a request is answered with that is not HTTP, or too long.
Response make_bad_request(boost::system::error_code error);
// The head of an answer that ends with the connection.
std::string stream_head(std::string_view type);

}  // namespace flotilla::monitor
