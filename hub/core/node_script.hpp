// How a pilot comes onto a node that the front end reaches by its own ssh: the commands, and what comes back. Pure.
//
// First session: `ssh HOST <start command>`. The script there looks for the agent and says one line,
//     FLOTILLA-NODE 1 have|need <machine> <$SSH_CONNECTION>
// With "have" it waits for the line "go" and becomes `flotilla-agent pilot`, which reads its PilotStart from the rest of stdin and
// prints STARTED. With "need" it ends; the agent's bytes go through a second session, `ssh HOST <store command>`, and
// the first is tried once more.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla::hub {

struct Agent {
  std::string path;    // of the running hub: the same path is tried on the node (a shared home)
  std::string sha256;  // hex: names the copy on nodes that share nothing
  std::string build;   // what it says to --version
};

// argv of the ssh program. `connect_timeout_s` bounds the TCP connection and the login.
std::vector<std::string> ssh_argv(const std::string& host, int connect_timeout_s, const std::string& remote_command);
// One word for the remote user's shell, whichever it is (sh, csh, fish): `sh -c '...'`.
std::string start_command(const Agent& agent);
std::string store_command(const Agent& agent);
// A host's name that ssh would take for an option, or that the shell could see, is refused.
Status check_host(const std::string& host);

struct NodeLine {
  bool have = false;
  std::string machine;
  std::string hub_address;  // ours, as the node sees it; empty = it did not say
  std::string node_address;
};
inline constexpr std::string_view node_line_start = "FLOTILLA-NODE 1 ";
// nullopt: another line (what a login shell prints).
std::optional<NodeLine> parse_node_line(std::string_view line);
inline constexpr std::string_view go_line = "go\n";

struct Started {
  std::uint32_t guard_pid = 0, pid = 0;
};
// "STARTED <guard pid> <pilot pid>"; nullopt for everything else.
std::optional<Started> parse_started(std::string_view line);

// What a pilot's starter says while the setup lines run: "SETUP <their limit in ms> <text>"; "SETUP 0" when they are over.
struct SetupLine {
  std::int64_t limit_ms = 0;
  std::string text;
};
std::optional<SetupLine> parse_setup_line(std::string_view line);

// One sentence of why a pilot did not start on `host`. ssh itself ends with 255.
constexpr int ssh_failed_code = 255;
std::string describe_failure(const std::string& host, int exit_code, int signal, std::string_view stderr_text);
// The end of a text, at most `limit` bytes, cut at a line where there is one.
std::string tail_of(std::string_view text, std::size_t limit);

// "1.2.3.4:5", "[::1]:5"
std::string format_address(const std::string& address, int port);
std::optional<std::pair<std::string, int>> parse_address(std::string_view text);

}  // namespace flotilla::hub
