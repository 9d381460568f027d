// A job's input on its way to the pilot: held until the job runs, and kept until the job has taken it, so that what a cut link
// swallowed is sent again. Pure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace flotilla::daemon {

class InputFlow {
 public:
  static constexpr std::size_t credit_bytes = 1u << 20;  // kept at most, beyond the message that came last
  static constexpr std::size_t piece_bytes = 256u << 10;

  struct Piece {
    std::uint64_t offset = 0;
    std::string data;
    bool eof = false;
  };

  // After a restart of the daemon the pilot alone knows how far the input is: nothing is sent before its inventory.
  explicit InputFlow(bool known = true) : known_(known) {}

  // What is to be sent now, if anything.
  std::optional<Piece> add(std::string data, bool eof) {
    const Piece piece{end(), data, eof};
    kept_ += data;
    eof_ = eof_ || eof;
    if (!known_ || !begun_) return std::nullopt;
    return piece;
  }
  // The job runs. Returns what came before.
  std::vector<Piece> begin() {
    if (std::exchange(begun_, true) || !known_) return {};
    return from(base_, false);
  }
  void on_taken(std::uint64_t bytes) {
    if (!known_ || bytes <= base_) return;
    const auto gone = std::min<std::uint64_t>(bytes - base_, kept_.size());
    kept_.erase(0, gone);
    base_ += gone;
  }
  // The pilot registered again. Returns what it has not received.
  std::vector<Piece> on_inventory(std::uint64_t received, bool eof_received) {
    if (!known_) {
      known_ = true;
      base_ = received;
    }
    begun_ = true;
    return from(std::clamp(received, base_, end()), eof_received);
  }
  bool full() const { return kept_.size() > credit_bytes; }
  bool known() const { return known_; }
  std::uint64_t end() const { return base_ + kept_.size(); }  // while it is not known: beyond what the pilot has

 private:
  std::vector<Piece> from(std::uint64_t at, bool eof_received) const {
    std::vector<Piece> pieces;
    for (; at < end(); at += pieces.back().data.size()) pieces.push_back({at, kept_.substr(at - base_, piece_bytes), false});
    if (eof_ && !eof_received) {
      if (pieces.empty()) pieces.push_back({at, {}, true});
      else pieces.back().eof = true;
    }
    return pieces;
  }

  bool known_;
  bool begun_ = false;
  std::uint64_t base_ = 0;  // of the first byte that is kept
  std::string kept_;
  bool eof_ = false;
};

}  // namespace flotilla::daemon
