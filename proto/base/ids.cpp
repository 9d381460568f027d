#include "proto/base/ids.hpp"

#include <charconv>

namespace flotilla {

std::string format_peer(NodeId node) { return std::to_string(node.pilot.value) + "." + std::to_string(node.node); }

NodeId parse_peer(const std::string& text) {
  NodeId id;
  const char* const end = text.data() + text.size();
  auto first = std::from_chars(text.data(), end, id.pilot.value);
  if (first.ec != std::errc{} || first.ptr == end || *first.ptr != '.') return {};
  auto second = std::from_chars(first.ptr + 1, end, id.node);
  if (second.ec != std::errc{} || second.ptr != end || id.pilot.value == 0) return {};
  return id;
}

}  // namespace flotilla
