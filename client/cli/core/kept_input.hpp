// What was read from stdin for a job and has not reached it: kept here, as the daemon that took it may be killed. Pure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace flotilla::cli {

class KeptInput {
 public:
  // What the daemon takes ahead of the job, and as much on its way there.
  static constexpr std::size_t limit_bytes = 2u << 20;

  void add(std::string_view data) { kept_ += data; }
  bool full() const { return kept_.size() >= limit_bytes; }

  // Offsets count all of the job's input: others may have sent some before.
  void begins_at(std::uint64_t offset) {
    if (!known_) base_ = offset;
    known_ = true;
  }
  void on_taken(std::uint64_t offset) {
    if (!known_ || offset <= base_) return;
    const auto gone = std::min<std::uint64_t>(offset - base_, kept_.size());
    kept_.erase(0, gone);
    base_ += gone;
  }
  // Another daemon has got all before `offset`. Returns what it has not.
  std::string_view again_from(std::uint64_t offset) {
    begins_at(offset);
    on_taken(offset);
    return kept_;
  }
  std::uint64_t end() const { return base_ + kept_.size(); }

 private:
  std::string kept_;
  std::uint64_t base_ = 0;  // of the first byte that is kept
  bool known_ = false;
};

}  // namespace flotilla::cli
