// Being attached to one job: its output comes here, our input and signals go there. Lives through the daemon's restart.
#pragma once

#include <memory>
#include <string>

#include "client/cli/daemon_client.hpp"

namespace flotilla::cli {

struct SessionOptions {
  bool pass_stdin = false;
  bool raw_terminal = false;      // the job has a terminal: keys go there one by one, and the window's size
  bool pass_signals = false;      // Ctrl-C and others go to the job; block_session_signals() must have been called
  bool show_why = false;          // while it waits, say why (on a terminal only)
  bool hang_up_detaches = false;  // a closed window leaves the job alone (attach); else it gets SIGHUP
  bool redraw = false;            // make a full-screen program draw itself again (attach)
  bool accept_new_host_keys = false;
  bool want_stdout = true;
  bool want_stderr = true;
};

struct SessionResult {
  v1::Job job;         // as last seen
  bool ended = false;  // `exit` is set
  v1::ExitReason exit;
  bool detached = false;       // by the user's keys
  bool left = false;           // the user did not wait for a cancel
  bool output_closed = false;  // nobody reads our stdout any more
};

// Before the first thread is made (gRPC makes some when it connects).
void block_session_signals();
// One of those signals that end a program waits, and nothing takes it yet.
bool end_signal_pending();

// `client` is replaced when the daemon was restarted.
Result<SessionResult> run_session(std::unique_ptr<DaemonClient>& client, v1::AttachOpen open, const SessionOptions& options);

}  // namespace flotilla::cli
