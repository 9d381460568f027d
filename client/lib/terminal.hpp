// A question on the user's terminal that can be withdrawn.
#pragma once

#include <flotilla/client.hpp>

namespace flotilla::detail {

// As ask_on_terminal(). `withdrawn`: a descriptor that is readable when no answer is wanted any more; -1 = none.
std::optional<std::string> ask_on_terminal(const Prompt& prompt, int withdrawn);

}  // namespace flotilla::detail
