// Input files on their way to pilots: how far each may be ahead of what its pilot has taken. A node may be slower than the line to its
// hub, and what is too far ahead would pile up there. Pure.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace flotilla::daemon {

struct BlobFlow {
  static constexpr std::uint64_t all_bytes = 64ull << 20;  // of all files on their way
  static constexpr std::uint64_t most_bytes = 16ull << 20;
  static constexpr std::uint64_t least_bytes = 1ull << 20;  // a pilot tells every 512 KiB

  static constexpr std::uint64_t window(std::size_t on_their_way) {
    return std::clamp<std::uint64_t>(all_bytes / std::max<std::size_t>(1, on_their_way), least_bytes, most_bytes);
  }
  bool may_send(std::size_t on_their_way) const { return !told || offset - taken < window(on_their_way); }
  void on_taken(std::uint64_t bytes) { taken = std::clamp(bytes, taken, offset); }

  std::uint64_t offset = 0;  // sent up to here
  std::uint64_t taken = 0;
  bool told = true;  // pilots of an earlier version do not tell
};

}  // namespace flotilla::daemon
