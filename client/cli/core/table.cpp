#include "client/cli/core/table.hpp"

#include <algorithm>

#include "client/cli/core/units.hpp"

namespace flotilla::cli {

std::string paint(const std::string& text, const char* shade, const Look& look) {
  if (!look.colour || !shade || !*shade || text.empty()) return text;
  return shade + text + colour::none;
}

const char* state_colour(const std::string& state) {
  if (state == "running" || state == "connected" || state == "ok") return colour::green;
  if (state == "failed" || state == "unreachable") return colour::red;
  if (state == "finished" || state == "none" || state == "skipped") return colour::dim;
  if (state == "canceled" || state == "draining" || state == "warning") return colour::yellow;
  return colour::blue;  // on its way
}

std::string format_table(const std::vector<Column>& columns, const std::vector<std::vector<Cell>>& rows, const Look& look) {
  std::string out;
  std::vector<std::size_t> wide(columns.size());
  for (std::size_t i = 0; i < columns.size(); ++i) wide[i] = width(columns[i].title);
  std::vector<std::vector<std::string>> texts;
  for (const auto& row : rows) {
    auto& line = texts.emplace_back();
    for (std::size_t i = 0; i < columns.size(); ++i) {
      line.push_back(i < row.size() ? printable(row[i].text) : "");
      wide[i] = std::max(wide[i], width(line.back()));
    }
  }
  constexpr std::size_t gap = 2;
  std::size_t total = columns.empty() ? 0 : gap * (columns.size() - 1);
  for (const std::size_t w : wide) total += w;
  if (look.columns > 0 && total > look.columns) {
    constexpr std::size_t least = 12;  // narrower says nothing
    for (std::size_t i = 0; i < columns.size(); ++i) {
      if (!columns[i].elastic || total <= look.columns || wide[i] <= least) continue;
      const std::size_t cut = std::min(total - look.columns, wide[i] - least);
      wide[i] -= cut;
      total -= cut;
    }
  }
  const auto add = [&](std::size_t i, const std::string& text, const char* shade) {
    const bool last = i + 1 == columns.size();
    const std::string cut = columns[i].elastic ? printable(text, wide[i]) : text;
    const std::size_t fill = wide[i] > width(cut) ? wide[i] - width(cut) : 0;
    const std::string blanks(fill, ' ');
    if (columns[i].align == Align::right) out += blanks;
    out += paint(cut, shade, look);
    if (columns[i].align == Align::left && !last) out += blanks;
    if (!last) {
      out.append(gap, ' ');
      return;
    }
    while (out.ends_with(' ')) out.pop_back();
    out += '\n';
  };
  for (std::size_t i = 0; i < columns.size(); ++i) add(i, columns[i].title, colour::bold);
  for (std::size_t r = 0; r < rows.size(); ++r)
    for (std::size_t i = 0; i < columns.size(); ++i) add(i, texts[r][i], i < rows[r].size() ? rows[r][i].colour : "");
  return out;
}

}  // namespace flotilla::cli
