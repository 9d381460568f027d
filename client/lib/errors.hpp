// The one place where failures become exceptions.
#pragma once

#include <flotilla/client.hpp>

#include "proto/base/result.hpp"

namespace flotilla::detail {

[[noreturn]] void raise(FlotillaError::Details details);  // the class that belongs to details.code
[[noreturn]] void raise(const Error& error);

template <class T>
T value_or_raise(Result<T> result) {
  if (!result) raise(result.error());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

}  // namespace flotilla::detail
