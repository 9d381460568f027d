// The gravity code as a worker. Its functions are those of AMUSE's gravitational codes, with the same arguments in the same order.
#include <flotilla/worker.hpp>

#include <map>

#include "hermite.hpp"

namespace {

using solar_system::Body;
using solar_system::Hermite;

// Bodies by the indices that callers know; what is removed does not change the others' index.
class Particles {
 public:
  explicit Particles(Hermite& code) : code_(code) {}

  std::int32_t add(const Body& body) {
    places_[next_] = code_.bodies.size();
    code_.bodies.push_back(body);
    return next_++;
  }
  bool remove(std::int32_t index) {
    auto found = places_.find(index);
    if (found == places_.end()) return false;
    std::size_t place = found->second;
    code_.bodies.erase(code_.bodies.begin() + static_cast<std::ptrdiff_t>(place));
    places_.erase(found);
    for (auto& [other, at] : places_)
      if (at > place) --at;
    return true;
  }
  Body* find(std::int32_t index) {
    auto found = places_.find(index);
    return found == places_.end() ? nullptr : &code_.bodies[found->second];
  }

 private:
  Hermite& code_;
  std::map<std::int32_t, std::size_t> places_;
  std::int32_t next_ = 0;
};

constexpr std::int32_t no_such_particle = -1;

}  // namespace

int main(int argc, char** argv) {
  Hermite code;
  Particles particles(code);
  flotilla::WorkerProgram program;

  using Index = std::int32_t;
  using Indices = std::span<const std::int32_t>;
  using In = std::span<const double>;
  using Out = std::span<double>;

  // One function for all rows: 0, or what a row that names no particle gives.
  auto each = [&](Indices indices, auto&& act) {
    for (std::size_t row = 0; row < indices.size(); ++row) {
      Body* body = particles.find(indices[row]);
      if (!body) return no_such_particle;
      act(*body, row);
    }
    return 0;
  };
  auto each_changed = [&, each](Indices indices, auto&& act) {
    code.changed();
    return each(indices, act);
  };

  program.function("new_particle", [&](std::span<Index> index, In mass, In x, In y, In z, In vx, In vy, In vz, In radius) {
    for (std::size_t i = 0; i < mass.size(); ++i) index[i] = particles.add({mass[i], {x[i], y[i], z[i]}, {vx[i], vy[i], vz[i]}, radius[i]});
    code.changed();
    return 0;
  });
  program.function("delete_particle", [&](Index index) {
    code.changed();
    return particles.remove(index) ? 0 : no_such_particle;
  });
  program.function("get_number_of_particles", [&](std::int32_t& number) {
    number = static_cast<std::int32_t>(code.bodies.size());
    return 0;
  });
  program.function("get_state", [&](Indices index, Out mass, Out x, Out y, Out z, Out vx, Out vy, Out vz, Out radius) {
    return each(index, [&](Body& b, std::size_t i) {
      mass[i] = b.mass, radius[i] = b.radius;
      x[i] = b.position.x, y[i] = b.position.y, z[i] = b.position.z;
      vx[i] = b.velocity.x, vy[i] = b.velocity.y, vz[i] = b.velocity.z;
    });
  });
  program.function("set_state", [&](Indices index, In mass, In x, In y, In z, In vx, In vy, In vz, In radius) {
    return each_changed(index, [&](Body& b, std::size_t i) { b = {mass[i], {x[i], y[i], z[i]}, {vx[i], vy[i], vz[i]}, radius[i]}; });
  });
  program.function("get_mass", [&](Indices index, Out mass) { return each(index, [&](Body& b, std::size_t i) { mass[i] = b.mass; }); });
  program.function("set_mass",
                   [&](Indices index, In mass) { return each_changed(index, [&](Body& b, std::size_t i) { b.mass = mass[i]; }); });
  program.function("get_radius",
                   [&](Indices index, Out radius) { return each(index, [&](Body& b, std::size_t i) { radius[i] = b.radius; }); });
  program.function("set_radius",
                   [&](Indices index, In radius) { return each(index, [&](Body& b, std::size_t i) { b.radius = radius[i]; }); });
  program.function("get_position", [&](Indices index, Out x, Out y, Out z) {
    return each(index, [&](Body& b, std::size_t i) { x[i] = b.position.x, y[i] = b.position.y, z[i] = b.position.z; });
  });
  program.function("set_position", [&](Indices index, In x, In y, In z) {
    return each_changed(index, [&](Body& b, std::size_t i) { b.position = {x[i], y[i], z[i]}; });
  });
  program.function("get_velocity", [&](Indices index, Out x, Out y, Out z) {
    return each(index, [&](Body& b, std::size_t i) { x[i] = b.velocity.x, y[i] = b.velocity.y, z[i] = b.velocity.z; });
  });
  program.function("set_velocity", [&](Indices index, In x, In y, In z) {
    return each_changed(index, [&](Body& b, std::size_t i) { b.velocity = {x[i], y[i], z[i]}; });
  });

  for (const char* nothing_to_do : {"commit_particles", "recommit_particles", "synchronize_model"})
    program.function(nothing_to_do, [] { return 0; });
  program.function("evolve_model", [&](double until) {
    code.evolve(until);
    return 0;
  });
  program.function("get_time", [&](double& time) { return time = code.time, 0; });
  program.function("set_begin_time", [&](double time) { return code.time = time, 0; });
  program.function("get_time_step", [&](double& step) { return step = code.last_step(), 0; });
  program.function("get_number_of_steps", [&](std::int64_t& steps) { return steps = static_cast<std::int64_t>(code.steps()), 0; });
  program.function("get_kinetic_energy", [&](double& energy) { return energy = code.kinetic_energy(), 0; });
  program.function("get_potential_energy", [&](double& energy) { return energy = code.potential_energy(), 0; });
  program.function("get_total_energy", [&](double& energy) { return energy = code.kinetic_energy() + code.potential_energy(), 0; });
  program.function("get_total_mass", [&](double& mass) {
    mass = 0;
    for (auto& body : code.bodies) mass += body.mass;
    return 0;
  });

  auto parameter = [&](const std::string& name, double& value, bool zero_is_fine) {
    program.function("get_" + name, [&value](double& out) { return out = value, 0; });
    program.function("set_" + name, [&, zero_is_fine](double in) {
      if (!std::isfinite(in) || in < 0 || (in == 0 && !zero_is_fine)) return -1;
      value = in;
      code.changed();
      return 0;
    });
  };
  parameter("eps2", code.softening_squared, true);
  parameter("dt_param", code.step_parameter, false);
  parameter("gravity_constant", code.gravity, false);
  parameter("speed_of_light", code.speed_of_light, true);  // 0 = Newton
  return program.run(argc, argv);
}
