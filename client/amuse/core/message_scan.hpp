// Follows a stream of AMUSE messages by their lengths, keeping nothing of them but the header of the present one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "flotilla/message.hpp"

namespace flotilla::amuse {

class MessageScan {
 public:
  // Takes bytes up to the end of the present message; returns how many. The first of the next begin another one.
  // Throws wire's MessageError when this cannot be a message.
  std::size_t take(std::string_view bytes);
  // Between two messages: nothing of the next has come.
  bool between() const { return part_ == Part::header && have_ == 0; }
  // The header of the present message is whole; after its end it stays until the next one begins.
  bool has_header() const { return part_ != Part::header || (have_ == 0 && any_); }
  const wire::Header& header() const { return header_; }

 private:
  enum class Part { header, before_lengths, lengths, rest };
  void next_part();

  Part part_ = Part::header;
  std::uint64_t left_ = wire::header_size;  // of this part
  std::size_t have_ = 0;                    // of the header, or of the length that is being read
  bool any_ = false;
  unsigned char raw_[wire::header_size] = {};
  wire::Header header_;
  std::uint64_t text_bytes_ = 0;
};

}  // namespace flotilla::amuse
