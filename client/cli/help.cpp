// Pages of help in the form of manual pages.
#include "client/cli/command.hpp"

#include <algorithm>

namespace flotilla::cli {
namespace {

constexpr std::size_t page_width = 80;  // fixed: the same page everywhere, and in docs/cli.md
constexpr std::size_t indent = 4;

std::string block(const std::string& text) {
  const std::string margin(indent, ' ');
  return margin + wrap(text, page_width, indent) + "\n";
}

std::string title(const std::string& text, const Look& look) { return paint(text, colour::bold, look) + "\n"; }

std::string full_name(const CLI::App* app) {
  std::string name = app->get_name();
  for (const CLI::App* up = app->get_parent(); up; up = up->get_parent()) name = up->get_name() + " " + name;
  return name;
}

bool many(const CLI::Option* option) { return option->get_items_expected_max() > 1; }

std::string positional(const CLI::Option* option) {
  std::string text = option->get_name(true, false);
  if (many(option)) text += "...";
  return option->get_required() ? text : "[" + text + "]";
}

// CLI11 writes the choices behind the type: "NAME:{a,b}".
std::pair<std::string, std::string> type_of(const CLI::Option* option) {
  const std::string type = option->get_type_name();
  const std::size_t at = type.find(":{");
  if (at == std::string::npos) return {type, ""};
  std::string choices = type.substr(at + 2, type.size() - at - 3), spaced;
  for (const char c : choices) spaced += c == ',' ? std::string(", ") : std::string(1, c);
  return {type.substr(0, at), spaced};
}

std::string option_text(const CLI::Option* option, const Look& look) {
  const auto [type, choices] = type_of(option);
  std::string names;
  for (const auto& name : option->get_snames()) names += (names.empty() ? "" : ", ") + ("-" + name);
  for (const auto& name : option->get_lnames()) names += (names.empty() ? "" : ", ") + ("--" + name);
  if (names.empty()) names = option->get_name(true, false);
  std::string out = std::string(indent, ' ') + paint(names, colour::bold, look);
  if (option->get_items_expected_max() > 0 && !type.empty() && !option->get_positional()) out += " " + type;
  std::string text = option->get_description();
  if (!choices.empty()) text += " (one of " + choices + ")";
  const std::string deep(indent * 2, ' ');
  return out + "\n" + deep + wrap(text, page_width, indent * 2) + "\n";
}

struct Topic {
  const char* name;
  const char* summary;
  std::string (*text)();
};

std::string keys_text(const std::vector<KeyHelp>& keys) {
  std::string out;
  for (const auto& key : keys) out += "  " + pad(key.key, 15) + pad(key.type, 15) + wrap(key.meaning, page_width - indent - 2, 32) + "\n";
  return out;
}

const Topic all_topics[] = {
    {"concepts", "the words that Flotilla uses",
     [] {
       return std::string(
           "resource\n  a machine or cluster that one can get at: how to log in, how pilots are started there\n"
           "hub\n  one process for each remote resource, on its front end: starts pilots there, relays through the firewall\n"
           "pilot\n  a process on the nodes of a resource that offers slots and pulls jobs\n"
           "slot\n  a unit of room on a node; a job takes processes x threads of them\n"
           "job\n  work for a pilot: a command, or a worker (a code that stays up and is called from a script)\n"
           "label\n  a word that a pilot carries and jobs ask for; a resource's name is a label of its pilots too\n"
           "daemon\n  the process on this machine that knows all of this and decides\n"
           "attempt\n  one try at a job");
     }},
    {"exit-codes", "what flotilla returns",
     [] {
       return std::string(
           "  0    success\n"
           "  1    it failed; of 'job wait' and 'submit --wait': a job failed or was canceled\n"
           "  2    the command line or a description is wrong\n"
           "  3    there is no such resource, pilot or job; of 'daemon status': it does not run\n"
           "  4    the daemon or a machine cannot be reached, or refused us\n"
           "  5    the --timeout of a wait is over\n"
           "\n"
           "run, attach, exec and shell return the command's own exit code, and:\n"
           "  124  its time limit, its queue time-out or its start time-out is over\n"
           "  125  Flotilla could not run it, or lost it\n"
           "  126  the program is there but cannot be executed\n"
           "  127  there is no such program\n"
           "  128+N  signal N killed it\n"
           "  130  it was canceled\n"
           "A wrong command line gives 2 there too.");
     }},
    {"environment", "variables and files",
     [] {
       return std::string(
           "  ~/.config/flotilla/config.toml    configuration of the daemon\n"
           "  ~/.local/state/flotilla/HOST/     journal, logs, kept output\n"
           "  /tmp/fl-UID-XXXXXXXX/             sockets\n"
           "\n"
           "  FLOTILLA_STATE_DIR    another folder for the state: another, independent daemon\n"
           "  FLOTILLA_CONFIG       another configuration file\n"
           "  FLOTILLA_RUNTIME_DIR  another folder for the sockets\n"
           "  NO_COLOR              no colours\n"
           "\n"
           "The daemon keeps the environment of the command that started it (SSH_AUTH_SOCK among it).\n"
           "\n"
           "Each process of a job finds FLOTILLA_JOB, FLOTILLA_ATTEMPT, FLOTILLA_PILOT, FLOTILLA_NODE, FLOTILLA_RESOURCE and "
           "FLOTILLA_INSTANCE in its environment.");
     }},
    {"from-file", "keys of job and resource files",
     [] {
       return "A file describes one thing at its top level, or several in tables [[job]] or [[resource]]. Keys that are not known are "
              "refused by name, and all faults are told at once. Durations are texts such as \"2h30m\", or numbers of seconds.\n"
              "\n"
              "Keys of a job ('flotilla submit --from-file'):\n" +
              keys_text(job_keys()) + "\nKeys of a resource ('flotilla resource add --from-file'):\n" + keys_text(resource_keys()) +
              "\nExample:\n"
              "  [[job]]\n"
              "  name = \"fit\"\n"
              "  label = \"hpc\"\n"
              "  argv = [\"./fit\", \"model.par\"]\n"
              "  files = [\"model.par\", \"bin/fit\"]\n"
              "  slots = 4\n"
              "  time_limit = \"30min\"\n"
              "  env = { SEED = \"1\" }";
     }},
    {"json", "the form of --json",
     [] {
       return std::string(
           "Listings are arrays, 'show' of one thing is an object. Names are those of the protocol's messages (proto/flotilla/v1/"
           "types.proto): a job has id, spec, state, pilot, host, exit and so on. States and kinds are words in lower case (\"running\", "
           "\"exited\"). Moments end in _ms and are milliseconds since 1970 (UTC), durations are milliseconds, sizes are bytes; 0 stands "
           "for what is not there. Bytes are hexadecimal. Fields may be added, none is renamed or removed within a major version.\n"
           "\n"
           "Without --json, listings are for people, on a terminal as in a pipe: their form may change.");
     }},
    {"units", "durations, sizes and signals",
     [] {
       return std::string(
           "Durations: 90 (seconds), 90s, 10min, 1.5h, 2h30m, 1d, 250ms, 1:30:00 (hours), 02:30 (minutes).\n"
           "Sizes: 4096, 64k, 10MiB, 1.5G. k, M, G, T and KiB to TiB are powers of 1024; kB, MB, GB, TB of 1000.\n"
           "Signals: INT, SIGINT or 2.");
     }},
    {"terminal", "keys, signals and leaving a job",
     [] {
       return std::string(
           "With -t the job has a terminal of its own: every key goes there, and the window's size follows ours. Without -t input is "
           "passed on in lines, and Ctrl-D ends it.\n"
           "\n"
           "  Ctrl-C         goes to the job: as a key with -t, else as SIGINT\n"
           "  Ctrl-C twice   without -t, within two seconds: cancels the job; once more: does not wait for its end\n"
           "  Ctrl-P Ctrl-Q  leaves the job running and returns; 'flotilla attach JOB' comes back\n"
           "\n"
           "SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 that flotilla gets are passed on to the job. The terminal's settings are put "
           "back whatever happens, except after kill -9 ('reset' helps then).");
     }},
};

}  // namespace

const CLI::App* subcommand_of(const CLI::App* app, const std::string& name) {
  for (const CLI::App* sub : app->get_subcommands([](const CLI::App*) { return true; }))
    if (sub->get_name() == name) return sub;
  return nullptr;
}

std::string help_text(const Context& context, const CLI::App* app) {
  const Look& look = context.out;
  const auto found = context.pages.find(app);
  const Page empty{"", "", {}};
  const Page& page = found == context.pages.end() ? empty : found->second;
  const std::string name = full_name(app);
  std::string out = title("NAME", look) + block(name + " - " + page.summary);

  const auto subcommands = app->get_subcommands([](const CLI::App*) { return true; });
  std::vector<const CLI::Option*> options, positionals;
  for (const CLI::Option* option : app->get_options()) {
    if (option->get_positional()) positionals.push_back(option);
    else options.push_back(option);
  }
  out += "\n" + title("SYNOPSIS", look);
  std::string line = name;
  if (!subcommands.empty()) {
    line += " COMMAND ...";
  } else {
    if (options.size() > 1) line += " [OPTIONS]";
    for (const CLI::Option* option : positionals) line += " " + positional(option);
    if (context.takes_words.contains(app)) line += app->get_name() == "shell" ? " [-- COMMAND...]" : " -- COMMAND...";
  }
  out += block(line);

  out += "\n" + title("DESCRIPTION", look) + block(page.text);
  if (!subcommands.empty()) {
    out += "\n" + title("COMMANDS", look);
    std::size_t wide = 0;
    for (const CLI::App* sub : subcommands) wide = std::max(wide, sub->get_name().size());
    for (const CLI::App* sub : subcommands)
      out += std::string(indent, ' ') + paint(pad(sub->get_name(), wide + 2), colour::bold, look) + sub->get_description() + "\n";
  }
  bool described = false;
  for (const CLI::Option* option : positionals) described = described || !option->get_description().empty();
  if (described) {
    out += "\n" + title("ARGUMENTS", look);
    for (const CLI::Option* option : positionals) out += option_text(option, look);
  }
  if (!options.empty()) {
    out += "\n" + title("OPTIONS", look);
    const auto is_help = [](const CLI::Option* option) { return option->check_lname("help"); };
    std::stable_partition(options.begin(), options.end(), [&](const CLI::Option* option) { return !is_help(option); });
    for (const CLI::Option* option : options) out += option_text(option, look);
  }
  if (app->get_parent() == nullptr) {
    out += "\n" + title("TOPICS", look);
    for (const auto& topic : all_topics) out += std::string(indent, ' ') + pad(topic.name, 13) + topic.summary + "\n";
    out += block("'flotilla help TOPIC' shows one, 'flotilla help COMMAND' or 'flotilla COMMAND --help' a command's page.");
  }
  if (!page.examples.empty()) {
    out += "\n" + title("EXAMPLES", look);
    for (const auto& [what, command] : page.examples)
      out += block(what + std::string(std::string_view(what).ends_with('?') ? "" : ":")) + std::string(indent * 2, ' ') +
             paint(command, colour::bold, look) + "\n";
  }
  return out;
}

std::string topic_text(const std::string& name) {
  for (const auto& topic : all_topics) {
    if (name != topic.name) continue;
    std::string out;
    const std::string text = topic.text();
    std::string_view rest = text;
    // Lines that start with a blank stay as they are (tables), the others are filled.
    while (true) {
      const std::size_t end = rest.find('\n');
      const std::string_view line = rest.substr(0, end);
      out += (line.empty() || line.front() == ' ' ? std::string(line) : wrap(line, page_width)) + "\n";
      if (end == std::string_view::npos) return out;
      rest.remove_prefix(end + 1);
    }
  }
  return {};
}

std::vector<std::pair<std::string, std::string>> topics() {
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& topic : all_topics) out.emplace_back(topic.name, topic.summary);
  return out;
}

}  // namespace flotilla::cli
