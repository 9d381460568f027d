// Any bytes as a browser's request: nothing crashes, and whoever does not show the token gets nothing but a refusal.
#include <boost/asio/buffer.hpp>
#include <cstdint>
#include <cstdlib>
#include <sstream>

#include "daemon/monitor/request.hpp"

using namespace flotilla::monitor;

namespace {
// Longer than a fuzzer guesses; an input may hold it only through the mark below.
const Access access_{8080, "f3a9c1d2e4b5968778695a4b3c2d1e0f"};

void must(bool holds) {
  if (!holds) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string text(reinterpret_cast<const char*>(data), size);
  // "@T" stands for the token, so that what lies behind it is reached as well.
  bool knows = false;
  for (std::size_t at; (at = text.find("@T")) != std::string::npos; knows = true) text.replace(at, 2, access_.token);

  Parser parser;
  prepare(parser);
  parser.eager(true);
  boost::system::error_code error;
  parser.put(boost::asio::buffer(text), error);
  if (error && error != http::error::need_more) {
    must(make_bad_request(error).result_int() >= 400);
    return 0;
  }
  if (!parser.is_done()) return 0;
  const auto& request = parser.get();
  auto asked = route(view_of(request), access_);
  if (asked.target == Target::refused) {
    auto response = make_refusal(request, asked);
    must(response.result_int() >= 400 && response.result_int() < 500);
    must(response.body().find('<') == std::string::npos || asked.form == Form::html);
    must(response.body().find(access_.token) == std::string::npos);
    std::ostringstream out;
    out << response;
  } else {
    must(knows);
    must(asked.target != Target::output || (asked.job != 0 && asked.tail_bytes <= most_tail_bytes));
    must(asked.target != Target::page || asked.path.starts_with('/') || !request.target().starts_with('/'));
  }
  return 0;
}
