// The same as solar_system.py, in C++: ten years of the solar system, its codes wherever you say, compared with DE421.
#include <flotilla/client.hpp>
#include <flotilla/code.hpp>

#include <getopt.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <optional>

#include "de421.hpp"
#include "svg_plot.hpp"

namespace {

namespace fs = std::filesystem;
using solar_system::De421;
using solar_system::Vector;

constexpr double days_per_year = 365.25, seconds_per_day = 86400;
struct Known {
  const char *of_de421, *name, *gm, *colour;
};
// Earth is the barycentre of Earth and Moon, with the mass of both.
constexpr Known bodies[] = {{"sun", "Sun", "GMS", "orange"},
                            {"mercury", "Mercury", "GM1", "gray"},
                            {"venus", "Venus", "GM2", "peru"},
                            {"earthmoon", "Earth", "GMB", "royalblue"},
                            {"mars", "Mars", "GM4", "firebrick"},
                            {"jupiter", "Jupiter", "GM5", "sandybrown"},
                            {"saturn", "Saturn", "GM6", "goldenrod"},
                            {"uranus", "Uranus", "GM7", "turquoise"},
                            {"neptune", "Neptune", "GM8", "slateblue"},
                            {"pluto", "Pluto", "GM9", "dimgray"}};
constexpr std::size_t body_count = std::size(bodies), sun = 0, earth = 3;

struct Options {
  std::string on_gravity, on_star;
  double years = 10, segment_days = 20;
  double step_parameter = 1e-4;     // Mercury is then right to a few kilometres after ten years, all others better
  std::optional<double> mass_loss;  // solar masses a year; 0 = as the star's wind law says
  bool relativity = false, moon = false, json = false;
  fs::path ephemeris, gravity_worker, star_folder, sdk, plot, table;
};

const char usage[] = R"(solar_system: ten years of the solar system, its gravity code wherever you say, compared with JPL's DE421 ephemeris

  --on-gravity LABEL     pilot label or resource for the gravity code (default: any pilot)
  --on-star LABEL        the same for the star
  --years N              default: 10
  --mass-loss[=RATE]     the Sun loses mass, by a star code: RATE solar masses a year, or as its wind does
  --relativity           add the leading relativistic term of the Sun's gravity
  --moon                 Earth and Moon as two bodies
  --segment DAYS         between two exchanges of the codes (default: 20)
  --step-parameter N     of the gravity code: the error goes with its square (default: 0.0001)
  --plot FILE            a picture of the orbits and of the distances from DE421, as SVG
  --table FILE           the distances from DE421 over time, as text
  --json                 the result as JSON on standard output; all else goes to standard error
  --ephemeris DIR        the folder of the Python package de421 (default: $DE421_DIR, else that of python3)
  --gravity-worker FILE  the program gravity_worker (default: beside this program)
  --star-worker DIR      the folder of star_worker.py, and --sdk FILE worker.py of the Python SDK (default: those of the sources)
)";

double number(const char* text, const char* option) {
  char* end = nullptr;
  double value = std::strtod(text, &end);
  if (end == text || *end || !std::isfinite(value)) throw std::invalid_argument(std::string(option) + ": '" + text + "' is no number");
  return value;
}

std::string output_of(const char* command) {
  std::string text;
  if (FILE* pipe = ::popen(command, "r")) {
    for (int c; (c = std::fgetc(pipe)) != EOF && c != '\n';) text += static_cast<char>(c);
    ::pclose(pipe);
  }
  return text;
}

Options parse(int argc, char** argv) {
  Options options;
  options.gravity_worker = fs::read_symlink("/proc/self/exe").parent_path() / "gravity_worker";
  options.star_folder = SOLAR_SYSTEM_SOURCES;
  options.sdk = WORKER_PY;
  enum {
    on_gravity = 1,
    on_star,
    years,
    mass_loss,
    relativity,
    moon,
    segment,
    step_parameter,
    plot,
    table,
    json,
    ephemeris,
    gravity_worker,
    star_worker,
    sdk,
    help
  };
  const option known[] = {{"on-gravity", required_argument, nullptr, on_gravity},
                          {"on-star", required_argument, nullptr, on_star},
                          {"years", required_argument, nullptr, years},
                          {"mass-loss", optional_argument, nullptr, mass_loss},
                          {"relativity", no_argument, nullptr, relativity},
                          {"moon", no_argument, nullptr, moon},
                          {"segment", required_argument, nullptr, segment},
                          {"step-parameter", required_argument, nullptr, step_parameter},
                          {"plot", required_argument, nullptr, plot},
                          {"table", required_argument, nullptr, table},
                          {"json", no_argument, nullptr, json},
                          {"ephemeris", required_argument, nullptr, ephemeris},
                          {"gravity-worker", required_argument, nullptr, gravity_worker},
                          {"star-worker", required_argument, nullptr, star_worker},
                          {"sdk", required_argument, nullptr, sdk},
                          {"help", no_argument, nullptr, help},
                          {}};
  for (int c; (c = ::getopt_long(argc, argv, "h", known, nullptr)) != -1;) {
    switch (c) {
      case on_gravity: options.on_gravity = optarg; break;
      case on_star: options.on_star = optarg; break;
      case years: options.years = number(optarg, "--years"); break;
      case mass_loss: options.mass_loss = optarg ? number(optarg, "--mass-loss") : 0; break;
      case relativity: options.relativity = true; break;
      case moon: options.moon = true; break;
      case segment: options.segment_days = number(optarg, "--segment"); break;
      case step_parameter: options.step_parameter = number(optarg, "--step-parameter"); break;
      case plot: options.plot = optarg; break;
      case table: options.table = optarg; break;
      case json: options.json = true; break;
      case ephemeris: options.ephemeris = optarg; break;
      case gravity_worker: options.gravity_worker = optarg; break;
      case star_worker: options.star_folder = optarg; break;
      case sdk: options.sdk = optarg; break;
      case help:
      case 'h': std::cout << usage; std::exit(0);
      default: throw std::invalid_argument("see solar_system --help");
    }
  }
  if (optind < argc) throw std::invalid_argument(std::string("'") + argv[optind] + "' is no option; see solar_system --help");
  if (!(options.years > 0 && options.years <= 50)) throw std::invalid_argument("--years: more than 0, and at most 50: DE421 ends in 2052");
  if (!(options.segment_days > 0)) throw std::invalid_argument("--segment: more than 0 days");
  if (!(options.step_parameter > 0)) throw std::invalid_argument("--step-parameter: more than 0");
  if (!options.plot.empty() && options.plot.extension() != ".svg")
    throw std::invalid_argument("--plot: this program draws SVG; give a name that ends in .svg (solar_system.py draws others too)");
  for (const auto* file : {&options.plot, &options.table})  // before ten years are computed for nothing
    if (!file->empty() && file->has_parent_path() && !fs::is_directory(file->parent_path()))
      throw std::invalid_argument("there is no folder " + file->parent_path().string() + " for " + file->string());
  if (options.mass_loss && *options.mass_loss < 0) throw std::invalid_argument("--mass-loss: a star gives mass away");
  if (!options.on_star.empty() && !options.mass_loss) throw std::invalid_argument("--on-star: the star takes part with --mass-loss only");
  if (options.ephemeris.empty())
    if (const char* folder = std::getenv("DE421_DIR")) options.ephemeris = folder;
  // The Python that the user has chosen, then the one of the sources' own environment.
  for (const std::string python : {"python3", SOLAR_SYSTEM_SOURCES "/../../.venv/bin/python3"})
    if (options.ephemeris.empty())
      options.ephemeris = output_of(("'" + python + "' -c 'import de421, os; print(os.path.dirname(de421.__file__))' 2>/dev/null").c_str());
  if (options.ephemeris.empty())
    throw std::invalid_argument("the Python package de421 was not found; pip install de421, or give its folder by --ephemeris");
  return options;
}

// A bar on a terminal, else a line at each tenth.
class Progress {
 public:
  Progress(double years, std::FILE* out) : years_(years), out_(out), terminal_(::isatty(::fileno(out))) {}
  void operator()(double fraction, double energy_error) {
    char text[100];
    std::snprintf(text, sizeof text, "%5.2f of %g years, energy error %+.1e", fraction * years_, years_, energy_error);
    int tenth = static_cast<int>(fraction * 10 + 1e-9);
    if (terminal_) {
      constexpr int width = 40;
      auto done = static_cast<std::size_t>(std::lround(fraction * width));
      std::fprintf(out_, "\r[%s%s] %s%s", std::string(done, '#').c_str(), std::string(width - done, '.').c_str(), text,
                   fraction >= 1 ? "\n" : "");
    } else if (tenth > tenth_) {
      tenth_ = tenth;
      std::fprintf(out_, "%s\n", text);
    }
    std::fflush(out_);
  }

 private:
  double years_;
  std::FILE* out_;
  bool terminal_;
  int tenth_ = 0;
};

struct Columns {
  std::vector<double> x, y, z;
  void add(const Vector& v) { x.push_back(v.x), y.push_back(v.y), z.push_back(v.z); }
  Vector operator[](std::size_t i) const { return {x[i], y[i], z[i]}; }
};

int run(const Options& options) {
  std::FILE* out = options.json ? stderr : stdout;
  De421 de421(options.ephemeris);
  double au = de421.constant("AU"), moon_share = 1 / (1 + de421.constant("EMRAT"));

  flotilla::Daemon daemon;
  auto gravity_worker = daemon.start_worker({.executable = "./gravity_worker",
                                             .name = "gravity_worker",
                                             .label = options.on_gravity,
                                             .files = {{.path = options.gravity_worker.string(), .name = "gravity_worker", .mode = 0755}}});
  flotilla::RemoteCode gravity(gravity_worker);
  std::fprintf(out, "gravity_worker  on %s\n", gravity_worker.info().host.c_str());
  std::optional<flotilla::Worker> star_worker;
  std::optional<flotilla::RemoteCode> star;
  std::int32_t star_id = 0;
  if (options.mass_loss) {
    // The SDK goes along: the machine needs nothing but Python.
    star_worker = daemon.start_worker({.executable = "./star_worker.py",
                                       .name = "star_worker",
                                       .label = options.on_star,
                                       .files = {{.path = (options.star_folder / "star_worker.py").string(), .mode = 0755},
                                                 {.path = options.sdk.string(), .name = "worker.py"}}});
    star.emplace(*star_worker);
    std::fprintf(out, "star_worker     on %s\n", star_worker->info().host.c_str());
    star->call("initialize_code");
    star_id = star->call<std::int32_t>("new_particle", 1.0);
    if (*options.mass_loss > 0) star->call("set_wind_mass_loss_rate", star_id, *options.mass_loss);
    star->call("commit_parameters");
  }

  // Units: au and days; a mass is GM in au^3/day^2.
  std::vector<double> mass;
  Columns position, velocity;
  auto add = [&](double gm, const Vector& r, const Vector& v) {
    mass.push_back(gm);
    position.add((1 / au) * r);
    velocity.add((1 / au) * v);
  };
  auto moon = de421.state("moon", 0);  // from the Earth
  for (std::size_t i = 0; i < body_count; ++i) {
    auto state = de421.state(bodies[i].of_de421, 0);
    double gm = de421.constant(bodies[i].gm);
    if (options.moon && i == earth)
      add(gm * (1 - moon_share), state.position - moon_share * moon.position, state.velocity - moon_share * moon.velocity);
    else add(gm, state.position, state.velocity);
  }
  if (options.moon) {
    auto both = de421.state("earthmoon", 0);
    add(de421.constant("GMB") * moon_share, both.position + (1 - moon_share) * moon.position,
        both.velocity + (1 - moon_share) * moon.velocity);
  }
  gravity.call("initialize_code");
  gravity.call("set_dt_param", options.step_parameter);
  gravity.call("set_speed_of_light", options.relativity ? de421.constant("CLIGHT") * seconds_per_day / au : 0.0);
  gravity.call("commit_parameters");
  auto ids = gravity.call<std::vector<std::int32_t>>("new_particle", mass, position.x, position.y, position.z, velocity.x, velocity.y,
                                                     velocity.z, 0.0);
  gravity.call("commit_particles");

  // km from DE421, body by body.
  auto distances = [&](double days) {
    gravity.call("get_position", ids, flotilla::into(position.x), flotilla::into(position.y), flotilla::into(position.z));
    std::vector<double> km;
    for (std::size_t i = 0; i < body_count; ++i) {
      Vector at = position[i];
      if (options.moon && i == earth) at = (1 - moon_share) * at + moon_share * position[body_count];
      km.push_back(norm(au * at - de421.state(bodies[i].of_de421, days).position));
    }
    return km;
  };

  std::FILE* table = nullptr;
  if (!options.table.empty()) {
    table = std::fopen(options.table.c_str(), "we");
    if (!table) throw std::system_error(errno, std::generic_category(), options.table.string());
    std::fprintf(table, "# distance from DE421 in km\n# days");
    for (auto& body : bodies) std::fprintf(table, "\t%s", body.name);
    std::fprintf(table, "\n");
  }
  std::vector<double> days;
  std::vector<solar_system::Course> courses;
  for (const auto& body : bodies) courses.push_back({body.name, body.colour, {}, {}});
  // After distances(): where the bodies are then.
  auto keep = [&](double day, const std::vector<double>& km) {
    days.push_back(day);
    for (std::size_t i = 0; i < body_count; ++i) {
      courses[i].positions.push_back(position[i]);
      courses[i].distances_km.push_back(km[i]);
    }
  };
  keep(0, distances(0));
  double total = options.years * days_per_year;
  int segments = std::max(1, static_cast<int>(std::ceil(total / options.segment_days)));
  auto edge = [&](int i) { return total * i / segments; };
  auto middle = [&](int i) { return (i >= segments ? total : (edge(i) + edge(i + 1)) / 2) / days_per_year; };
  double first_energy = gravity.call<double>("get_total_energy"), energy = first_energy, energy_change = 0;
  Progress progress(options.years, out);
  auto begin = std::chrono::steady_clock::now();
  std::vector<double> km;
  // The star's mass in the middle of a segment counts for all of it: of second order in the segment's length.
  if (star) star->call("evolve_model", middle(0));
  for (int i = 0; i < segments; ++i) {
    if (star) {
      gravity.call("set_mass", std::vector{ids[sun]}, mass[sun] * star->call<double>("get_mass", star_id));
      energy = gravity.call<double>("get_total_energy");
    }
    auto moving = gravity.async<>("evolve_model", edge(i + 1));
    if (star) star->call("evolve_model", middle(i + 1));  // while the gravity code is busy
    moving.get();
    double now = gravity.call<double>("get_total_energy");
    energy_change += now - energy;
    energy = now;
    km = distances(edge(i + 1));
    keep(edge(i + 1), km);
    if (table) {
      std::fprintf(table, "%.3f", edge(i + 1));
      for (double each : km) std::fprintf(table, "\t%.3f", each);
      std::fprintf(table, "\n");
    }
    progress((i + 1.0) / segments, energy_change / std::abs(first_energy));
  }
  if (table) std::fclose(table);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  double sun_mass = star ? star->call<double>("get_mass", star_id) : 1;
  auto steps = gravity.call<std::int64_t>("get_number_of_steps");
  gravity.stop();
  if (star) star->stop();

  double error = energy_change / std::abs(first_energy);
  std::fprintf(out, "\n%g years in %lld steps and %.2f s; energy error %+.1e\n", options.years, static_cast<long long>(steps), seconds,
               error);
  if (star) std::fprintf(out, "the Sun has lost %.3e of its mass\n", 1 - sun_mass);
  std::fprintf(out, "distance from DE421 after %g years, in km:\n", options.years);
  for (std::size_t i = 0; i < body_count; ++i)
    std::fprintf(out, "  %-8s%14.1f%s\n", bodies[i].name, km[i], i == earth ? "   (with the Moon, their barycentre)" : "");
  if (!options.relativity && !star)
    std::fprintf(out, "This is Newton's gravity: most of it is the relativity that is missing (--relativity), strongest near the Sun.\n");
  if (!options.plot.empty()) {
    char title[60];
    std::snprintf(title, sizeof title, "%g years from J2000", options.years);
    solar_system::SvgPlot(days, courses, title).save(options.plot);
    std::fprintf(out, "plot: %s\n", options.plot.c_str());
  }
  if (options.json) {
    std::printf("{\n  \"years\": %.17g,\n  \"energy_error\": %.17g,\n  \"distance_km\": {", options.years, error);
    for (std::size_t i = 0; i < body_count; ++i) std::printf("%s\n    \"%s\": %.17g", i ? "," : "", bodies[i].name, km[i]);
    std::printf("\n  },\n  \"sun_mass\": %.17g,\n  \"steps\": %lld\n}\n", sun_mass, static_cast<long long>(steps));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "solar_system: " << error.what() << '\n';
    return 1;
  }
}
