// When a pilot ends by itself, and how long it waits before it dials again. Pure.
#pragma once

#include <algorithm>
#include <optional>

#include "pilot/core/moment.hpp"

namespace flotilla::pilot {

constexpr Millis default_cutoff = std::chrono::hours(24);

struct LifetimeSettings {
  Millis idle{-1};  // negative = never
  Millis cutoff{default_cutoff};
  Millis time{0};  // 0 = no limit
};

enum class Verdict { stay, time_up, idle, cut_off };

class Lifetime {
 public:
  Lifetime(LifetimeSettings settings, Moment started) : settings_(settings), started_(started), cut_since_(started) {}

  void set(LifetimeSettings settings) { settings_ = settings; }  // the time counts from the start in any case
  void on_busy() { idle_since_.reset(); }
  void on_idle(Moment now) {  // registered, nothing runs, and the daemon has taken all that did
    if (!idle_since_) idle_since_ = now;
  }
  void on_link_up() { cut_since_.reset(); }
  void on_link_down(Moment now) {
    if (!cut_since_) cut_since_ = now;
  }

  // The soonest moment at which verdict() may change by itself.
  std::optional<Moment> next() const {
    std::optional<Moment> soonest;
    for (const auto& moment : {time_end(), idle_end(), cut_end()})
      if (moment && (!soonest || *moment < *soonest)) soonest = moment;
    return soonest;
  }
  Verdict verdict(Moment now) const {
    if (auto end = time_end(); end && now >= *end) return Verdict::time_up;
    if (cut_off(now)) return Verdict::cut_off;
    if (auto end = idle_end(); end && now >= *end) return Verdict::idle;
    return Verdict::stay;
  }
  bool cut_off(Moment now) const {
    const auto end = cut_end();
    return end && now >= *end;
  }
  // 0 = no limit; never below 1 where there is one.
  Millis ends_in(Moment now) const {
    const auto end = time_end();
    if (!end) return Millis(0);
    return std::max(Millis(1), std::chrono::duration_cast<Millis>(*end - now));
  }

 private:
  std::optional<Moment> time_end() const {
    if (settings_.time <= Millis(0)) return std::nullopt;
    return started_ + settings_.time;
  }
  std::optional<Moment> idle_end() const {
    if (settings_.idle < Millis(0) || !idle_since_) return std::nullopt;
    return *idle_since_ + settings_.idle;
  }
  std::optional<Moment> cut_end() const {
    if (!cut_since_ || settings_.cutoff < Millis(0)) return std::nullopt;
    return *cut_since_ + settings_.cutoff;
  }

  LifetimeSettings settings_;
  Moment started_;
  std::optional<Moment> idle_since_, cut_since_;
};

// The wait before the n-th dial after a loss: at once, then growing to 2 s (PROTOCOL.md section 2).
class Redial {
 public:
  Millis next_wait() {
    const Millis wait = wait_;
    wait_ = wait_ == Millis(0) ? first : std::min(wait_ * 2, longest);
    return wait;
  }
  void on_link_up() { wait_ = Millis(0); }

 private:
  static constexpr Millis first{20};  // a daemon that starts again is back in tens of milliseconds
  static constexpr Millis longest{2000};
  Millis wait_{0};
};

}  // namespace flotilla::pilot
