#include "proto/base/result.hpp"

#include <cerrno>
#include <cstring>

namespace flotilla {

std::string Error::text() const {
  std::string all = message;
  for (const auto& fault : faults) all += "\n  - " + fault;
  if (!hint.empty()) all += (faults.empty() ? "; " : "\n") + hint;
  return all;
}

Error errno_error(Code code, std::string_view doing) {
  const int number = errno;
  return Error{code, std::string("cannot ") + std::string(doing) + ": " + std::strerror(number), {}, Retry::no, {}};
}

}  // namespace flotilla
