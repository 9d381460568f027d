// The flow of one output stream to the daemon: what was produced, what may be sent, what may be dropped. Pure.
#pragma once

#include <algorithm>
#include <cstdint>

namespace flotilla::pilot {

constexpr std::uint64_t first_credit_bytes = 1u << 20;    // PROTOCOL.md 3.1
constexpr std::uint64_t spool_limit_bytes = 64u << 20;    // held for a stream that nobody takes; then reading stops
constexpr std::uint64_t output_chunk_bytes = 128u << 10;  // one OutputData; others get a turn in between

class OutputFlow {
 public:
  void on_produced(std::uint64_t bytes) { produced_ += bytes; }
  void on_eof() { eof_ = true; }

  // At most one chunk; 0 = nothing may go now.
  std::uint64_t sendable() const {
    if (!linked_) return 0;
    const std::uint64_t until = std::min(produced_, window_end_);
    return until > sent_ ? std::min(until - sent_, output_chunk_bytes) : 0;
  }
  void on_sent(std::uint64_t bytes) { sent_ += bytes; }
  // The end is told with the last data, or by itself when that had gone; of an empty stream the totals say it.
  bool eof_goes_with(std::uint64_t bytes) const { return eof_ && sent_ + bytes == produced_; }
  bool eof_due() const { return linked_ && eof_ && !eof_sent_ && produced_ > 0 && sent_ == produced_; }
  void on_eof_sent() { eof_sent_ = true; }

  // Offsets never go back: an older or absurd one changes nothing.
  void on_window(std::uint64_t offset, std::uint64_t credit) {
    if (offset > produced_) return;
    taken_ = std::max(taken_, offset);
    sent_ = std::max(sent_, taken_);
    window_end_ = std::max(window_end_, offset + credit);
  }
  // The daemon could not keep what came after `offset`: all that is held goes again.
  void on_sent_in_vain(std::uint64_t offset) {
    if (offset > produced_) return;
    sent_ = std::min(sent_, taken_);
    eof_sent_ = false;
  }
  // `known`: what the daemon has of this stream, as its Welcome says; 0 where it says nothing.
  void on_link_up(std::uint64_t known) {
    linked_ = true;
    eof_sent_ = false;
    if (known <= produced_) taken_ = std::max(taken_, known);
    sent_ = taken_;
    window_end_ = taken_ + first_credit_bytes;
  }
  void on_link_down() { linked_ = false; }

  std::uint64_t produced() const { return produced_; }
  std::uint64_t sent() const { return sent_; }
  bool oldest_goes_next() const { return sent_ == taken_; }  // nothing from before is held
  std::uint64_t taken() const { return taken_; }             // below this nothing needs to be held
  std::uint64_t held() const { return produced_ - taken_; }
  bool may_read() const { return held() < spool_limit_bytes; }
  bool eof() const { return eof_; }

 private:
  std::uint64_t produced_ = 0, sent_ = 0, taken_ = 0;
  std::uint64_t window_end_ = first_credit_bytes;
  bool linked_ = false, eof_ = false, eof_sent_ = false;
};

}  // namespace flotilla::pilot
