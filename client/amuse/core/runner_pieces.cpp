#include "client/amuse/core/runner_pieces.hpp"

#include <algorithm>

#include "flotilla/message.hpp"

namespace flotilla::amuse {
namespace {

constexpr std::size_t head_size = 5, longest_piece = 1u << 20;

}  // namespace

bool stays_inside(std::string_view path) {
  if (path.empty() || path.front() == '/' || path.find('\0') != std::string_view::npos) return false;
  for (std::size_t at = 0; at <= path.size();) {
    const auto end = std::min(path.find('/', at), path.size());
    const auto part = path.substr(at, end - at);
    if (part.empty() || part == "." || part == "..") return false;
    at = end + 1;
  }
  return true;
}

void RunnerPieces::take(std::string_view bytes) {
  if (broken_) return;
  try {
    held_.append(bytes);
    std::string_view rest = held_;
    while (rest.size() >= head_size) {
      std::size_t size = 0;
      for (std::size_t i = 1; i < head_size; ++i) size = size << 8 | static_cast<unsigned char>(rest[i]);
      if (size > longest_piece) throw MessageError("a piece of " + std::to_string(size) + " bytes came back from the job");
      if (rest.size() < head_size + size) break;
      piece(rest[0], rest.substr(head_size, size));
      rest.remove_prefix(head_size + size);
    }
    held_.erase(0, held_.size() - rest.size());
  } catch (...) {
    broken_ = true;
    throw;
  }
}

void RunnerPieces::piece(char kind, std::string_view bytes) {
  if (whole_) throw MessageError("the job sent more after its end");
  switch (kind) {
    case 'o': sink_.on_output(bytes); return;
    case 'v': sink_.on_value(bytes); return;
    case 'f': {
      unsigned mode = 0;
      const bool said =
          bytes.size() > 4 && bytes[3] == ' ' && std::all_of(bytes.begin(), bytes.begin() + 3, [](char c) { return c >= '0' && c <= '7'; });
      for (std::size_t i = 0; said && i < 3; ++i) mode = mode * 8 + static_cast<unsigned>(bytes[i] - '0');
      if (in_file_ || !said || !stays_inside(bytes.substr(4)))
        throw MessageError("the job sent a file with an unusable name: '" + std::string(bytes.substr(0, 200)) + "'");
      in_file_ = true;
      sink_.on_file_begin(std::string(bytes.substr(4)), mode);
      return;
    }
    case 'd':
    case 'e':
      if (!in_file_) throw MessageError("the job sent bytes of no file");
      if (kind == 'd') {
        sink_.on_file_bytes(bytes);
      } else {
        in_file_ = false;
        sink_.on_file_end();
      }
      return;
    case 'z': whole_ = true; return;
    default: throw MessageError("the job's output makes no sense");
  }
}

}  // namespace flotilla::amuse
