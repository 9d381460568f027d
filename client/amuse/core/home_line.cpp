#include "client/amuse/core/home_line.hpp"

#include <algorithm>
#include <utility>

#include "client/amuse/core/worker_request.hpp"

namespace flotilla::amuse {

std::string HomeLine::take(std::string_view bytes) {
  if (known_) return std::string(bytes);
  std::string all = std::exchange(held_, {}) + std::string(bytes), own;
  std::string_view rest = all;
  while (!rest.empty()) {
    const auto end = rest.find('\n');
    const auto line = rest.substr(0, end == std::string_view::npos ? rest.size() : end + 1);
    if (at_line_ && line.starts_with(home_mark) && end != std::string_view::npos) {
      home_ = line.substr(home_mark.size(), line.size() - home_mark.size() - 1);
      known_ = true;
      rest.remove_prefix(line.size());
      own += rest;
      return own;
    }
    const bool may_be = at_line_ && end == std::string_view::npos && line.substr(0, home_mark.size()) == home_mark.substr(0, line.size());
    if (may_be) {
      held_ = line;
      return own;
    }
    own += line;
    at_line_ = end != std::string_view::npos;
    rest.remove_prefix(line.size());
  }
  return own;
}

std::string without_home_line(std::string_view text) {
  std::string own;
  while (!text.empty()) {
    const auto line = text.substr(0, std::min(text.find('\n'), text.size() - 1) + 1);
    if (!line.starts_with(home_mark)) own += line;
    text.remove_prefix(line.size());
  }
  return own;
}

}  // namespace flotilla::amuse
