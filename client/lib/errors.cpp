#include "client/lib/errors.hpp"

#include <flotilla/client.hpp>

namespace flotilla {
namespace {

std::string text_of(const FlotillaError::Details& details) {
  std::string text = details.message;
  for (const auto& fault : details.faults) text += "\n  - " + fault;
  if (details.exit && !details.exit->stderr_tail.empty()) {
    text += "\nlast lines of its stderr:\n" + details.exit->stderr_tail;
    if (text.back() == '\n') text.pop_back();
  }
  if (!details.hint.empty()) text += "\n" + details.hint;
  return text;
}

}  // namespace

FlotillaError::FlotillaError(Details details)
    : std::runtime_error(text_of(details)), details_(std::make_shared<const Details>(std::move(details))) {}
FlotillaError::~FlotillaError() = default;
InvalidArgumentError::~InvalidArgumentError() = default;
NotFoundError::~NotFoundError() = default;
AlreadyExistsError::~AlreadyExistsError() = default;
FailedPreconditionError::~FailedPreconditionError() = default;
UnavailableError::~UnavailableError() = default;
PermissionDeniedError::~PermissionDeniedError() = default;
AuthenticationFailedError::~AuthenticationFailedError() = default;
HostKeyUnknownError::~HostKeyUnknownError() = default;
HostKeyChangedError::~HostKeyChangedError() = default;
TimedOutError::~TimedOutError() = default;
CanceledError::~CanceledError() = default;
UnsupportedError::~UnsupportedError() = default;
ResourceExhaustedError::~ResourceExhaustedError() = default;
VersionMismatchError::~VersionMismatchError() = default;
WorkerFailedError::~WorkerFailedError() = default;
JobFailedError::~JobFailedError() = default;
InternalError::~InternalError() = default;

namespace detail {

void raise(FlotillaError::Details details) {
  switch (details.code) {
    case ErrorCode::invalid_argument: throw InvalidArgumentError(std::move(details));
    case ErrorCode::not_found: throw NotFoundError(std::move(details));
    case ErrorCode::already_exists: throw AlreadyExistsError(std::move(details));
    case ErrorCode::failed_precondition: throw FailedPreconditionError(std::move(details));
    case ErrorCode::unavailable: throw UnavailableError(std::move(details));
    case ErrorCode::permission_denied: throw PermissionDeniedError(std::move(details));
    case ErrorCode::authentication_failed: throw AuthenticationFailedError(std::move(details));
    case ErrorCode::host_key_unknown: throw HostKeyUnknownError(std::move(details));
    case ErrorCode::host_key_changed: throw HostKeyChangedError(std::move(details));
    case ErrorCode::timed_out: throw TimedOutError(std::move(details));
    case ErrorCode::canceled: throw CanceledError(std::move(details));
    case ErrorCode::unsupported: throw UnsupportedError(std::move(details));
    case ErrorCode::resource_exhausted: throw ResourceExhaustedError(std::move(details));
    case ErrorCode::version_mismatch: throw VersionMismatchError(std::move(details));
    case ErrorCode::worker_failed: throw WorkerFailedError(std::move(details));
    case ErrorCode::job_failed: throw JobFailedError(std::move(details));
    case ErrorCode::internal: break;
  }
  details.code = ErrorCode::internal;  // also for a code of a newer daemon
  throw InternalError(std::move(details));
}

void raise(const Error& error) {
  raise(FlotillaError::Details{static_cast<ErrorCode>(error.code), error.message, error.hint, error.retry == Retry::yes, error.faults, {}});
}

}  // namespace detail
}  // namespace flotilla
