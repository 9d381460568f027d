// The bytes of one output stream that the daemon has not got yet: in memory while few, then in a file without a name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {

constexpr std::size_t spool_memory_bytes = 256u << 10;

class Spool {
 public:
  explicit Spool(std::string folder) : folder_(std::move(folder)) {}

  // On failure (disk full) nothing was added. While little is held, that does not happen: it fits into memory.
  Status append(std::string_view data);
  // At most `count` bytes from stream offset `from` on, which is not below what was dropped.
  Result<std::string> read(std::uint64_t from, std::size_t count) const;
  void drop_below(std::uint64_t offset);
  std::uint64_t begin() const { return begin_; }
  std::uint64_t end() const { return end_; }
  bool in_file() const { return static_cast<bool>(file_); }

 private:
  Status to_file();
  bool to_memory();
  Status write_at(std::string_view data, std::uint64_t offset);

  std::string folder_;
  std::uint64_t begin_ = 0, end_ = 0;  // stream offsets
  std::string memory_;                 // holds [memory_begin_, end_) while there is no file
  std::uint64_t memory_begin_ = 0;     // may lie below begin_: what was dropped is cut off now and then
  unique_fd file_;                     // its offset 0 is stream offset file_base_
  std::uint64_t file_base_ = 0, punched_ = 0;
};

}  // namespace flotilla::pilot
