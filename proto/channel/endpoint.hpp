// One end of a resumable channel, without I/O: bytes of the user go to the wire, bytes of the wire to the user, and the
// wire may be replaced at any byte. The two ends are the daemon (opener) and the pilot (accepter).
//
//   user --user_space/on_user_bytes--> ring --wire_out/on_written--> wire
//   user <--deliverable/on_delivered-- buffer <--wire_space/on_wire_bytes-- wire
//
// Owned by one thread. After a Status that is an error the connection (not the channel) has to be dropped, except
// where it says that the channel is lost.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "proto/base/result.hpp"
#include "proto/channel/opening.hpp"

namespace flotilla::channel {

// What is not acknowledged is kept: enough for 16 MiB in flight on a far line; grown only when the line, not the user's
// speed, asks for it, so that on a short line the ring stays in the processor's cache.
constexpr std::size_t ring_start_bytes = 64u << 10;
constexpr std::size_t ring_limit_bytes = 16u << 20;
// Two acknowledgements' worth is grown to at once; beyond that the sender must have stood still this often for want of an
// acknowledgement: a late one now and then is no reason to leave the cache.
constexpr std::size_t ring_eager_bytes = 512u << 10;
constexpr int stalls_to_grow = 3;
constexpr std::size_t chunk_bytes = 256u << 10;  // most that is taken from user or wire at once
constexpr std::uint64_t ack_interval_bytes = 256u << 10;

// Up to three pieces for readv/writev, in order; count = 0: nothing.
struct Spans {
  std::array<iovec, 3> pieces{};
  int count = 0;
  std::size_t bytes() const;
  bool empty() const { return count == 0; }
};

enum class Side { opener, accepter };

// A ring has pages of its own: what a burst needed goes back to the system, where malloc would keep it, for each thread that had one.
struct UnmapRing {
  std::size_t size = 0;
  void operator()(char* pages) const;
};

class Endpoint {
 public:
  Endpoint(Side side, std::uint64_t channel, std::size_t ring_limit = ring_limit_bytes);

  // ---- the connection under it
  // Opener: our header goes out next; nothing else does before the peer's answer came in. `epoch` must be higher than all
  // before. A ticket of another length than 32 is refused.
  Status open(std::uint32_t epoch, std::string_view ticket);
  // Accepter: `request` was read off the new connection already; the answer goes out next, then the stream.
  // An epoch that is not higher (failed_precondition) leaves the present connection as it is. Any other error: the
  // channel is lost, the peer misses bytes that are gone, or claims bytes that were never sent.
  Status accept(const Opening& request);
  void disconnect();                                             // the wire is gone; what has come in is kept
  bool connected() const { return state_ == State::connected; }  // the headers were exchanged
  bool has_wire() const { return state_ != State::none; }
  std::uint32_t epoch() const { return epoch_; }

  // ---- user to wire
  bool wants_user_bytes() const;  // there is room
  Spans user_space();             // at most chunk_bytes; empty while the ring is full
  void on_user_bytes(std::size_t count);
  void on_user_end();  // the user writes no more (end of file)
  Spans wire_out();    // what the wire is to be given next (header first); empty: nothing to send
  bool has_wire_out() const { return header_out_ < header_size_ || (connected() && sent_ < read_); }
  void on_written(std::size_t count);
  // The peer has everything below `received`. An error: it claims what was never sent; the channel is lost.
  Status on_ack(std::uint32_t epoch, std::uint64_t received);

  // ---- wire to user
  bool wants_wire_bytes() const { return state_ != State::none && pending() == 0; }
  iovec wire_space();  // where the wire's next bytes go; length 0 while the user has not taken the last
  // Error: the answer was wrong or a refusal (not_found: the peer has no such channel), or bytes came beyond its end.
  Status on_wire_bytes(std::size_t count);
  iovec deliverable() const;  // to be given to the user
  void on_delivered(std::size_t count);
  // The peer's stream ends at this offset (ChannelEnd). Error: it contradicts what came before; the channel is lost.
  Status on_peer_end(std::uint64_t final_offset);
  bool peer_ended() const { return peer_final_ && received_ == *peer_final_ && pending() == 0; }
  // The user takes no more: what came and what comes is dropped (and acknowledged), so that the peer can finish.
  void discard_incoming();

  // ---- acknowledgements: the owner sends ChannelAck{epoch, received}
  bool ack_due() const;                                         // now
  bool ack_owed() const { return received_ != acknowledged_; }  // when the wire has been quiet for a while
  std::uint64_t take_ack();                                     // the offset to send

  // ---- where it stands
  std::uint64_t received() const { return received_; }
  std::uint64_t taken() const { return read_; }  // from the user; with user_ended() the final offset
  std::uint64_t acknowledged_by_peer() const { return base_; }
  bool user_ended() const { return user_ended_; }
  // Both streams ended, ours is acknowledged, the peer's delivered.
  bool finished() const { return user_ended_ && base_ == read_ && peer_ended(); }
  // Gives back memory that a burst needed; call it when things have been quiet.
  void trim();
  std::size_t ring_capacity() const { return capacity_; }

 private:
  enum class State { none, opening, connected };

  Status start_sending(std::uint64_t peer_received);
  std::size_t pending() const { return buffer_end_ - buffer_begin_; }
  bool may_grow() const;
  void resize_ring(std::size_t capacity);
  void add_ring_piece(Spans& spans, std::uint64_t from, std::uint64_t to) const;

  Side side_;
  std::uint64_t channel_;
  std::size_t limit_;
  State state_ = State::none;
  std::uint32_t epoch_ = 0;
  Opening request_;  // opener: what was asked for, to compare the answer with

  // Offsets in the user's stream: base_ (acknowledged) <= sent_ <= read_, base_ <= sent_high_ <= read_.
  std::uint64_t base_ = 0, sent_ = 0, sent_high_ = 0, read_ = 0;
  bool user_ended_ = false;
  std::unique_ptr<char, UnmapRing> ring_;  // the byte of offset n lies at n & (capacity_ - 1)
  std::size_t capacity_ = 0;               // a power of two, 0 before the first byte
  int stalls_ = 0;                         // since the ring last grew: acknowledgements that found it full and all sent

  std::array<char, opening_bytes> header_{};  // ours, going out
  std::size_t header_out_ = 0, header_size_ = 0;
  std::array<char, opening_bytes> answer_{};  // the peer's, coming in (opener)
  std::size_t answer_in_ = 0;

  std::uint64_t received_ = 0, acknowledged_ = 0;
  std::optional<std::uint64_t> peer_final_;
  bool discard_ = false;
  std::unique_ptr<char[]> buffer_;  // chunk_bytes, made when first needed
  std::size_t buffer_begin_ = 0, buffer_end_ = 0;
};

}  // namespace flotilla::channel
