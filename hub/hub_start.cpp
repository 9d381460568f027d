#include "hub/hub_start.hpp"

#include <google/protobuf/util/json_util.h>
#include <poll.h>
#include <unistd.h>

#include "proto/base/error_wire.hpp"

namespace flotilla::hub {

std::string format_hub_start(const v1::HubStart& start) {
  const std::string body = start.SerializeAsString();
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>((body.size() >> shift) & 0xff);
  return out + body;
}

Result<std::size_t> parse_hub_start_size(std::string_view four_bytes) {
  std::size_t size = 0;
  for (const unsigned char byte : four_bytes) size = size << 8 | byte;
  if (four_bytes.size() != 4 || size == 0 || size > hub_start_limit)
    return fail(Code::invalid_argument, "what came is not the start of a hub",
                "`flotilla-agent connect` is run by the daemon, not by hand");
  return size;
}

Result<v1::HubStart> parse_hub_start(std::string_view body) {
  v1::HubStart start;
  if (!start.ParseFromArray(body.data(), static_cast<int>(body.size())))
    return fail(Code::invalid_argument, "the start of a hub cannot be read", "are daemon and agent of very different versions?");
  return start;
}

std::string format_hub_line(std::string_view host, std::string_view channel_socket) {
  std::string line(hub_line_start);
  line += host;
  line += ' ';
  line += channel_socket;
  return line + '\n';
}

std::string format_error_line(const Error& error) {
  std::string json;
  google::protobuf::util::JsonPrintOptions one_line;
  if (!google::protobuf::util::MessageToJsonString(to_wire(error), &json, one_line).ok()) json = "{}";
  return "ERROR " + json + "\n";
}

Status read_exactly(int fd, char* to, std::size_t size, std::chrono::steady_clock::time_point until) {
  while (size > 0) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    pollfd wait{fd, POLLIN, 0};
    if (left <= 0 || poll(&wait, 1, static_cast<int>(left)) == 0)
      return fail(Code::timeout, "what was expected on a descriptor did not come in time", {}, Retry::yes);
    const ssize_t n = read(fd, to, size);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return fail(errno_error(Code::unavailable, "read"));
    if (n == 0) return fail(Code::unavailable, "the other side ended before it had said everything", {}, Retry::yes);
    to += n;
    size -= static_cast<std::size_t>(n);
  }
  return {};
}

Result<v1::HubStart> read_hub_start(int fd, std::chrono::milliseconds limit) {
  const auto until = std::chrono::steady_clock::now() + limit;
  char head[4];
  if (auto ok = read_exactly(fd, head, sizeof head, until); !ok) return fail(ok.error());
  const auto size = parse_hub_start_size({head, sizeof head});
  if (!size) return fail(size.error());
  std::string body(*size, '\0');
  if (auto ok = read_exactly(fd, body.data(), body.size(), until); !ok) return fail(ok.error());
  return parse_hub_start(body);
}

Status write_all(int fd, std::string_view data) {
  while (!data.empty()) {
    const ssize_t n = write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      pollfd wait{fd, POLLOUT, 0};
      poll(&wait, 1, -1);
      continue;
    }
    if (n < 0) return fail(errno_error(Code::unavailable, "write"));
    data.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

}  // namespace flotilla::hub
