// Error as it travels: flotilla.v1.Error.
#pragma once

#include "flotilla/v1/types.pb.h"
#include "proto/base/result.hpp"

namespace flotilla {

v1::Error to_wire(const Error& error);
Error from_wire(const v1::Error& error);

}  // namespace flotilla
