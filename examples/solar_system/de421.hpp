// JPL's DE421 as the Python package de421 has it: a folder of .npy files with Chebyshev coefficients in km, axes of the ICRF,
// relative to the solar system's barycentre (the Moon: to the Earth), from Julian date 2414992.5 to 2524624.5 TDB.
#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "hermite.hpp"

namespace solar_system {

class De421 {
 public:
  explicit De421(std::filesystem::path folder) : folder_(std::move(folder)) {
    File file = open("constants.npy", "[('name', '|S6'), ('value', '<f8')]");
    for (std::size_t i = 0; i < file.shape.at(0); ++i) {
      const char* row = file.data.data() + 14 * i;  // a name of 6 bytes, a double
      double value;
      std::memcpy(&value, row + 6, 8);
      constants_[std::string(row, strnlen(row, 6))] = value;
    }
  }

  double constant(const std::string& name) const {
    auto found = constants_.find(name);
    if (found == constants_.end()) throw std::runtime_error(folder_.string() + " has no constant " + name);
    return found->second;
  }

  struct State {
    Vector position;  // km
    Vector velocity;  // km/day
  };

  // `days` after J2000 = Julian date 2451545.0 TDB.
  State state(const std::string& body, double days) {
    const Series& series = load(body);
    double first = constant("jalpha"), last = constant("jomega");
    double length = (last - first) / static_cast<double>(series.sets);
    double since = (2451545.0 - first) + days;
    if (since < 0 || since > last - first) throw std::runtime_error("DE421 does not cover " + std::to_string(days) + " days after J2000");
    auto set = std::min(static_cast<std::size_t>(since / length), series.sets - 1);
    double t = 2 * (since - static_cast<double>(set) * length) / length - 1;
    std::vector<double> chebyshev(series.terms), slope(series.terms);
    for (std::size_t k = 0; k < series.terms; ++k) {
      chebyshev[k] = k == 0 ? 1 : k == 1 ? t : 2 * t * chebyshev[k - 1] - chebyshev[k - 2];
      slope[k] = k == 0 ? 0 : k == 1 ? 1 : 2 * t * slope[k - 1] - slope[k - 2] + 2 * chebyshev[k - 1];
    }
    double position[3] = {}, velocity[3] = {};
    for (std::size_t axis = 0; axis < 3; ++axis) {
      const double* coefficients = series.values.data() + (set * 3 + axis) * series.terms;
      for (std::size_t k = 0; k < series.terms; ++k) {
        position[axis] += coefficients[k] * chebyshev[k];
        velocity[axis] += coefficients[k] * slope[k] * 2 / length;
      }
    }
    return {{position[0], position[1], position[2]}, {velocity[0], velocity[1], velocity[2]}};
  }

 private:
  struct File {
    std::vector<std::size_t> shape;
    std::vector<char> data;
  };
  struct Series {
    std::size_t sets = 0, terms = 0;
    std::vector<double> values;
  };

  // Numpy's format 1.0: magic, version, length of a header that is a Python dictionary, data.
  File open(const std::string& name, const std::string& type) {
    auto path = folder_ / name;
    std::ifstream in(path, std::ios::binary);
    char start[10];
    if (!in.read(start, sizeof start) || std::memcmp(start, "\x93NUMPY\x01", 7) != 0)
      throw std::runtime_error("cannot read " + path.string() + "; give the folder of the Python package de421 by --ephemeris");
    std::string header(static_cast<unsigned char>(start[8]) + 256u * static_cast<unsigned char>(start[9]), '\0');
    in.read(header.data(), static_cast<std::streamsize>(header.size()));
    auto shape = header.find("'shape': (");
    if (header.find(type) == std::string::npos || header.find("'fortran_order': False") == std::string::npos || shape == std::string::npos)
      throw std::runtime_error(path.string() + " is not laid out as DE421 is: " + header);
    File file;
    std::istringstream numbers(header.substr(shape + 10));
    for (std::size_t n; numbers >> n; numbers.ignore(1)) file.shape.push_back(n);
    file.data.assign(std::istreambuf_iterator<char>(in), {});
    return file;
  }

  const Series& load(const std::string& body) {
    Series& series = series_[body];
    if (series.sets == 0) {
      File file = open("jpl-" + body + ".npy", "'<f8'");
      if (file.shape.size() != 3 || file.shape[1] != 3 || file.data.size() < file.shape[0] * 3 * file.shape[2] * 8)
        throw std::runtime_error("jpl-" + body + ".npy is not three axes of coefficients");
      series.sets = file.shape[0];
      series.terms = file.shape[2];
      series.values.resize(series.sets * 3 * series.terms);
      std::memcpy(series.values.data(), file.data.data(), series.values.size() * 8);
    }
    return series;
  }

  std::filesystem::path folder_;
  std::map<std::string, double> constants_;
  std::map<std::string, Series> series_;
};

}  // namespace solar_system
