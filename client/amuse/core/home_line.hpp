// The line of a worker's stderr that says where AMUSE is. Pure.
#pragma once

#include <string>
#include <string_view>

namespace flotilla::amuse {

// Takes it out of a stream, at the beginning of a line, once.
class HomeLine {
 public:
  // The bytes that are the worker's own.
  std::string take(std::string_view bytes);
  bool known() const { return known_; }
  const std::string& home() const { return home_; }

 private:
  std::string held_;  // what may be the beginning of the line
  bool known_ = false, at_line_ = true;
  std::string home_;
};

// A message with the tail of such a stream, without that line.
std::string without_home_line(std::string_view text);

}  // namespace flotilla::amuse
