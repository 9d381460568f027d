// Listings: aligned, with a heading; cut to the terminal's width where there is one.
#pragma once

#include <string>
#include <vector>

namespace flotilla::cli {

enum class Align { left, right };
struct Column {
  std::string title;
  Align align = Align::left;
  bool elastic = false;  // the one that is cut when a line is too long for the terminal
};
struct Cell {
  std::string text;
  const char* colour = "";  // an escape sequence, or ""
  Cell() = default;
  Cell(std::string value, const char* shade = "") : text(std::move(value)), colour(shade) {}  // implicit: rows are lists of text
  Cell(const char* value) : text(value) {}
};

struct Look {
  bool terminal = false;
  bool colour = false;
  std::size_t columns = 0;  // of the terminal; 0 = not known
};

std::string format_table(const std::vector<Column>& columns, const std::vector<std::vector<Cell>>& rows, const Look& look);

namespace colour {
constexpr const char* bold = "\033[1m";
constexpr const char* dim = "\033[2m";
constexpr const char* red = "\033[31m";
constexpr const char* green = "\033[32m";
constexpr const char* yellow = "\033[33m";
constexpr const char* blue = "\033[34m";
constexpr const char* none = "\033[0m";
}  // namespace colour

// With the colour where the look allows it.
std::string paint(const std::string& text, const char* shade, const Look& look);
const char* state_colour(const std::string& state);

}  // namespace flotilla::cli
