// Tab completion: the shells call `flotilla __complete WORD...`, which knows the commands and asks the daemon for names.
#include "client/cli/command.hpp"

#include <algorithm>
#include <set>

namespace flotilla::cli {
namespace {

constexpr DaemonClient::Limit answer_limit{500};  // a key was pressed; who cannot answer by then offers nothing
constexpr std::uint32_t offered_jobs = 200;

using Candidates = std::vector<std::pair<std::string, std::string>>;  // word, explanation

// Only of a daemon that runs: pressing a key starts nothing.
Candidates from_daemon(Complete what) {
  Candidates out;
  auto client = DaemonClient::connect(StartDaemon::no, AnyBuild::yes);
  if (!client) return out;
  if (what == Complete::resource || what == Complete::label || what == Complete::log)
    if (const auto reply = (*client)->list_resources({}, answer_limit))
      for (const auto& resource : reply->resources())
        out.emplace_back(resource.spec().name(), resource.spec().location().empty() ? "this machine" : resource.spec().location());
  if (what == Complete::pilot || what == Complete::label || what == Complete::log)
    if (const auto reply = (*client)->list_pilots({}, answer_limit))
      for (const auto& pilot : reply->pilots()) {
        if (what == Complete::label) {
          if (!pilot.spec().label().empty()) out.emplace_back(pilot.spec().label(), "label of pilot " + std::to_string(pilot.id()));
        } else {
          out.emplace_back(std::to_string(pilot.id()), "pilot on " + pilot.spec().resource() + ", " + state_text(pilot.state()));
        }
      }
  if (what == Complete::job) {
    v1::ListJobsRequest request;
    request.set_limit(offered_jobs);
    if (const auto reply = (*client)->list_jobs(request, answer_limit))
      for (const auto& job : reply->jobs())
        out.emplace_back(std::to_string(job.id()),
                         state_text(job.state()) + ": " + (job.spec().name().empty() ? job_command(job.spec()) : job.spec().name()));
  }
  if (what == Complete::log) out.emplace_back("daemon", "the daemon's log");
  return out;
}

Candidates values_of(const Context& context, const CLI::Option* option) {
  const auto found = context.completions.find(option);
  const Complete what = found == context.completions.end() ? Complete::nothing : found->second;
  Candidates out;
  switch (what) {
    case Complete::nothing: return out;
    case Complete::file: return {{"", ":file"}};
    case Complete::topic:
      for (const auto& [name, summary] : topics()) out.emplace_back(name, summary);
      return out;
    case Complete::choices: {
      const std::string type = option->get_type_name();
      const std::size_t open = type.find('{'), close = type.rfind('}');
      if (open == std::string::npos || close == std::string::npos) return out;
      std::string word;
      for (const char c : type.substr(open + 1, close - open - 1) + ",") {
        if (c != ',') {
          word += c;
          continue;
        }
        out.emplace_back(word, "");
        word.clear();
      }
      return out;
    }
    default: return from_daemon(what);
  }
}

}  // namespace

std::string complete_line(const Context& context, const CLI::App* root, const std::vector<std::string>& words) {
  const std::string current = words.empty() ? "" : words.back();
  const CLI::App* app = root;
  const CLI::Option* value_of = nullptr;  // the option that the next word belongs to
  std::size_t positionals = 0;
  bool users_command = false;
  for (std::size_t i = 0; i + 1 < words.size() && !users_command; ++i) {
    const std::string& word = words[i];
    if (value_of) {
      value_of = nullptr;
    } else if (word == "--") {
      users_command = true;
    } else if (word.size() > 1 && word[0] == '-') {
      const CLI::Option* option = app->get_option_no_throw(word);
      if (option && option->get_items_expected_max() > 0) value_of = option;
    } else if (const CLI::App* sub = subcommand_of(app, word); sub && positionals == 0) {
      app = sub;
    } else {
      ++positionals;
      if (const auto takes = context.takes_words.find(app); takes != context.takes_words.end())
        users_command = positionals > (takes->second ? 1u : 0u);
    }
  }
  Candidates candidates;
  std::string before;  // of the word, that stays: "--on="
  if (users_command) {
    candidates = {{"", ":file"}};
  } else if (value_of) {
    candidates = values_of(context, value_of);
  } else if (current.rfind("--", 0) == 0 && current.find('=') != std::string::npos) {
    before = current.substr(0, current.find('=') + 1);
    if (const CLI::Option* option = app->get_option_no_throw(before.substr(0, before.size() - 1))) candidates = values_of(context, option);
  } else if (!current.empty() && current[0] == '-') {
    for (const CLI::Option* option : app->get_options()) {
      for (const auto& name : option->get_lnames()) candidates.emplace_back("--" + name, option->get_description());
      if (current.size() < 2 || current[1] != '-')
        for (const auto& name : option->get_snames()) candidates.emplace_back("-" + name, option->get_description());
    }
  } else {
    for (const CLI::App* sub : app->get_subcommands([](const CLI::App*) { return true; }))
      candidates.emplace_back(sub->get_name(), sub->get_description());
    std::size_t at = 0;
    for (const CLI::Option* option : app->get_options()) {
      if (!option->get_positional()) continue;
      const bool here = at == positionals || (positionals > at && option->get_items_expected_max() > 1);
      ++at;
      if (!here) continue;
      for (auto& candidate : values_of(context, option)) candidates.push_back(std::move(candidate));
      break;
    }
    const auto takes = context.takes_words.find(app);
    if (takes != context.takes_words.end() && !takes->second) candidates.emplace_back("", ":file");
  }
  std::string out;
  std::set<std::string> seen;
  for (const auto& [word, explanation] : candidates) {
    const std::string full = before + word;
    if (explanation != ":file" && full.compare(0, current.size(), current) != 0) continue;
    if (!seen.insert(full).second) continue;
    out += (explanation == ":file" ? ":file" : full + "\t" + printable(explanation, 60)) + "\n";
  }
  return out;
}

std::vector<std::string> command_paths(const CLI::App* root) {
  std::vector<std::string> out;
  for (const CLI::App* app : root->get_subcommands([](const CLI::App*) { return true; })) {
    out.push_back(app->get_name());
    for (const auto& below : command_paths(app)) out.push_back(app->get_name() + " " + below);
  }
  return out;
}

std::string completion_script(const std::string& shell) {
  if (shell == "bash")
    return R"(# Tab completion of flotilla for bash. Put this line into ~/.bashrc:
#   source <(flotilla completion bash)
_flotilla() {
  local line word files=0 current="${COMP_WORDS[COMP_CWORD]}"
  # bash breaks words at '=': join "--on" "=" "x" again.
  local words=() i
  for ((i = 1; i <= COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} == "=" && ${#words[@]} -gt 0 && ${words[-1]} == --* ]]; then
      words[-1]+="="
      if ((i < COMP_CWORD)); then ((i++)); words[-1]+="${COMP_WORDS[i]}"; fi
    else
      words+=("${COMP_WORDS[i]}")
    fi
  done
  [[ $current == "=" ]] && current=""
  COMPREPLY=()
  while IFS= read -r line; do
    if [[ $line == ":file" ]]; then files=1; continue; fi
    word="${line%%$'\t'*}"
    [[ ${words[-1]} == --*=* ]] && word="${word#*=}"
    COMPREPLY+=("$word")
  done < <("${COMP_WORDS[0]}" __complete "${words[@]}" 2>/dev/null)
  if ((files)); then
    compopt -o filenames 2>/dev/null
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$current")
  fi
}
complete -F _flotilla flotilla
)";
  if (shell == "zsh")
    return R"(#compdef flotilla
# Tab completion of flotilla for zsh. Put this line into ~/.zshrc, after compinit:
#   source <(flotilla completion zsh)
_flotilla() {
  local line files=0
  local -a described
  while IFS= read -r line; do
    if [[ $line == ":file" ]]; then files=1; continue; fi
    local word="${line%%$'\t'*}" text="${line#*$'\t'}"
    described+=("${word//:/\\:}:${text}")
  done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
  (( ${#described} )) && _describe -t flotilla flotilla described
  (( files )) && _files
}
# Out of a folder of fpath this is the body of the function that is asked for.
if [[ "${funcstack[1]}" == _flotilla ]]; then _flotilla; else compdef _flotilla flotilla; fi
)";
  return R"(# Tab completion of flotilla for fish. Put it into place with:
#   flotilla completion fish > ~/.config/fish/completions/flotilla.fish
function __flotilla_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    for line in ($before[1] __complete $before[2..-1] "$current" 2>/dev/null)
        if test "$line" = ":file"
            __fish_complete_path "$current"
        else
            echo $line
        end
    end
end
complete -c flotilla -f -a '(__flotilla_complete)'
)";
}

}  // namespace flotilla::cli
