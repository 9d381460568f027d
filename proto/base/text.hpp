// Text that travels in messages must be UTF-8: the other side refuses the whole message else, and cannot say why.
#pragma once

#include <string>
#include <string_view>

#include "flotilla/v1/types.pb.h"
#include "proto/base/result.hpp"

namespace flotilla {

bool is_utf8(std::string_view text);
// U+FFFD for each byte that belongs to no character.
std::string to_utf8(std::string_view text);
// All text of a message, for what comes from outside: error output, names of hosts, what other programs say. Without that of maps.
void make_utf8(google::protobuf::Message& message);
// INVALID_ARGUMENT names the field that is not UTF-8.
Status check_text(const google::protobuf::Message& message);
// INVALID_ARGUMENT names what is not.
Status check_text(const v1::JobSpec& spec);

}  // namespace flotilla
