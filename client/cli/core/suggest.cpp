#include "client/cli/core/suggest.hpp"

#include <algorithm>

namespace flotilla::cli {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  // Three rows of the table; `before` is needed for swapped neighbours.
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({change, last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& known) {
  std::optional<std::string> best;
  std::size_t least = std::max<std::size_t>(1, word.size() / 3) + 1;  // one slip in three letters
  for (const auto& name : known) {
    const std::size_t distance = edit_distance(word, name);
    const bool cut_short = word.size() >= 2 && name.size() > word.size() && name.compare(0, word.size(), word) == 0;
    const std::size_t effective = cut_short ? 1 : distance;
    if (effective < least) {
      least = effective;
      best = name;
    }
  }
  return best;
}

}  // namespace flotilla::cli
