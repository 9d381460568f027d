#include "client/amuse/core/own_words.hpp"

#include <algorithm>
#include <array>
#include <cctype>

namespace flotilla::amuse {

std::string own_words(std::string_view text, std::string_view state) {
  constexpr std::string_view program = "flotilla ";
  constexpr std::array<std::string_view, 11> commands{"run",   "submit",   "attach", "exec", "shell", "job",
                                                      "pilot", "resource", "daemon", "logs", "web"};
  std::string own;
  for (auto at = text.find(program); at != std::string_view::npos; at = text.find(program)) {
    const auto rest = text.substr(at + program.size());
    const auto word = rest.substr(0, std::min(rest.find_first_not_of("abcdefghijklmnopqrstuvwxyz"), rest.size()));
    const char before = at == 0 ? ' ' : text[at - 1];
    own += text.substr(0, at);
    const bool command = (before == ' ' || before == '\'' || before == '(' || before == '\n') &&
                         std::find(commands.begin(), commands.end(), word) != commands.end();
    if (command) own += "FLOTILLA_STATE_DIR=" + std::string(state) + " ";
    own += program;
    text = rest;
  }
  return own += text;
}

}  // namespace flotilla::amuse
