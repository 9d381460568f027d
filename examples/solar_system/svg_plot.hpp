// The picture of solar_system.cpp, as SVG: the inner orbits, the outer ones, and how far each body is from DE421 over time.
#pragma once

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "de421.hpp"

namespace solar_system {

struct Course {
  std::string name, colour;
  std::vector<Vector> positions;     // au, one for each moment
  std::vector<double> distances_km;  // from DE421; 0 is not drawn
};

class SvgPlot {
 public:
  SvgPlot(const std::vector<double>& days, const std::vector<Course>& courses, const std::string& title) {
    write("<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' font-family='sans-serif' font-size='12'>\n", 3 * panel + margin,
          panel + 2 * margin);
    write("<rect width='100%%' height='100%%' fill='white'/>\n");
    // The inner planets are the first four behind the Sun.
    orbits(0, courses, 5, 1.8, title);
    orbits(1, courses, courses.size(), 42, "the outer planets");
    distances(2, days, courses);
    text_ += "</svg>\n";
  }
  void save(const std::filesystem::path& file) const {
    std::FILE* out = std::fopen(file.c_str(), "we");
    if (!out) throw std::system_error(errno, std::generic_category(), file.string());
    const bool well = std::fputs(text_.c_str(), out) >= 0;
    if (std::fclose(out) != 0 || !well) throw std::system_error(errno, std::generic_category(), file.string());
  }

 private:
  static constexpr int panel = 440, margin = 50, size = panel - margin;  // pixels

  template <class... Values>
  void write(const char* format, Values... values) {
    char line[400];
    std::snprintf(line, sizeof line, format, values...);
    text_ += line;
  }
  static double left(int number) { return margin + number * panel + 10; }
  void frame(int number, const std::string& title, const char* across, const char* up) {
    const double x = left(number);
    write("<rect x='%.0f' y='%d' width='%d' height='%d' fill='none' stroke='black'/>\n", x, margin, size, size);
    write("<text x='%.0f' y='%d' text-anchor='middle' font-size='14'>%s</text>\n", x + size / 2.0, margin - 12, title.c_str());
    write("<text x='%.0f' y='%d' text-anchor='middle'>%s</text>\n", x + size / 2.0, margin + size + 34, across);
    write("<text transform='translate(%.0f %d) rotate(-90)' text-anchor='middle'>%s</text>\n", x - 34, margin + size / 2, up);
  }
  void mark_across(double x, const std::string& label) {
    write("<path d='M%.1f %dv5' stroke='black'/><text x='%.1f' y='%d' text-anchor='middle'>%s</text>\n", x, margin + size, x,
          margin + size + 18, label.c_str());
  }
  void mark_up(int number, double y, const std::string& label) {
    write("<path d='M%.1f %.1fh-5' stroke='black'/><text x='%.1f' y='%.1f' text-anchor='end'>%s</text>\n", left(number), y,
          left(number) - 7, y + 4, label.c_str());
  }
  void legend(int number, std::size_t row, const Course& course, int right = 8, int down = 14) {
    const double x = left(number) + right, y = margin + down + 14.0 * static_cast<double>(row);
    write("<circle cx='%.1f' cy='%.1f' r='4' fill='%s'/><text x='%.1f' y='%.1f' font-size='11'>%s</text>\n", x, y - 4,
          course.colour.c_str(), x + 8, y, course.name.c_str());
  }
  static std::string number(double value) {
    char word[32];
    std::snprintf(word, sizeof word, "%g", value);
    return word;
  }

  void orbits(int panel_number, const std::vector<Course>& courses, std::size_t count, double half, const std::string& title) {
    frame(panel_number, title, "x [au] (equator of J2000)", "y [au]");
    auto x = [&](double au) { return left(panel_number) + (au + half) / (2 * half) * size; };
    auto y = [&](double au) { return margin + size - (au + half) / (2 * half) * size; };
    const double step = half < 5 ? 1 : 20;
    for (double at = -step * std::floor(half / step); at <= half; at += step) {
      mark_across(x(at), number(at));
      mark_up(panel_number, y(at), number(at));
    }
    for (std::size_t body = 0; body < std::min(count, courses.size()); ++body) {
      const Course& course = courses[body];
      text_ += "<path fill='none' stroke-linecap='round' stroke-width='1.5' stroke-opacity='0.6' stroke='" + course.colour + "' d='";
      for (const Vector& at : course.positions)
        if (std::abs(at.x) < half && std::abs(at.y) < half) write("M%.1f %.1fh0", x(at.x), y(at.y));
      text_ += "'/>\n";
      const Vector& last = course.positions.back();
      if (std::abs(last.x) < half && std::abs(last.y) < half)
        write("<circle cx='%.1f' cy='%.1f' r='%d' fill='%s'/>\n", x(last.x), y(last.y), body == 0 ? 5 : 3, course.colour.c_str());
      legend(panel_number, body, course);
    }
  }

  void distances(int panel_number, const std::vector<double>& days, const std::vector<Course>& courses) {
    frame(panel_number, "distance from DE421 [km]", "years after J2000", "");
    double low = 1e300, high = 0;
    for (std::size_t body = 1; body < courses.size(); ++body)
      for (std::size_t i = 1; i < days.size(); ++i)  // at first all are where DE421 has them
        if (const double km = courses[body].distances_km[i]; km > 0) low = std::min(low, km), high = std::max(high, km);
    const double bottom = std::floor(std::log10(std::min(low, high))), top = std::max(bottom + 1, std::ceil(std::log10(high)));
    const double years = days.back() / 365.25;
    auto x = [&](double day) { return left(panel_number) + day / days.back() * size; };
    auto y = [&](double km) { return margin + size - (std::log10(km) - bottom) / (top - bottom) * size; };
    const double step = years > 20 ? 10 : years > 4 ? 2 : years > 1 ? 1 : 0.25;
    for (double at = 0; at <= years * 1.0001; at += step) mark_across(x(at * 365.25), number(at));
    for (double at = bottom; at <= top; ++at) mark_up(panel_number, y(std::pow(10, at)), number(std::pow(10, at)));
    for (std::size_t body = 1; body < courses.size(); ++body) {
      text_ += "<polyline fill='none' stroke-width='" + std::string(courses[body].name == "Earth" ? "2.5" : "1.2") + "' stroke='" +
               courses[body].colour + "' points='";
      for (std::size_t i = 1; i < days.size(); ++i)
        if (courses[body].distances_km[i] > 0) write("%.1f,%.1f ", x(days[i]), y(courses[body].distances_km[i]));
      text_ += "'/>\n";
      legend(panel_number, body - 1, courses[body], size - 80, size - 130);
    }
  }

  std::string text_;
};

}  // namespace solar_system
