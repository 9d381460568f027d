// The pilot process: `flotilla-agent pilot --serve GUARD_PID`, started by the guard.
#pragma once

namespace flotilla::pilot {

// Returns the exit code, after the pilot's end.
int serve_pilot(int guard_pid);

}  // namespace flotilla::pilot
