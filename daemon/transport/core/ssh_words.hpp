// What the system's ssh program says, and what it means. Pure; checked against recorded outputs.
#pragma once

#include <string>

#include "flotilla/v1/client.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::daemon {

enum class SshFailure { name, reachability, host_key, authentication, other };

struct SshVerdict {
  SshFailure where = SshFailure::other;
  Error error;
};
// What to do about a host key that is not known.
std::string accept_key_hint(const std::string& resource);

// `output`: what it wrote on stderr before it ended. `place`: "hpc1 (alice@login.example)", for the message.
SshVerdict judge_ssh_failure(const std::string& output, const std::string& place, const std::string& resource);

// `output`: of an ssh that has opened forwarded connections. Does the other side forbid them?
bool says_forwarding_forbidden(const std::string& output);

// A question that came through SSH_ASKPASS. `kind`: $SSH_ASKPASS_PROMPT ("", "confirm", "none").
v1::Prompt parse_ssh_question(const std::string& kind, const std::string& text, const std::string& resource);

// `said`: what is known of why, in the words of ssh or the agent there.
inline constexpr const char* said_nothing = "it takes the connection, and then says nothing";
Error gateway_cannot_reach(const std::string& gateway, const std::string& host, int port, std::string said);

}  // namespace flotilla::daemon
