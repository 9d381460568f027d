#include "proto/channel/endpoint.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <new>
#include <string>

namespace flotilla::channel {
namespace {

std::unique_ptr<char, UnmapRing> make_ring(std::size_t size) {
  void* pages = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  return {static_cast<char*>(pages), UnmapRing{size}};
}

}  // namespace

void UnmapRing::operator()(char* pages) const { ::munmap(pages, size); }

std::size_t Spans::bytes() const {
  std::size_t sum = 0;
  for (int i = 0; i < count; ++i) sum += pieces[i].iov_len;
  return sum;
}

Endpoint::Endpoint(Side side, std::uint64_t channel, std::size_t ring_limit)
    : side_(side), channel_(channel), limit_(std::bit_floor(std::max<std::size_t>(ring_limit, 1))) {}

Status Endpoint::open(std::uint32_t epoch, std::string_view ticket) {
  if (side_ != Side::opener) return fail(Code::internal, "only the daemon's end of a channel opens connections");
  if (ticket.size() != ticket_bytes) return fail(Code::invalid_argument, "a channel's ticket has 32 bytes");
  if (epoch <= epoch_)
    return fail(Code::failed_precondition, "channel " + std::to_string(channel_) + ": opening " + std::to_string(epoch) +
                                               " is not newer than opening " + std::to_string(epoch_));
  disconnect();
  epoch_ = epoch;
  request_ = Opening{0, channel_, epoch, {}, received_};
  std::memcpy(request_.ticket.data(), ticket.data(), ticket_bytes);
  header_ = format_opening(request_);
  header_size_ = opening_bytes;
  state_ = State::opening;
  return {};
}

Status Endpoint::accept(const Opening& request) {
  if (side_ != Side::accepter) return fail(Code::internal, "only the pilot's end of a channel accepts connections");
  if (request.channel != channel_)
    return fail(Code::failed_precondition,
                "a connection for channel " + std::to_string(request.channel) + " came to channel " + std::to_string(channel_));
  if (request.epoch <= epoch_)
    return fail(Code::failed_precondition, "channel " + std::to_string(channel_) + ": opening " + std::to_string(request.epoch) +
                                               " is displaced by opening " + std::to_string(epoch_));
  disconnect();
  epoch_ = request.epoch;
  if (auto status = start_sending(request.received); !status) return status;
  Opening answer = request;
  answer.flags = opening_answer;
  answer.received = received_;
  header_ = format_opening(answer);
  header_size_ = opening_bytes;
  acknowledged_ = received_;  // the header says it
  return {};
}

void Endpoint::disconnect() {
  state_ = State::none;
  header_out_ = header_size_ = answer_in_ = 0;
}

Status Endpoint::start_sending(std::uint64_t peer_received) {
  if (peer_received < base_ || peer_received > sent_high_)
    return fail(Code::internal, "channel " + std::to_string(channel_) + " cannot go on: its peer has " + std::to_string(peer_received) +
                                    " bytes, which is not between " + std::to_string(base_) + " (kept from there on) and " +
                                    std::to_string(sent_high_) + " (sent)");
  base_ = sent_ = peer_received;
  state_ = State::connected;
  return {};
}

bool Endpoint::may_grow() const {
  // While the wire is the slow part, or there is none, more room would only hold more bytes back.
  if (capacity_ == 0) return true;
  return capacity_ < limit_ && connected() && sent_ == read_ && (capacity_ < ring_eager_bytes || stalls_ >= stalls_to_grow);
}

bool Endpoint::wants_user_bytes() const { return !user_ended_ && (read_ - base_ < capacity_ || may_grow()); }

void Endpoint::resize_ring(std::size_t capacity) {
  auto ring = make_ring(capacity);
  for (std::uint64_t at = base_; at < read_;) {
    const std::size_t from = at & (capacity_ - 1), to = at & (capacity - 1);
    const auto count = std::min<std::uint64_t>({read_ - at, capacity_ - from, capacity - to});
    std::memcpy(ring.get() + to, ring_.get() + from, count);
    at += count;
  }
  ring_ = std::move(ring);
  capacity_ = capacity;
  stalls_ = 0;
}

void Endpoint::add_ring_piece(Spans& spans, std::uint64_t from, std::uint64_t to) const {
  while (from < to) {
    const std::size_t at = from & (capacity_ - 1);
    const auto count = std::min<std::uint64_t>(to - from, capacity_ - at);
    spans.pieces[spans.count++] = {ring_.get() + at, static_cast<std::size_t>(count)};
    from += count;
  }
}

Spans Endpoint::user_space() {
  Spans spans;
  if (!wants_user_bytes()) return spans;
  if (read_ - base_ == capacity_) resize_ring(capacity_ ? capacity_ * 2 : std::min(ring_start_bytes, limit_));
  const auto room = std::min<std::uint64_t>(capacity_ - (read_ - base_), chunk_bytes);
  add_ring_piece(spans, read_, read_ + room);
  return spans;
}

void Endpoint::on_user_bytes(std::size_t count) {
  assert(!user_ended_ && count <= capacity_ - (read_ - base_));
  read_ += count;
}

void Endpoint::on_user_end() { user_ended_ = true; }

Spans Endpoint::wire_out() {
  Spans spans;
  if (header_out_ < header_size_) spans.pieces[spans.count++] = {&header_[header_out_], header_size_ - header_out_};
  if (connected()) add_ring_piece(spans, sent_, std::min<std::uint64_t>(read_, sent_ + chunk_bytes));
  return spans;
}

void Endpoint::on_written(std::size_t count) {
  const std::size_t of_header = std::min(count, header_size_ - header_out_);
  header_out_ += of_header;
  sent_ += count - of_header;
  assert(sent_ <= read_);
  sent_high_ = std::max(sent_high_, sent_);
}

Status Endpoint::on_ack(std::uint32_t epoch, std::uint64_t received) {
  if (received > sent_high_ && epoch == epoch_)
    return fail(Code::internal, "channel " + std::to_string(channel_) + ": the peer acknowledged " + std::to_string(received) +
                                    " bytes of " + std::to_string(sent_high_) + " sent");
  // One that was meant for another connection may be overtaken by an opening, which knows better.
  if (received <= base_ || received > sent_) return {};
  if (read_ - base_ == capacity_ && sent_ == read_) ++stalls_;
  base_ = received;
  return {};
}

iovec Endpoint::wire_space() {
  if (!wants_wire_bytes()) return {nullptr, 0};
  if (state_ == State::opening) return {&answer_[answer_in_], opening_bytes - answer_in_};
  if (!buffer_) buffer_.reset(new char[chunk_bytes]);
  return {buffer_.get(), chunk_bytes};
}

Status Endpoint::on_wire_bytes(std::size_t count) {
  if (state_ == State::opening) {
    answer_in_ += count;
    if (answer_in_ < opening_bytes) return {};
    auto answer = parse_opening({answer_.data(), answer_.size()});
    if (!answer) return fail(answer.error());
    if (!(answer->flags & opening_answer) || answer->channel != channel_ || answer->epoch != epoch_ ||
        !std::equal(answer->ticket.begin(), answer->ticket.end(), request_.ticket.begin()))
      return fail(Code::internal,
                  "channel " + std::to_string(channel_) + ": the answer to opening " + std::to_string(epoch_) + " belongs to another one");
    if (answer->flags & opening_refused)
      return fail(Code::not_found, "channel " + std::to_string(channel_) + " is not known at its pilot any more");
    acknowledged_ = request_.received;  // our header said it
    return start_sending(answer->received);
  }
  if (peer_final_ && received_ + count > *peer_final_)
    return fail(Code::internal, "channel " + std::to_string(channel_) + ": bytes came after the end of the stream");
  received_ += count;
  buffer_begin_ = 0;
  buffer_end_ = discard_ ? 0 : count;
  return {};
}

iovec Endpoint::deliverable() const { return {buffer_.get() + buffer_begin_, pending()}; }

void Endpoint::on_delivered(std::size_t count) {
  assert(count <= pending());
  buffer_begin_ += count;
}

Status Endpoint::on_peer_end(std::uint64_t final_offset) {
  if (final_offset < received_ || (peer_final_ && *peer_final_ != final_offset))
    return fail(Code::internal, "channel " + std::to_string(channel_) + ": its peer says that it ends at " + std::to_string(final_offset) +
                                    ", but " + std::to_string(peer_final_ ? *peer_final_ : received_) + " was said or received");
  peer_final_ = final_offset;
  return {};
}

void Endpoint::discard_incoming() {
  discard_ = true;
  buffer_begin_ = buffer_end_ = 0;
}

bool Endpoint::ack_due() const {
  return received_ - acknowledged_ >= ack_interval_bytes || (ack_owed() && peer_final_ && received_ == *peer_final_);
}

std::uint64_t Endpoint::take_ack() {
  acknowledged_ = received_;
  return received_;
}

void Endpoint::trim() {
  if (base_ == read_ && capacity_ > ring_start_bytes) {
    ring_.reset();
    capacity_ = 0;
  }
  if (pending() == 0) {
    buffer_.reset();
    buffer_begin_ = buffer_end_ = 0;
  }
}

}  // namespace flotilla::channel
