// "Did you mean ...?"
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flotilla::cli {

// The least number of letters to add, drop, change, or swap with their neighbour.
std::size_t edit_distance(std::string_view a, std::string_view b);

// The nearest of them, when it is near enough to be meant.
std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& known);

}  // namespace flotilla::cli
