#include "proto/base/version.hpp"

#ifndef FLOTILLA_BUILD
#error "FLOTILLA_BUILD is set by the build"
#endif

namespace flotilla {
const char* build_version() { return FLOTILLA_BUILD; }
}  // namespace flotilla
