// Hubs that live for one test of a resource.
#pragma once

#include <string_view>

namespace flotilla {

// A hub whose id begins so keeps its state and log in its runtime directory, and nothing of it stays.
constexpr std::string_view trial_hub_prefix = "trial-";

}  // namespace flotilla
