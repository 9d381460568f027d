// The agent as it is sent to other machines.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "daemon/transport/core/bootstrap.hpp"
#include "proto/base/result.hpp"

namespace flotilla::daemon {

// The small static program that goes in front of the packed agent (daemon/transport/unpack), a part of this program.
std::string_view unpacker();

// Reads the file (once for each version of it in this process: hashing takes a moment).
Result<AgentDescription> describe_agent(const std::filesystem::path& agent);

// The agent, compressed. The first time it is packed quickly, so that nobody waits; a thread of low priority then packs it well
// into `cache_dir`, under its hash, for all later times. A file `<agent>.zst` of the same content is taken where it lies beside the agent.
Result<std::string> packed_agent(const std::filesystem::path& agent, const AgentDescription& description,
                                 const std::filesystem::path& cache_dir);

// Waits until the thread has ended (tests).
void finish_packing();

}  // namespace flotilla::daemon
