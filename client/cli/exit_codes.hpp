// What `flotilla` returns; documented in `flotilla help exit-codes`.
#pragma once

#include "flotilla/v1/types.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::cli::exit_code {

constexpr int ok = 0;
constexpr int failed = 1;  // also: a job that was waited for failed
constexpr int usage = 2;   // wrong command line or description
constexpr int not_found = 3;
constexpr int unavailable = 4;  // the daemon or a machine cannot be reached, or refused us
constexpr int timed_out = 5;    // of `wait`
// Of run, attach, exec and shell, beside the job's own code and 128 + the signal that killed it.
constexpr int time_limit = 124;  // the job's time limit, queue or start time-out
constexpr int no_result = 125;   // Flotilla could not run it, or lost it
constexpr int not_executable = 126;
constexpr int no_program = 127;
constexpr int canceled = 130;
constexpr int signal_base = 128;

int of(const Error& error);
int of(const v1::ExitReason& exit);

}  // namespace flotilla::cli::exit_code
