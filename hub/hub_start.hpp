// How HubStart travels: four bytes of length, the most significant first, then the serialised message. On the connector's
// stdin, from connector to hub on the link socket, and on the stdin of a hub that is started. It holds secrets.
// The hub answers a connector with one line: "FLOTILLA-HUB 1 <host> <channel socket>", "ERROR <JSON of Error>" (these two are
// passed on), or "REPLACED": it has no pilots, is of another build, and ends; the connector starts a new one.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "flotilla/v1/link.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::hub {

constexpr std::size_t hub_start_limit = 1u << 20;
inline constexpr std::string_view replaced_line = "REPLACED\n";
inline constexpr std::string_view ready_line = "READY\n";  // of a hub that was started, on its stdout
inline constexpr std::string_view hub_line_start = "FLOTILLA-HUB 1 ";

std::string format_hub_start(const v1::HubStart& start);
// The length that four bytes announce; an error where it is absurd.
Result<std::size_t> parse_hub_start_size(std::string_view four_bytes);
Result<v1::HubStart> parse_hub_start(std::string_view body);

std::string format_hub_line(std::string_view host, std::string_view channel_socket);
std::string format_error_line(const Error& error);

// Blocking, for connector and hub at their start. An end of the stream is an error.
Status read_exactly(int fd, char* to, std::size_t size, std::chrono::steady_clock::time_point until);
Result<v1::HubStart> read_hub_start(int fd, std::chrono::milliseconds limit);
Status write_all(int fd, std::string_view data);

}  // namespace flotilla::hub
