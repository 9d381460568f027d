// Text that travels in messages must be UTF-8: the other side refuses the whole message else, and cannot say why.
#pragma once

#include <string_view>

#include "flotilla/v1/types.pb.h"
#include "proto/base/result.hpp"

namespace flotilla {

bool is_utf8(std::string_view text);
// INVALID_ARGUMENT names what is not.
Status check_text(const v1::JobSpec& spec);

}  // namespace flotilla
