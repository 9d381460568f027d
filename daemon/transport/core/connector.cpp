#include "daemon/transport/core/connector.hpp"

#include <google/protobuf/util/json_util.h>

#include "proto/base/error_wire.hpp"

namespace flotilla::daemon {

std::string format_hub_start(const v1::HubStart& start) {
  const auto body = start.SerializeAsString();
  const auto size = static_cast<std::uint32_t>(body.size());
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(size >> shift & 0xff);
  return out + body;
}

Result<HubAnswer> parse_hub_answer(std::string_view line) {
  constexpr std::string_view ok = "FLOTILLA-HUB 1 ", error = "ERROR ";
  if (line.substr(0, error.size()) == error) {
    v1::Error wire;
    const auto parsed = google::protobuf::util::JsonStringToMessage(std::string(line.substr(error.size())), &wire);
    if (parsed.ok()) return fail(from_wire(wire));
    return fail(Code::unavailable, "the hub could not be started: " + std::string(line.substr(error.size())));
  }
  if (line.substr(0, ok.size()) == ok) {
    const auto rest = line.substr(ok.size());
    const auto blank = rest.find(' ');
    if (blank != std::string_view::npos && blank > 0 && blank + 1 < rest.size())
      return HubAnswer{std::string(rest.substr(0, blank)), std::string(rest.substr(blank + 1))};
  }
  return fail(Code::internal, "the connector said something that this daemon does not understand: " + std::string(line.substr(0, 200)),
              "the agent there may be of another version: flotilla daemon restart");
}

}  // namespace flotilla::daemon
