#include "daemon/transport/core/bootstrap.hpp"

#include <charconv>

namespace flotilla::daemon {
namespace {

constexpr std::size_t noise_lines = 8;  // enough to recognise a login message
constexpr std::string_view nothing_runs = "nothing can be run there, mounted noexec?";

void replace_all(std::string& text, std::string_view what, std::string_view with) {
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + with.size())) text.replace(at, what.size(), with);
}

// Everything stands in braces: the shell has read it all before it runs any of it.
constexpr std::string_view script_text = R"SH({
LC_ALL=C; export LC_ALL
PATH="$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"; export PATH
umask 077
say() { printf '%s %s\n' @NONCE@ "$*"; }
say hello
machine=$(uname -m)
say system "$(uname -s)"
say machine "$machine"
say node "$(uname -n)"
uid=$(id -u)
say uid "$uid"
say home "$HOME"
say time "$(date +%s)"
name=flotilla-agent-@SHA@
agent= places= made=
nl='
'

usable() {
  dir=$1
  case $dir in /*) ;; *) why='it is not an absolute path'; return 1;; esac
  why=$(mkdir -p "$dir" 2>&1) || return 1
  set -- $(ls -ldn "$dir/." 2>/dev/null)
  [ "x$3" = "x$uid" ] || { why="it belongs to user id $3"; return 1; }
  case $1 in
    d????w*|d???????w*) why=$(chmod 700 "$dir" 2>&1) || return 1;;
  esac
  try=$dir/.try.$$
  why=$( { printf '#!/bin/sh\nexit 0\n' | cat > "$try" && chmod 700 "$try"; } 2>&1 ) || { rm -f "$try"; return 1; }
  why=$("$try" 2>&1) || { rm -f "$try"; why="@NOTHING_RUNS@ $why"; return 1; }
  rm -f "$try"
}
consider() {
  [ -z "$agent" ] || return 0
  case $1 in ''|/flotilla) return 0;; esac
  case $places in *"$nl$1$nl"*) return 0;; esac
  new=
  [ -d "$1" ] || new=yes
  if usable "$1"; then
    [ -z "$new" ] || made=${made:-$nl}$1$nl
    set -- "$1" $(df -Pk "$1" 2>/dev/null | tail -n 1)
    say place "${5:-?}" "$1"
    places=${places:-$nl}$1$nl
    if [ -f "$1/$name" ]; then
      if build=$("$1/$name" verify @SHA@ 2>/dev/null); then
        agent=$1/$name
        touch "$agent" 2>/dev/null
      else
        rm -f "$1/$name"
        say damaged "$1/$name"
      fi
    fi
  else
    say refused "$1" : $why
  fi
}
bring() {
  [ -z "$agent" ] || return 0
  case $places in *"$nl$1$nl"*) ;; *) return 0;; esac
  place=$1
  usable "$place" || { say refused "$place" : $why; return 0; }
  unpack=$place/.unpack.$$
  say upload "$place"
  IFS= read -r packed
  if head -c 1 </dev/null >/dev/null 2>&1; then
    why=$( { head -c @UNPACKER@ > "$unpack" && chmod 700 "$unpack"; } 2>&1 )
  else
    why=$( { dd bs=1 count=@UNPACKER@ of="$unpack" 2>/dev/null && chmod 700 "$unpack"; } 2>&1 )
  fi
  if [ $? -eq 0 ]; then
    say unpack
    if why=$("$unpack" "$place/$name" "$packed" @SIZE@ 2>&1); then
      if build=$("$place/$name" verify @SHA@ 2>&1); then
        agent=$place/$name
        find "$place"/flotilla-agent-* -prune -type f -mtime +60 -exec rm -f {} \; 2>/dev/null
      else
        rm -f "$place/$name"
        why="the agent does not run there: $build"
      fi
    fi
  fi
  rm -f "$unpack"
  if [ -z "$agent" ]; then
    say failed $why
    # What was under way for this place ends with that line; nothing follows it until it is asked for.
    sed -n '/^@NONCE@ next$/q'
  fi
}
each_place() {
  [ -z "$scratch" ] || "$1" "$scratch/flotilla"
  [ -z "$HOME" ] || [ "$HOME" = / ] || "$1" "$HOME/.cache/flotilla"
  "$1" "/tmp/flotilla-$uid"
  [ ! -d /dev/shm ] || "$1" "/dev/shm/flotilla-$uid"
}
case $machine in
  @MACHINES@)
    scratch=@SCRATCH@
    case $scratch in '~') scratch=$HOME;; '~/'*) scratch=$HOME/${scratch#??};; esac
    case $scratch in ''|/*) ;; *) scratch=$HOME/$scratch;; esac
    each_place consider
    each_place bring
    # What was made here and is not needed does not stay.
    while [ -n "${made#"$nl"}" ]; do
      made=${made#"$nl"}
      rmdir "${made%%"$nl"*}" 2>/dev/null
      made=${made#*"$nl"}
    done
    ;;
esac

[ -z "$agent" ] || say agent "$agent" "$build"
say end
[ -z "$agent" ] || exec "$agent" connect --instance @INSTANCE@
exit 0
}
)SH";

std::string machine_patterns(const std::string& machine) {
  if (machine == "x86_64") return "x86_64|amd64";
  if (machine == "aarch64") return "aarch64|arm64";
  return sh_quote(machine);
}

std::int64_t number(std::string_view text, std::int64_t otherwise) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? value : otherwise;
}

// "first rest": takes the first word off.
std::string_view take_word(std::string_view& text) {
  const auto blank = text.find(' ');
  const auto word = text.substr(0, blank);
  text = blank == std::string_view::npos ? std::string_view{} : text.substr(blank + 1);
  return word;
}

}  // namespace

std::string sh_quote(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') out += "'\\''";
    else out += c;
  }
  return out + "'";
}

std::string build_bootstrap_script(const BootstrapRequest& request) {
  std::string script(script_text);
  // What the user wrote comes last, so that it is never searched for the others.
  replace_all(script, "@NONCE@", request.nonce);
  replace_all(script, "@SHA@", request.agent.sha256);
  replace_all(script, "@NOTHING_RUNS@", nothing_runs);
  replace_all(script, "@MACHINES@", machine_patterns(request.agent.machine));
  replace_all(script, "@UNPACKER@", std::to_string(request.agent.unpacker_size));
  replace_all(script, "@SIZE@", std::to_string(request.agent.size));
  replace_all(script, "@INSTANCE@", request.instance);
  replace_all(script, "@SCRATCH@", sh_quote(request.scratch_dir));
  return script;
}

bool parse_bootstrap_line(BootstrapAnswer& answer, const std::string& nonce, std::string_view line) {
  // A login message without a newline may stand before ours.
  const auto at = line.find(nonce + " ");
  if (at == std::string_view::npos) {
    if (!line.empty() && answer.noise.size() < noise_lines) answer.noise.emplace_back(line);
    return false;
  }
  auto rest = line.substr(at + nonce.size() + 1);
  const auto key = take_word(rest);
  if (key == "hello") answer.greeted = true;
  else if (key == "system") answer.system = rest;
  else if (key == "machine") answer.machine = rest;
  else if (key == "node") answer.node = rest;
  else if (key == "uid") answer.uid = number(rest, -1);
  else if (key == "home") answer.home = rest;
  else if (key == "time") answer.time_s = number(rest, 0);
  else if (key == "place") {
    const auto free = number(take_word(rest), -1);
    if (!rest.empty()) answer.places.push_back({std::string(rest), free});
  } else if (key == "refused") {
    const auto colon = rest.find(" : ");
    auto reason = colon == std::string_view::npos ? std::string() : std::string(rest.substr(colon + 3));
    if (colon == std::string_view::npos && rest.ends_with(" :")) rest.remove_suffix(2);
    answer.refused.push_back({std::string(rest.substr(0, colon)), reason.empty() ? "not usable" : reason});
  } else if (key == "damaged") answer.damaged = true;
  else if (key == "upload") {
    answer.upload_to = rest;
    answer.ready_for_unpacker = true;
    answer.ready_for_agent = false;
    answer.failure.clear();
  } else if (key == "unpack") answer.ready_for_agent = true;
  else if (key == "failed") {
    answer.failure = rest.empty() ? "the upload failed" : std::string(rest);
    answer.ready_for_unpacker = false;
    answer.refused.push_back({answer.upload_to, answer.failure});
  } else if (key == "agent") {
    // PATH intact BUILD: a path may have blanks, what `verify` says has none before its own.
    const auto said = rest.rfind(" intact ");
    answer.agent = rest.substr(0, said);
    if (said != std::string_view::npos) answer.agent_build = rest.substr(said + 8);
  } else if (key == "end") answer.ended = true;
  return true;
}

std::string build_removal_command(const std::string& agent) {
  const auto script = "rm -f " + sh_quote(agent) + "; rmdir " + sh_quote(agent.substr(0, agent.rfind('/'))) + " 2>/dev/null; echo removed";
  return "/bin/sh -c " + sh_quote(script);
}

std::string normal_machine(const std::string& name) {
  if (name == "amd64") return "x86_64";
  if (name == "arm64") return "aarch64";
  return name;
}

std::string machine_of_elf(std::string_view head) {
  // e_machine: two bytes at offset 18; byte 5 tells their order (1 = little-endian).
  if (head.size() < 20 || head.substr(0, 4) !=
                              "\x7f"
                              "ELF")
    return {};
  const auto a = static_cast<unsigned char>(head[18]), b = static_cast<unsigned char>(head[19]);
  const int machine = head[5] == 1 ? a | b << 8 : a << 8 | b;
  switch (machine) {
    case 62: return "x86_64";
    case 183: return "aarch64";
    case 21: return "ppc64le";
    case 243: return "riscv64";
    case 22: return "s390x";
  }
  return {};
}

Status check_machine(const BootstrapAnswer& answer, const AgentDescription& agent, const std::string& resource) {
  if (answer.system != "Linux")
    return fail(Code::unsupported, "resource " + resource + " runs " + (answer.system.empty() ? "an unknown system" : answer.system) +
                                       "; the agent runs on Linux only");
  if (normal_machine(answer.machine) != agent.machine)
    return fail(Code::unsupported,
                "resource " + resource + " has " + (answer.machine.empty() ? "an unknown processor" : answer.machine + " processors") +
                    "; the agent of this installation is for " + agent.machine,
                "use an installation of Flotilla that was built for " + (answer.machine.empty() ? "it" : answer.machine));
  return {};
}

Status check_scratch(const BootstrapAnswer& answer, std::string scratch_dir, const std::string& resource) {
  if (scratch_dir == "~" || scratch_dir.starts_with("~/")) scratch_dir.replace(0, 1, answer.home);
  else if (!scratch_dir.empty() && scratch_dir[0] != '/') scratch_dir = answer.home + "/" + scratch_dir;
  for (const auto& each : answer.refused)
    if (each.directory == scratch_dir + "/flotilla" && !each.reason.starts_with(nothing_runs))
      return fail(Code::failed_precondition,
                  "scratch_dir of resource " + resource + " cannot be used there: " + each.directory + ": " + each.reason,
                  "free some space there, or choose another scratch_dir, or none");
  return {};
}

std::string build_next_place_line(const std::string& nonce) { return "\n" + nonce + " next\n"; }

Error no_place_error(const BootstrapAnswer& answer, const std::string& resource) {
  Error error{Code::failed_precondition,
              "no place for the agent on resource " + resource,
              "free some space there, or name a directory with room where programs may run as the resource's scratch_dir",
              Retry::no,
              {}};
  for (const auto& each : answer.refused) error.faults.push_back(each.directory + ": " + each.reason);
  return error;
}

}  // namespace flotilla::daemon
