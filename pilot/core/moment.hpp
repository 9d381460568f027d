// Time in the core: what has passed on CLOCK_BOOTTIME. It comes in, nothing here reads a clock.
#pragma once

#include <chrono>

namespace flotilla::pilot {

using Moment = std::chrono::nanoseconds;  // since boot
using Millis = std::chrono::milliseconds;

}  // namespace flotilla::pilot
