// Strong id types: a job is not a pilot.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>

namespace flotilla {

template <class Tag>
struct Id {
  std::uint64_t value = 0;  // 0 = none
  auto operator<=>(const Id&) const = default;
  explicit operator bool() const { return value != 0; }
};

using JobId = Id<struct JobTag>;
using PilotId = Id<struct PilotTag>;

// One node of a pilot; on links it is written "PILOT.NODE".
struct NodeId {
  PilotId pilot;
  std::uint32_t node = 0;
  auto operator<=>(const NodeId&) const = default;
};

// One try at a job.
struct Attempt {
  JobId job;
  std::uint32_t number = 0;
  auto operator<=>(const Attempt&) const = default;
};

std::string format_peer(NodeId node);
// Returns {0, 0} for anything that format_peer does not write.
NodeId parse_peer(const std::string& text);

}  // namespace flotilla

template <class Tag>
struct std::hash<flotilla::Id<Tag>> {
  std::size_t operator()(flotilla::Id<Tag> id) const noexcept { return std::hash<std::uint64_t>{}(id.value); }
};
template <>
struct std::hash<flotilla::NodeId> {
  std::size_t operator()(flotilla::NodeId id) const noexcept { return std::hash<std::uint64_t>{}(id.pilot.value * 1'000'003u + id.node); }
};
template <>
struct std::hash<flotilla::Attempt> {
  std::size_t operator()(flotilla::Attempt id) const noexcept { return std::hash<std::uint64_t>{}(id.job.value * 1'000'003u + id.number); }
};
