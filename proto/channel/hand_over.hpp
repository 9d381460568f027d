// Taking a channel: `FLOTILLA-TAKE` over a unix socket (PROTOCOL.md 5.1), both sides. The giver is the pilot (the worker's own
// socket) or the daemon (one half of a socket pair); the taker a client.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flotilla/v1/types.pb.h"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::channel {

// ---- counters: a memfd of three 64-bit numbers in native order; the client writes, the giver reads

struct Counters {
  std::atomic<std::uint64_t> calls{0}, bytes_to_worker{0}, bytes_from_worker{0};
};
static_assert(sizeof(Counters) == 24 && std::atomic<std::uint64_t>::is_always_lock_free);

// Owns the mapping.
class CountersMap {
 public:
  CountersMap() = default;
  static Result<CountersMap> create();           // a new memfd; fd() is what is handed over
  static Result<CountersMap> map(unique_fd fd);  // one that was handed over; refuses a file that is too short
  CountersMap(CountersMap&& other) noexcept;
  CountersMap& operator=(CountersMap&& other) noexcept;
  ~CountersMap();
  int fd() const { return fd_.get(); }
  Counters* operator->() const { return counters_; }
  Counters& operator*() const { return *counters_; }
  explicit operator bool() const { return counters_ != nullptr; }

 private:
  unique_fd fd_;
  Counters* counters_ = nullptr;
};

// ---- texts, pure

constexpr std::size_t take_request_bytes = 16 + 64 + 1;  // "FLOTILLA-TAKE 1 " + hex + "\n"
constexpr std::size_t reply_line_limit = 256u << 10;     // an ExitReason's stderr tail is at most 4 KiB before JSON escapes

std::string format_take_request(std::string_view ticket);  // 32 bytes
// The ticket (32 bytes). `line` is all take_request_bytes.
Result<std::string> parse_take_request(std::string_view line);
inline constexpr std::string_view take_ok = "OK\n";  // goes out with the two fds
std::string format_take_error(const Error& error);   // "ERROR <JSON>\n"
std::string format_end(const v1::ExitReason& exit);  // "END <JSON>\n"
// A line without its newline: "ERROR <JSON>" -> the error, "END <JSON>" -> the reason. Anything else is an error.
Result<v1::Error> parse_take_error(std::string_view line);
Result<v1::ExitReason> parse_end(std::string_view line);

// ---- file descriptors over a unix socket

// One message with bytes and fds. The kernel duplicates the fds; the sender closes its own. Blocks only where the socket does.
Status send_fds(int socket, std::string_view bytes, const std::vector<int>& fds);
struct Received {
  std::string bytes;           // empty: end of stream
  std::vector<unique_fd> fds;  // close-on-exec
};
// At most `limit` bytes; bytes that came with fds come alone. errno EAGAIN is reported as Retry::yes.
Result<Received> receive_fds(int socket, std::size_t limit);
// The uid at the other end of a unix socket must be ours.
Status check_peer_uid(int socket);

// ---- the taker, blocking

struct TakenChannel {
  unique_fd fd;  // the byte stream, blocking mode
  CountersMap counters;
  unique_fd control;  // kept as long as the channel is used: its end tells the giver that the client is gone
};
Result<unique_fd> connect_unix(const std::filesystem::path& socket);
// `refusal`, if given, is filled in when the giver answered with ERROR: it may name the worker's end.
Result<TakenChannel> take_channel(const std::filesystem::path& socket, std::string_view ticket, std::chrono::milliseconds timeout,
                                  v1::Error* refusal = nullptr);
// Waits for the END line on `control`. nullopt: the time ran out. An error: the giver went away without a word.
Result<std::optional<v1::ExitReason>> read_end(int control, std::string& partial, std::chrono::milliseconds timeout);

}  // namespace flotilla::channel
