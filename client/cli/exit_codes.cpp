#include "client/cli/exit_codes.hpp"

namespace flotilla::cli::exit_code {

int of(const Error& error) {
  switch (error.code) {
    case Code::invalid_argument: return usage;
    case Code::not_found: return not_found;
    case Code::unavailable:
    case Code::permission_denied:
    case Code::authentication_failed:
    case Code::host_key_unknown:
    case Code::host_key_changed:
    case Code::version_mismatch: return unavailable;
    case Code::timeout: return timed_out;
    case Code::canceled: return canceled;
    default: return failed;
  }
}

int of(const v1::ExitReason& exit) {
  switch (exit.kind()) {
    case v1::EXITED: return exit.code();
    case v1::SIGNALED: return signal_base + exit.signal();
    case v1::TIME_LIMIT:
    case v1::QUEUE_TIMEOUT:
    case v1::START_TIMEOUT: return time_limit;
    case v1::CANCELED_BY_USER: return canceled;
    case v1::START_FAILED: return exit.code() == not_executable || exit.code() == no_program ? exit.code() : no_result;
    default: return no_result;
  }
}

}  // namespace flotilla::cli::exit_code
