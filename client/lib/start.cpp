#include "client/lib/start.hpp"

#include <cstdlib>

#include "proto/base/run_program.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::detail {
namespace {

constexpr std::size_t words_limit = 16u << 10;  // of what `flotilla daemon start` says

// Runs `program daemon start` and waits for it; the daemon itself is in a session of its own by then.
Status start_daemon(const std::string& program) {
  auto end = run_program({program, "daemon", "start"}, Listen::output_and_errors, no_time_limit, words_limit);
  if (!end)
    return fail(Code::unavailable, "no daemon runs, and it cannot be started: " + end.error().message,
                "put the program flotilla into PATH, or its path into FLOTILLA_PROGRAM");
  if (end->code > 0) {  // else whether it worked shows when the socket is tried again
    auto& said = end->said;
    while (!said.empty() && said.back() == '\n') said.pop_back();
    return fail(Code::unavailable, "the daemon cannot be started: " + (said.empty() ? "'" + program + " daemon start' failed" : said),
                "run '" + program + " daemon start' to see why");
  }
  return {};
}

Result<unique_fd> try_connect(const std::filesystem::path& socket) {
  auto fd = channel::connect_unix(socket);
  if (!fd) return fd;
  if (auto status = channel::check_peer_uid(fd->get()); !status) return fail(status.error());
  return fd;
}

}  // namespace

Result<unique_fd> reach_daemon(const std::filesystem::path& socket, bool start, const std::string& program) {
  auto fd = try_connect(socket);
  if (fd || fd.error().code != Code::unavailable) return fd;
  if (!start)
    return fail(Code::unavailable, "no daemon runs (nobody listens at " + socket.native() + ")", "run 'flotilla daemon start'", Retry::yes);
  const char* from_environment = std::getenv("FLOTILLA_PROGRAM");
  if (auto status = start_daemon(!program.empty()                        ? program
                                 : from_environment && *from_environment ? from_environment
                                                                         : "flotilla");
      !status)
    return fail(status.error());
  return try_connect(socket);
}

}  // namespace flotilla::detail
