#include "client/amuse/core/message_scan.hpp"

#include <algorithm>
#include <cstring>
#include <string>

namespace flotilla::amuse {

std::size_t MessageScan::take(std::string_view bytes) {
  std::size_t taken = 0;
  while (taken < bytes.size()) {
    const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(left_, bytes.size() - taken));
    if (part_ == Part::header) std::memcpy(raw_ + have_, bytes.data() + taken, piece);
    if (part_ == Part::lengths) {
      for (std::size_t i = 0; i < piece; ++i) {
        raw_[have_++] = static_cast<unsigned char>(bytes[taken + i]);
        if (have_ < 4) continue;
        have_ = 0;
        std::int32_t length;
        std::memcpy(&length, raw_, 4);
        if (header_.big_endian != wire::native_big_endian) wire::swap_bytes(&length, 1, 4);
        if (length < 0) throw MessageError("the channel is out of step: a string of " + std::to_string(length) + " bytes");
        text_bytes_ += static_cast<std::uint64_t>(length) + 1;
      }
    } else if (part_ == Part::header) {
      have_ += piece;
    }
    left_ -= piece;
    taken += piece;
    while (left_ == 0) {
      next_part();
      if (between()) return taken;
    }
  }
  return taken;
}

void MessageScan::next_part() {
  const auto fixed = [&] {
    std::uint64_t sum = 0;
    for (unsigned t = 0; t < wire::string_type; ++t) sum += std::uint64_t(header_.counts[t]) * wire::type_sizes[t];
    return sum;
  };
  switch (part_) {
    case Part::header:
      header_ = wire::parse_header(raw_);
      wire::check_size(wire::body_bytes(header_), wire::default_max_bytes);
      have_ = 0;
      any_ = true;
      text_bytes_ = 0;
      part_ = Part::before_lengths;
      left_ = fixed();
      return;
    case Part::before_lengths:
      part_ = Part::lengths;
      left_ = std::uint64_t(header_.counts[wire::string_type]) * 4;
      return;
    case Part::lengths:
      wire::check_size(text_bytes_, wire::default_max_bytes);
      part_ = Part::rest;
      left_ = text_bytes_ + std::uint64_t(header_.units) * 8;
      return;
    case Part::rest:
      part_ = Part::header;
      left_ = wire::header_size;
      return;
  }
}

}  // namespace flotilla::amuse
