// Commands that a text names ("see 'flotilla pilot list'") reach the user's own daemon; a script's is another. Pure.
#pragma once

#include <string>
#include <string_view>

namespace flotilla::amuse {

// With FLOTILLA_STATE_DIR=`state` before each command of `flotilla` that asks a daemon.
std::string own_words(std::string_view text, std::string_view state);

}  // namespace flotilla::amuse
