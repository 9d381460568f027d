#include "daemon/transport/core/ssh_words.hpp"

namespace flotilla::daemon {
namespace {

bool has(const std::string& text, const char* what) { return text.find(what) != std::string::npos; }

std::string line_with(const std::string& text, const std::string& what) {
  const auto at = text.find(what);
  if (at == std::string::npos) return {};
  const auto begin = text.rfind('\n', at), end = text.find('\n', at);
  auto line = text.substr(begin == std::string::npos ? 0 : begin + 1,
                          end == std::string::npos ? end : end - (begin == std::string::npos ? 0 : begin + 1));
  while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
  return line;
}

std::string last_line(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

std::string fingerprint_in(const std::string& text) {
  const auto at = text.find("SHA256:");
  if (at == std::string::npos) return {};
  auto word = text.substr(at, text.find_first_of(" \r\n,)", at) - at);
  while (!word.empty() && word.back() == '.') word.pop_back();
  return word;
}

}  // namespace

std::string accept_key_hint(const std::string& resource) {
  return "compare the fingerprint with what the site publishes, then accept it: flotilla resource test " + resource + " --accept-new";
}

SshVerdict judge_ssh_failure(const std::string& output, const std::string& place, const std::string& resource) {
  if (has(output, "Could not resolve hostname"))
    return {SshFailure::name,
            {Code::unavailable,
             "cannot find the host of " + place + ": " + line_with(output, "Could not resolve hostname"),
             "correct the resource's location or ~/.ssh/config; is this machine online?",
             Retry::yes,
             {}}};
  if (has(output, "IDENTIFICATION HAS CHANGED")) {
    auto where = line_with(output, "Offending");  // "Offending ED25519 key in /home/a/.ssh/known_hosts:3"
    const auto in = where.find(" in ");
    where = in == std::string::npos ? "known_hosts" : where.substr(in + 4);
    if (const auto colon = where.rfind(':'); colon != std::string::npos) where.replace(colon, 1, " line ");
    return {SshFailure::host_key,
            {Code::host_key_changed,
             "the host key of " + place + " is not the one that is known (" + where + "): it shows " + fingerprint_in(output) +
                 ". Somebody may be in between, or the machine was set up anew",
             "ask its administrator; if the new key is right, remove that line (ssh-keygen -R)",
             Retry::no,
             {}}};
  }
  if (has(output, "Host key verification failed"))
    return {SshFailure::host_key,
            {Code::host_key_unknown,
             "the host key of " + place + " is not known and was not accepted",
             accept_key_hint(resource),
             Retry::no,
             {}}};
  if (has(output, "Permission denied (") || has(output, "Too many authentication failures"))
    return {SshFailure::authentication,
            {Code::authentication_failed,
             place + " did not let you in: " +
                 line_with(output, has(output, "Permission denied (") ? "Permission denied (" : "Too many authentication failures"),
             "check the user's name, your keys (ssh-add -l) or Kerberos ticket (klist)",
             Retry::no,
             {}}};
  for (const char* cause :
       {"Connection refused", "Connection timed out", "No route to host", "Network is unreachable", "Operation timed out",
        "Connection closed by", "Connection reset by", "kex_exchange_identification", "timed out"})
    if (has(output, cause))
      return {SshFailure::reachability,
              {Code::unavailable,
               "cannot reach " + place + ": " + line_with(output, cause),
               "is the machine up, is sshd running on that port, and is there a way to it from here (VPN, firewall)?",
               Retry::yes,
               {}}};
  const auto said = last_line(output);
  return {SshFailure::other,
          {Code::unavailable, "ssh to " + place + " failed" + (said.empty() ? "" : ": " + said), "try it by hand: ssh -v", Retry::yes, {}}};
}

bool says_forwarding_forbidden(const std::string& output) {
  // The second is what OpenSSH's sshd makes of a unix socket that it does not forward to (and of one that is not there).
  return has(output, "open failed: administratively prohibited") || has(output, "open failed: connect failed: open failed");
}

v1::Prompt parse_ssh_question(const std::string& kind, const std::string& text, const std::string& resource) {
  v1::Prompt prompt;
  prompt.set_resource(resource);
  prompt.set_text(text);
  if (has(text, "(yes/no")) {
    prompt.set_kind(v1::PROMPT_HOST_KEY);
    prompt.set_fingerprint(fingerprint_in(text));
  } else {
    prompt.set_kind(kind == "confirm" ? v1::PROMPT_TEXT : v1::PROMPT_SECRET);
  }
  return prompt;
}

Error gateway_cannot_reach(const std::string& gateway, const std::string& host, int port, std::string said) {
  // "flotilla-agent: cannot connect to HOST port 22: CAUSE", "Channel opening failure: channel 43 error (2) CAUSE"
  while (!said.empty() && (said.back() == '\n' || said.back() == '\r')) said.pop_back();
  if (const auto line = said.rfind('\n'); line != std::string::npos) said.erase(0, line + 1);
  if (const auto dialled = said.find("cannot connect to "); dialled != std::string::npos) {
    if (const auto cause = said.find(": ", dialled); cause != std::string::npos) said.erase(0, cause + 2);
  } else if (const auto error = said.rfind("error ("); error != std::string::npos) {
    if (const auto cause = said.find(") ", error); cause != std::string::npos) said.erase(0, cause + 2);
  }
  const auto service = std::to_string(port);
  const bool refused = said.find("Connection refused") != std::string::npos;
  return {Code::unavailable,
          "the gateway " + gateway + " cannot reach " + host + " port " + service + (said.empty() ? "" : ": " + said),
          said == said_nothing ? "is it sshd that listens there?"
          : refused            ? "nothing listens there: is sshd running on " + host + ", and is " + service + " its port?"
                               : "is " + host + " up, and is that its name as the gateway knows it?",
          Retry::yes,
          {}};
}

}  // namespace flotilla::daemon
