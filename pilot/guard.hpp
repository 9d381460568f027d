// The guard: parent and subreaper of the pilot. It runs before gRPC is touched, on one thread, and does one thing after the
// start: when the pilot has died it ends every descendant and removes what the pilot left.
#pragma once

#include <string>

namespace flotilla::pilot {

// `flotilla-agent pilot`: reads PilotStart from stdin, starts guard and pilot, says how it went. Returns the exit code.
int start_pilot();

// How the pilot reports to its guard, one line each on a pipe:
//   REMOVE <path>      a folder to be removed when the pilot is gone
//   LOG <path>         where a last line can be written
//   REGISTERED
//   FAILED <reason, with newlines as \x1f>
constexpr char line_break_stand_in = '\x1f';
constexpr int config_fd = 3;  // in the pilot process: PilotStart, serialised
constexpr int report_fd = 4;

}  // namespace flotilla::pilot
