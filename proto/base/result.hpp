// Expected failures are values. An Error names the thing, the cause and the next step.
#pragma once

#include <string>
#include <tl/expected.hpp>
#include <utility>
#include <vector>

namespace flotilla {

// The values are those of flotilla.v1.ErrorCode.
enum class Code {
  invalid_argument = 1,
  not_found = 2,
  already_exists = 3,
  failed_precondition = 4,
  unavailable = 5,
  permission_denied = 6,
  authentication_failed = 7,
  host_key_unknown = 8,
  host_key_changed = 9,
  timeout = 10,
  canceled = 11,
  unsupported = 12,
  resource_exhausted = 13,
  version_mismatch = 14,
  worker_failed = 15,
  internal = 16,
};

enum class Retry { no, yes };

struct Error {
  Code code = Code::internal;
  std::string message;  // names the thing and the cause
  std::string hint;     // what to do next; may be empty
  Retry retry = Retry::no;
  std::vector<std::string> faults;  // all that is wrong with a description
  std::string exit;                 // with worker_failed: flotilla.v1.ExitReason, serialised

  // "message; hint" with the faults below, for a terminal or a log.
  std::string text() const;
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

inline tl::unexpected<Error> fail(Code code, std::string message, std::string hint = {}, Retry retry = Retry::no) {
  return tl::unexpected<Error>(Error{code, std::move(message), std::move(hint), retry, {}});
}
inline tl::unexpected<Error> fail(Error error) { return tl::unexpected<Error>(std::move(error)); }

// "cannot open /x: No such file or directory" from the present errno.
Error errno_error(Code code, std::string_view doing);

}  // namespace flotilla
