#include "hub/core/node_script.hpp"

#include <algorithm>
#include <charconv>

namespace flotilla::hub {
namespace {

// In single quotes for a shell; '"'"' for a quote itself.
std::string quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') out += "'\"'\"'";
    else out += c;
  }
  return out + "'";
}
// Inside double quotes of a POSIX sh.
std::string inside_double(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\' || c == '$' || c == '`') out += '\\';
    out += c;
  }
  return out;
}

// own PATH: a directory or file (no link) of ours that nobody else may write. In /tmp anybody may have made it before us,
// with a program of his in it.
constexpr std::string_view own_function =
    "own() { ls -ldn \"$1\" 2>/dev/null | { read -r m n o r; case $m in [d-]????"
    "-?"
    "?-*) [ \"$o\" = \"$u\" ];; *) false;; esac; }; }; ";

// Where a copy of the agent may lie, in this order: home directories may be full or noexec, /tmp too. In a variable list for sh.
std::string copy_places(const Agent& agent) {
  const std::string name = "flotilla-agent-" + agent.sha256.substr(0, 16);
  return "\"${HOME:-/nonexistent}/.cache/flotilla/" + name + "\" \"/tmp/flotilla-$u/" + name + "\" \"/dev/shm/flotilla-$u/" + name + "\"";
}

std::vector<std::string_view> words(std::string_view line) {
  std::vector<std::string_view> out;
  for (std::size_t at = 0; at < line.size();) {
    const std::size_t begin = line.find_first_not_of(" \r\n", at);
    if (begin == std::string_view::npos) break;
    const std::size_t end = std::min(line.find_first_of(" \r\n", begin), line.size());
    out.push_back(line.substr(begin, end - begin));
    at = end;
  }
  return out;
}

template <class T>
bool parse_number(std::string_view text, T& value) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  return parsed.ec == std::errc{} && parsed.ptr == text.data() + text.size() && !text.empty();
}

}  // namespace

std::vector<std::string> ssh_argv(const std::string& host, int connect_timeout_s, const std::string& remote_command) {
  return {"ssh", "-T",
          "-x",  "-a",
          "-o",  "BatchMode=yes",
          "-o",  "ConnectTimeout=" + std::to_string(connect_timeout_s),
          "-o",  "ConnectionAttempts=1",
          "-o",  "ServerAliveInterval=3",
          "-o",  "ServerAliveCountMax=2",
          "-o",  "ClearAllForwardings=yes",
          host,  remote_command};
}

std::string start_command(const Agent& agent) {
  // The agent is taken only if it runs and says that it is the one: a file system may be noexec, a copy cut short.
  const std::string script =
      "u=$(id -u); " + std::string(own_function) + "a=; for p in \"" + inside_double(agent.path) + "\" " + copy_places(agent) +
      "; do if [ -x \"$p\" ] && own \"${p%/*}\" && own \"$p\" && [ \"$(\"$p\" --version 2>/dev/null </dev/null)\" = \"" +
      inside_double(agent.build) +
      "\" ]; then a=$p; break; fi; done; m=$(uname -m); "
      "if [ -z \"$a\" ]; then echo \"FLOTILLA-NODE 1 need $m ${SSH_CONNECTION:-}\"; exit 0; fi; "
      "echo \"FLOTILLA-NODE 1 have $m ${SSH_CONNECTION:-}\"; "
      "read -r go || exit 0; [ \"$go\" = go ] || exit 0; exec \"$a\" pilot";
  return "exec sh -c " + quoted(script);
}

std::string store_command(const Agent& agent) {
  // stdin is read once, so the place is chosen before: one where a small script runs.
  const std::string script = "umask 077; u=$(id -u); " + std::string(own_function) + "for p in " + copy_places(agent) +
                             "; do d=${p%/*}; mkdir -p \"$d\" 2>/dev/null || continue; "
                             "own \"$d\" || { chmod go-w \"$d\" 2>/dev/null && own \"$d\"; } || continue; "
                             "t=\"$d/.try.$$\"; { echo \"#!/bin/sh\"; echo \"exit 0\"; } >\"$t\" 2>/dev/null && chmod 700 \"$t\" && \"$t\" "
                             "2>/dev/null; r=$?; rm -f \"$t\"; "
                             "[ \"$r\" = 0 ] || continue; "
                             "if cat >\"$p.$$\" && chmod 700 \"$p.$$\" && mv -f \"$p.$$\" \"$p\"; then echo \"STORED $p\"; exit 0; fi; "
                             "rm -f \"$p.$$\"; echo \"cannot write $p\" >&2; exit 1; done; "
                             "echo \"no place where a program can be stored and run: tried ~/.cache, /tmp, /dev/shm\" >&2; exit 1";
  return "exec sh -c " + quoted(script);
}

Status check_host(const std::string& host) {
  const bool good =
      !host.empty() && host.front() != '-' && host.size() <= 255 && std::all_of(host.begin(), host.end(), [](unsigned char c) {
        return std::isalnum(c) || c == '.' || c == '-' || c == '_' || c == '@' || c == ':' || c == '[' || c == ']' || c == '%';
      });
  if (!good)
    return fail(Code::invalid_argument, "'" + host + "' cannot be the name of a host",
                "correct `hosts` of the resource: names or addresses as ssh takes them");
  return {};
}

std::optional<NodeLine> parse_node_line(std::string_view line) {
  if (!line.starts_with(node_line_start)) return std::nullopt;
  const auto parts = words(line.substr(node_line_start.size()));
  if (parts.size() < 2 || (parts[0] != "have" && parts[0] != "need")) return std::nullopt;
  NodeLine out;
  out.have = parts[0] == "have";
  out.machine = parts[1];
  // SSH_CONNECTION: client address, client port, server address, server port.
  if (parts.size() == 6) {
    out.hub_address = parts[2];
    out.node_address = parts[4];
  }
  return out;
}

std::optional<Started> parse_started(std::string_view line) {
  const auto parts = words(line);
  Started out;
  if (parts.size() != 3 || parts[0] != "STARTED" || !parse_number(parts[1], out.guard_pid) || !parse_number(parts[2], out.pid) ||
      out.guard_pid == 0 || out.pid == 0)
    return std::nullopt;
  return out;
}

std::optional<SetupLine> parse_setup_line(std::string_view line) {
  constexpr std::string_view word = "SETUP ";
  if (!line.starts_with(word)) return std::nullopt;
  line.remove_prefix(word.size());
  const std::size_t end = std::min(line.find(' '), line.size());
  SetupLine out;
  std::uint32_t limit_ms = 0;
  if (!parse_number(line.substr(0, end), limit_ms)) return std::nullopt;
  out.limit_ms = limit_ms;
  if (end < line.size()) out.text = line.substr(end + 1);
  return out;
}

std::string tail_of(std::string_view text, std::size_t limit) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
  if (text.size() > limit) {
    text.remove_prefix(text.size() - limit);
    if (const auto line = text.find('\n'); line != std::string_view::npos && line + 1 < text.size()) text.remove_prefix(line + 1);
  }
  return std::string(text);
}

std::string describe_failure(const std::string& host, int exit_code, int signal, std::string_view stderr_text) {
  const std::string text = tail_of(stderr_text, 2000);
  const std::string last = text.substr(text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1);
  if (exit_code == ssh_failed_code) return "ssh to " + host + " failed (exit code 255)" + (last.empty() ? "" : ": " + last);
  if (signal)
    return "the pilot on " + host + " did not start: killed by signal " + std::to_string(signal) + (last.empty() ? "" : ": " + last);
  if (exit_code == 0) return "the pilot on " + host + " did not say that it has started" + (last.empty() ? "" : ": " + last);
  return "the pilot on " + host + " did not start (exit code " + std::to_string(exit_code) + ")" + (last.empty() ? "" : ": " + last);
}

std::string format_address(const std::string& address, int port) {
  const bool six = address.find(':') != std::string::npos;
  return (six ? "[" + address + "]" : address) + ":" + std::to_string(port);
}

std::optional<std::pair<std::string, int>> parse_address(std::string_view text) {
  const auto colon = text.rfind(':');
  int port = 0;
  if (colon == std::string_view::npos || colon == 0 || !parse_number(text.substr(colon + 1), port) || port < 0 || port > 65535)
    return std::nullopt;
  std::string_view address = text.substr(0, colon);
  if (address.front() == '[' && address.back() == ']') address = address.substr(1, address.size() - 2);
  if (address.empty() || address.find_first_of("[] \t\r\n") != std::string_view::npos) return std::nullopt;
  return std::pair(std::string(address), port);
}

}  // namespace flotilla::hub
