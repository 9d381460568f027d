// The conversation that brings the agent to another machine: a script for its POSIX sh, and what the script answers.
// Pure: text in, text out.
//
// The far side runs `exec /bin/sh` and reads the script from its stdin, so that neither the login shell's language nor the length
// of a command line matters. Nothing is sent after the script before the script asks for it: some shells read ahead.
//   script ->                 <- system, machine, ..., place or refused (each place), agent
//                             <- upload PLACE           (only where the agent is not there)
//   size of the packed agent, newline,
//   unpacker (as it is) ->    <- unpack
//   packed agent ->           <- agent
//                             <- failed REASON       (at any point of the upload)
//   next ->                   <- upload NEXT PLACE   (until the agent is there or no place is left)
//                             <- end
// then the script becomes `flotilla-agent connect`, or ends where there is no agent.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla::daemon {

std::string sh_quote(std::string_view text);

// What the user's machine can send: one agent for one kind of processor.
struct AgentDescription {
  std::string machine;     // as `uname -m` says: "x86_64", "aarch64"
  std::string sha256;      // hex
  std::uint64_t size = 0;  // unpacked
  std::uint64_t unpacker_size = 0;
};

struct BootstrapRequest {
  AgentDescription agent;
  std::string nonce;        // hex; begins each line of the answer, so that a talkative login does no harm
  std::string scratch_dir;  // empty: none; a leading "~/" is the home directory there
  std::string instance;     // hex
};

std::string build_bootstrap_script(const BootstrapRequest& request);

struct Place {
  std::string directory;
  std::int64_t free_kib = -1;  // -1 = not known
};
struct RefusedPlace {
  std::string directory;
  std::string reason;
};

// What has been understood of the answer so far.
struct BootstrapAnswer {
  bool greeted = false;
  std::string system, machine, node, home;
  std::int64_t uid = -1;
  std::int64_t time_s = 0;            // of the clock there, seconds since 1970
  std::vector<Place> places;          // usable, in order
  std::vector<RefusedPlace> refused;  // also those that did not take the agent
  bool damaged = false;               // an agent was there, damaged, and was removed
  std::string upload_to;              // the place that waits for the agent
  bool ready_for_unpacker = false, ready_for_agent = false;
  std::string agent;  // path of the verified agent
  std::string agent_build;
  std::string failure;  // the upload to upload_to failed; the next one begins without
  bool ended = false;
  std::vector<std::string> noise;  // lines that are not ours (a login that talks); the first few
};

// Takes one line (without its newline). Returns false for a line that is not ours.
bool parse_bootstrap_line(BootstrapAnswer& answer, const std::string& nonce, std::string_view line);

// Answers "failed": whatever was sent of the agent ends here.
std::string build_next_place_line(const std::string& nonce);

// "x86_64" for what `uname -m` may call it; unknown names come back as they are.
std::string normal_machine(const std::string& name);
// Takes away what was brought to try it, and the place if it is then empty.
std::string build_removal_command(const std::string& agent);
// The machine that an ELF file is for ("x86_64", ...), from its first bytes; empty if it is none that we know.
std::string machine_of_elf(std::string_view head);
// An error if the agent cannot run there, naming both.
Status check_machine(const BootstrapAnswer& answer, const AgentDescription& agent, const std::string& resource);
// An error if the hub there could not use the scratch_dir that the resource has. (The agent lies elsewhere where nothing can be run in it.)
Status check_scratch(const BootstrapAnswer& answer, std::string scratch_dir, const std::string& resource);
// All places were refused: names each with its reason.
Error no_place_error(const BootstrapAnswer& answer, const std::string& resource);

}  // namespace flotilla::daemon
