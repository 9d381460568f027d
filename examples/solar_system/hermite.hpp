// Gravity of a few bodies: fourth-order Hermite scheme with one adaptive step for all, softened forces, and on demand the
// leading relativistic term of the heaviest body. Units are the caller's; the constant of gravity is 1 unless set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <vector>

namespace solar_system {

struct Vector {
  double x = 0, y = 0, z = 0;
  Vector& operator+=(const Vector& o) { return x += o.x, y += o.y, z += o.z, *this; }
  Vector& operator-=(const Vector& o) { return x -= o.x, y -= o.y, z -= o.z, *this; }
  friend Vector operator+(Vector a, const Vector& b) { return a += b; }
  friend Vector operator-(Vector a, const Vector& b) { return a -= b; }
  friend Vector operator*(double s, const Vector& v) { return {s * v.x, s * v.y, s * v.z}; }
  friend double dot(const Vector& a, const Vector& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
  friend double norm(const Vector& v) { return std::sqrt(dot(v, v)); }
};

struct Body {
  double mass = 0;
  Vector position, velocity;
  double radius = 0;
};

class Hermite {
 public:
  // Parameters.
  double gravity = 1;
  double softening_squared = 0;
  double step_parameter = 0.01;  // Aarseth's eta: the error goes with its square
  double speed_of_light = 0;     // 0 = Newton

  std::vector<Body> bodies;
  double time = 0;

  // To be called after bodies or parameters were changed from outside; the next step starts afresh.
  void changed() { fresh_ = true; }

  double last_step() const { return step_; }
  unsigned long steps() const { return steps_; }

  void evolve(double until) {
    if (!std::isfinite(until)) throw std::invalid_argument("evolve to a time that is no number");
    if (bodies.empty()) {
      time = until;
      return;
    }
    double direction = until < time ? -1 : 1;
    if (fresh_ && time != until) begin();
    while (time != until) {
      double left = std::abs(until - time);
      double step = next_step_;
      bool last = step >= left;
      if (last) step = left;
      else if (step > 0.5 * left) step = 0.5 * left;  // no tiny step at the end
      if (time + direction * step == time) throw std::runtime_error("the time step became too short: two bodies are too near");
      advance(direction * step);
      time = last ? until : time + direction * step;
      step_ = step;
      ++steps_;
    }
  }

  double kinetic_energy() const {
    double energy = 0;
    for (auto& body : bodies) energy += 0.5 * body.mass * dot(body.velocity, body.velocity);
    return energy;
  }
  double potential_energy() const {
    double energy = 0;
    for (std::size_t i = 0; i < bodies.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) {
        Vector r = bodies[j].position - bodies[i].position;
        energy -= gravity * bodies[i].mass * bodies[j].mass / std::sqrt(dot(r, r) + softening_squared);
      }
    return energy;
  }

 private:
  struct Derivatives {
    Vector acceleration, jerk;
  };

  void begin() {
    now_.assign(bodies.size(), {});
    next_.assign(bodies.size(), {});
    predicted_ = bodies;
    derive(bodies, now_);
    // Nothing is known yet of higher derivatives: a small part of the shortest time in which two pass or fall together.
    double shortest = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < bodies.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) {
        Vector r = bodies[j].position - bodies[i].position, v = bodies[j].velocity - bodies[i].velocity;
        double r2 = dot(r, r) + softening_squared, pull = gravity * (bodies[i].mass + bodies[j].mass);
        if (dot(v, v) > 0) shortest = std::min(shortest, std::sqrt(r2 / dot(v, v)));
        if (pull > 0) shortest = std::min(shortest, std::sqrt(r2 * std::sqrt(r2) / pull));
      }
    next_step_ = 0.1 * std::sqrt(step_parameter) * shortest;
    fresh_ = false;
  }

  void advance(double h) {
    std::size_t n = bodies.size();
    for (std::size_t i = 0; i < n; ++i) {
      auto& b = bodies[i];
      auto& d = now_[i];
      predicted_[i].mass = b.mass;
      predicted_[i].position = b.position + h * b.velocity + (h * h / 2) * d.acceleration + (h * h * h / 6) * d.jerk;
      predicted_[i].velocity = b.velocity + h * d.acceleration + (h * h / 2) * d.jerk;
    }
    // Correcting again makes the scheme nearly time-symmetric: the energy does not drift. Three are as good as many.
    constexpr int corrections = 3;
    for (int round = 0; round < corrections; ++round) {
      derive(predicted_, next_);
      for (std::size_t i = 0; i < n; ++i) {
        auto& b = bodies[i];
        predicted_[i].velocity =
            b.velocity + (h / 2) * (now_[i].acceleration + next_[i].acceleration) + (h * h / 12) * (now_[i].jerk - next_[i].jerk);
        predicted_[i].position =
            b.position + (h / 2) * (b.velocity + predicted_[i].velocity) + (h * h / 12) * (now_[i].acceleration - next_[i].acceleration);
      }
    }
    derive(predicted_, next_);
    next_step_ = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < n; ++i) {
      const Vector &a0 = now_[i].acceleration, &a1 = next_[i].acceleration, &j0 = now_[i].jerk, &j1 = next_[i].jerk;
      Vector third = (12 / (h * h * h)) * (a0 - a1) + (6 / (h * h)) * (j0 + j1);
      Vector second = (-6 / (h * h)) * (a0 - a1) - (2 / h) * (2 * j0 + j1) + h * third;  // at the step's end
      double below = norm(j1) * norm(third) + dot(second, second);
      if (below > 0) next_step_ = std::min(next_step_, std::sqrt(step_parameter * (norm(a1) * norm(second) + dot(j1, j1)) / below));
    }
    double limit = 2 * std::abs(h);  // higher derivatives of a short step are noise
    next_step_ = std::min(next_step_, limit);
    for (std::size_t i = 0; i < n; ++i) {
      bodies[i].position = predicted_[i].position;
      bodies[i].velocity = predicted_[i].velocity;
    }
    now_.swap(next_);
  }

  void derive(const std::vector<Body>& at, std::vector<Derivatives>& out) const {
    std::fill(out.begin(), out.end(), Derivatives{});
    for (std::size_t i = 0; i < at.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) {
        Vector r = at[j].position - at[i].position, v = at[j].velocity - at[i].velocity;
        double r2 = dot(r, r) + softening_squared;
        double over_r3 = gravity / (r2 * std::sqrt(r2));
        Vector acceleration = over_r3 * r;
        Vector jerk = over_r3 * (v - (3 * dot(r, v) / r2) * r);
        out[i].acceleration += at[j].mass * acceleration;
        out[i].jerk += at[j].mass * jerk;
        out[j].acceleration -= at[i].mass * acceleration;
        out[j].jerk -= at[i].mass * jerk;
      }
    if (speed_of_light > 0) add_relativity(at, out);
    for (auto& d : out)
      if (!std::isfinite(dot(d.acceleration, d.acceleration) + dot(d.jerk, d.jerk)))
        throw std::runtime_error("two bodies are at the same place, or a number is not finite; soften with set_eps2");
  }

  // First post-Newtonian order of the heaviest body's field (Schwarzschild, harmonic coordinates) on the others:
  // mu / (c^2 r^3) ((4 mu / r - v^2) r + 4 (r.v) v), and its derivative in time. The heavy body recoils.
  void add_relativity(const std::vector<Body>& at, std::vector<Derivatives>& out) const {
    auto heaviest = static_cast<std::size_t>(
        std::max_element(at.begin(), at.end(), [](const Body& a, const Body& b) { return a.mass < b.mass; }) - at.begin());
    const Derivatives centre = out[heaviest];
    Derivatives recoil;
    for (std::size_t i = 0; i < at.size(); ++i) {
      if (i == heaviest) continue;
      double mu = gravity * at[heaviest].mass;
      Vector r = at[i].position - at[heaviest].position, v = at[i].velocity - at[heaviest].velocity;
      Vector a = out[i].acceleration - centre.acceleration;
      double distance = norm(r), d2 = distance * distance, d3 = d2 * distance;
      double rv = dot(r, v), v2 = dot(v, v);
      double q = mu / (speed_of_light * speed_of_light * d3), q_rate = -3 * q * rv / d2;
      double s = 4 * mu / distance - v2, s_rate = -4 * mu * rv / d3 - 2 * dot(v, a);
      double t = 4 * rv, t_rate = 4 * (v2 + dot(r, a));
      Vector direction = s * r + t * v;
      Vector acceleration = q * direction;
      Vector jerk = q_rate * direction + q * (s_rate * r + s * v + t_rate * v + t * a);
      out[i].acceleration += acceleration;
      out[i].jerk += jerk;
      double share = at[i].mass / at[heaviest].mass;
      recoil.acceleration -= share * acceleration;
      recoil.jerk -= share * jerk;
    }
    out[heaviest].acceleration += recoil.acceleration;
    out[heaviest].jerk += recoil.jerk;
  }

  std::vector<Derivatives> now_, next_;
  std::vector<Body> predicted_;
  bool fresh_ = true;
  double next_step_ = 0, step_ = 0;
  unsigned long steps_ = 0;
};

}  // namespace solar_system
