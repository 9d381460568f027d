// Finding the daemon's socket, and starting the daemon when there is none.
#pragma once

#include <filesystem>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::cli {

struct DaemonSocket {
  unique_fd fd;
  int pid = 0;  // of the daemon
};
// NOT_FOUND = no daemon runs. The socket's owner must be this user.
Result<DaemonSocket> connect_daemon_socket();

// Starts `flotilla daemon run` in a session of its own and waits until its socket takes connections. One at a time: who comes
// second finds it running. Returns true when it was started by this call.
enum class LocalPilot { as_configured, none };
Result<bool> start_daemon(LocalPilot local_pilot = LocalPilot::as_configured);

// Left by `flotilla daemon stop`, removed by the next start: programs that are attached then do not start the daemon again.
std::filesystem::path stopped_marker();

// Waits until that process is gone; false after `limit_ms`.
bool wait_for_end(int pid, int limit_ms);

}  // namespace flotilla::cli
