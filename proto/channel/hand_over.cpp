#include "proto/channel/hand_over.hpp"

#include <google/protobuf/util/json_util.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "proto/base/error_wire.hpp"
#include "proto/base/random.hpp"
#include "proto/channel/opening.hpp"

namespace flotilla::channel {
namespace {

constexpr std::string_view take_word = "FLOTILLA-TAKE 1 ";
constexpr std::string_view error_word = "ERROR ";
constexpr std::string_view end_word = "END ";
constexpr std::size_t fds_limit = 8;

std::string json_line(std::string_view word, const google::protobuf::Message& message) {
  std::string json;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  // Text from outside may not be UTF-8 in spite of its type; then only the fixed words go out.
  if (!google::protobuf::util::MessageToJsonString(message, &json, options).ok()) json = "{}";
  // The printer writes newlines as \n; a raw one would end the line early.
  std::replace(json.begin(), json.end(), '\n', ' ');
  return std::string(word) + json + "\n";
}

Status parse_json_line(std::string_view word, std::string_view line, google::protobuf::Message& into) {
  if (line.substr(0, word.size()) != word || line.size() > reply_line_limit)
    return fail(Code::invalid_argument, "what came over a channel's control connection is no line that starts with " +
                                            std::string(word.substr(0, word.size() - 1)));
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // of a newer peer
  const auto json = line.substr(word.size());
  if (auto status = google::protobuf::util::JsonStringToMessage({json.data(), json.size()}, &into, options); !status.ok())
    return fail(Code::invalid_argument,
                "the line " + std::string(word) + "... on a channel's control connection is not JSON: " + std::string(status.message()));
  return {};
}

using Clock = std::chrono::steady_clock;

// False: the time ran out.
Result<bool> wait_readable(int fd, Clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd polled{fd, POLLIN, 0};
    const int ready = ::poll(&polled, 1, static_cast<int>(std::clamp<long long>(left, 0, 1 << 30)));
    if (ready > 0) return true;
    if (ready == 0 && left <= 0) return false;
    if (ready < 0 && errno != EINTR) return fail(errno_error(Code::internal, "cannot wait for a channel's control connection"));
  }
}

}  // namespace

// ---- counters ----------------------------------------------------------------------------------

Result<CountersMap> CountersMap::create() {
  unique_fd fd(memfd_create("flotilla-counters", MFD_CLOEXEC));
  if (!fd || ftruncate(fd.get(), sizeof(Counters)) != 0)
    return fail(errno_error(Code::resource_exhausted, "cannot make a channel's counters"));
  return map(std::move(fd));
}

Result<CountersMap> CountersMap::map(unique_fd fd) {
  struct stat info {};
  if (fstat(fd.get(), &info) != 0 || info.st_size < static_cast<off_t>(sizeof(Counters)))
    return fail(Code::invalid_argument, "the counters of a channel are too short");
  void* at = mmap(nullptr, sizeof(Counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return fail(errno_error(Code::resource_exhausted, "cannot map a channel's counters"));
  CountersMap map;
  map.fd_ = std::move(fd);
  map.counters_ = static_cast<Counters*>(at);  // all zero bytes are a valid start
  return map;
}

CountersMap::CountersMap(CountersMap&& other) noexcept : fd_(std::move(other.fd_)), counters_(std::exchange(other.counters_, nullptr)) {}
CountersMap& CountersMap::operator=(CountersMap&& other) noexcept {
  if (this != &other) {
    if (counters_) munmap(counters_, sizeof(Counters));
    fd_ = std::move(other.fd_);
    counters_ = std::exchange(other.counters_, nullptr);
  }
  return *this;
}
CountersMap::~CountersMap() {
  if (counters_) munmap(counters_, sizeof(Counters));
}

// ---- texts -------------------------------------------------------------------------------------

std::string format_take_request(std::string_view ticket) { return std::string(take_word) + to_hex(ticket) + "\n"; }

Result<std::string> parse_take_request(std::string_view line) {
  if (line.size() == take_request_bytes && line.substr(0, take_word.size()) == take_word && line.back() == '\n')
    if (auto ticket = from_hex(line.substr(take_word.size(), 2 * ticket_bytes)); ticket && ticket->size() == ticket_bytes) return *ticket;
  return fail(Code::invalid_argument, "what came is not a request for a channel (FLOTILLA-TAKE 1 and a ticket of 64 hexadecimal digits)");
}

std::string format_take_error(const Error& error) { return json_line(error_word, to_wire(error)); }
std::string format_end(const v1::ExitReason& exit) { return json_line(end_word, exit); }

Result<v1::Error> parse_take_error(std::string_view line) {
  v1::Error wire;
  if (auto status = parse_json_line(error_word, line, wire); !status) return fail(status.error());
  return wire;
}

Result<v1::ExitReason> parse_end(std::string_view line) {
  v1::ExitReason exit;
  if (auto status = parse_json_line(end_word, line, exit); !status) return fail(status.error());
  return exit;
}

// ---- file descriptors --------------------------------------------------------------------------

Status send_fds(int socket, std::string_view bytes, const std::vector<int>& fds) {
  if (bytes.empty() || fds.size() > fds_limit) return fail(Code::internal, "fds travel with at least one byte, at most 8 at once");
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * fds_limit)] = {};
  iovec piece{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  for (;;) {
    const auto sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
    if (sent == static_cast<long>(bytes.size())) return {};
    if (sent >= 0) return fail(Code::internal, "a message with fds went out in part");  // they are far below a socket's buffer
    if (errno != EINTR) {
      auto error = errno_error(Code::unavailable, "cannot hand over a socket");
      if (errno == EAGAIN) error.retry = Retry::yes;
      return fail(std::move(error));
    }
  }
}

Result<Received> receive_fds(int socket, std::size_t limit) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * fds_limit)];
  Received received;
  received.bytes.resize(limit);
  iovec piece{received.bytes.data(), limit};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  long count;
  do count = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  while (count < 0 && errno == EINTR);
  if (count < 0) {
    const bool again = errno == EAGAIN || errno == EWOULDBLOCK;
    auto error = errno_error(Code::unavailable, "cannot receive from a unix socket");
    if (again) error.retry = Retry::yes;
    return fail(std::move(error));
  }
  received.bytes.resize(static_cast<std::size_t>(count));
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < fds; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      received.fds.emplace_back(fd);
    }
  }
  return received;
}

Status check_peer_uid(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return fail(errno_error(Code::permission_denied, "cannot tell who is at the other end of a unix socket"));
  if (peer.uid != geteuid())
    return fail(Code::permission_denied, "user " + std::to_string(peer.uid) + " knocked at a socket of user " + std::to_string(geteuid()));
  return {};
}

// ---- the taker ---------------------------------------------------------------------------------

Result<unique_fd> connect_unix(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string& text = path.native();
  if (text.size() >= sizeof address.sun_path)
    return fail(
        Code::invalid_argument,
        "the socket's path " + text + " is longer than the " + std::to_string(sizeof address.sun_path - 1) + " bytes that Linux takes",
        "set FLOTILLA_RUNTIME_DIR to a shorter one");
  std::memcpy(address.sun_path, text.data(), text.size());
  unique_fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail(errno_error(Code::resource_exhausted, "cannot make a socket"));
  while (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    if (errno != EINTR) return fail(errno_error(Code::unavailable, "cannot connect to " + text));
  return fd;
}

Result<TakenChannel> take_channel(const std::filesystem::path& socket, std::string_view ticket, std::chrono::milliseconds timeout,
                                  v1::Error* refusal) {
  const auto deadline = Clock::now() + timeout;
  auto control = connect_unix(socket);
  if (!control) return fail(control.error());
  if (auto status = check_peer_uid(control->get()); !status) return fail(status.error());
  if (auto status = send_fds(control->get(), format_take_request(ticket), {}); !status) return fail(status.error());
  std::string reply;
  std::vector<unique_fd> fds;
  while (reply != take_ok && (reply.empty() || reply.back() != '\n')) {
    auto readable = wait_readable(control->get(), deadline);
    if (!readable) return fail(readable.error());
    if (!*readable)
      return fail(Code::timeout,
                  "nobody handed the channel over at " + socket.native() + " within " + std::to_string(timeout.count()) + " ms");
    // The first three bytes by themselves: what follows an OK is another message.
    auto part = receive_fds(control->get(), reply.size() < take_ok.size() ? take_ok.size() - reply.size() : 4096);
    if (!part) return fail(part.error());
    if (part->bytes.empty())
      return fail(Code::unavailable, "the channel's giver at " + socket.native() + " closed the connection without an answer");
    reply += part->bytes;
    for (auto& fd : part->fds) fds.push_back(std::move(fd));
    if (reply.size() > reply_line_limit) return fail(Code::internal, "the answer to a request for a channel has no end");
  }
  if (reply != take_ok) {
    auto error = parse_take_error(std::string_view(reply).substr(0, reply.size() - 1));
    if (!error) return fail(error.error());
    if (refusal) *refusal = *error;
    return fail(from_wire(*error));
  }
  if (fds.size() != 2)
    return fail(Code::internal, "a channel was handed over with " + std::to_string(fds.size()) + " sockets instead of 2");
  auto counters = CountersMap::map(std::move(fds[1]));
  if (!counters) return fail(counters.error());
  return TakenChannel{std::move(fds[0]), std::move(*counters), std::move(*control)};
}

Result<std::optional<v1::ExitReason>> read_end(int control, std::string& partial, std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  for (;;) {
    if (const auto newline = partial.find('\n'); newline != std::string::npos) {
      auto exit = parse_end(std::string_view(partial).substr(0, newline));
      if (!exit) return fail(exit.error());
      return std::optional<v1::ExitReason>(std::move(*exit));
    }
    if (partial.size() > reply_line_limit) return fail(Code::internal, "the end of a channel is told by a line without an end");
    auto readable = wait_readable(control, deadline);
    if (!readable) return fail(readable.error());
    if (!*readable) return std::optional<v1::ExitReason>();
    auto part = receive_fds(control, 4096);
    if (!part) return fail(part.error());
    if (part->bytes.empty()) return fail(Code::unavailable, "the process that gave the channel went away without a word");
    partial += part->bytes;
  }
}

}  // namespace flotilla::channel
