#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>

#include "client/cli/command.hpp"
#include "client/cli/core/suggest.hpp"
#include "proto/base/programs.hpp"
#include "proto/base/version.hpp"

namespace flotilla {
namespace {
using namespace cli;

void print_error(const Error& error) {
  const Look look = look_of(STDERR_FILENO);
  std::string text = paint("flotilla:", colour::red, look) + " " + error.message + "\n";
  for (const auto& fault : error.faults) text += "  - " + fault + "\n";
  if (!error.hint.empty()) text += "  " + error.hint + "\n";
  write_all(STDERR_FILENO, text);
}

const CLI::App* deepest(const CLI::App* app) {
  for (auto parsed = app->get_subcommands(); !parsed.empty(); parsed = app->get_subcommands()) app = parsed.front();
  return app;
}

std::string path_of(const CLI::App* app) {
  std::string name = app->get_name();
  for (const CLI::App* up = app->get_parent(); up; up = up->get_parent()) name = up->get_name() + " " + name;
  return name;
}

// The first word that nothing took, with what was probably meant.
std::optional<Error> unknown_word(const CLI::App* app) {
  const auto extra = app->remaining(true);
  if (extra.empty()) return std::nullopt;
  const std::string word = extra.front().substr(0, extra.front().find('='));
  std::vector<std::string> known;
  const bool option = word.size() > 1 && word[0] == '-';
  const auto subcommands = app->get_subcommands([](const CLI::App*) { return true; });
  if (option) {
    for (const CLI::Option* each : app->get_options())
      for (const auto& name : each->get_lnames()) known.push_back("--" + name);
  } else {
    for (const CLI::App* each : subcommands) known.push_back(each->get_name());
  }
  const auto meant = nearest(word, known);
  const std::string path = path_of(app);
  const char* what = option ? "has no option" : subcommands.empty() ? "takes no argument" : "has no command";
  Error error{Code::invalid_argument, path + " " + what + " '" + printable(word) + "'", "", Retry::no, {}};
  error.hint = meant ? "Did you mean '" + *meant + "'?" : "See '" + path + " --help'.";
  return error;
}

// Splits off the user's own command: what follows "--", or the first word that is no option (nor the one that comes before).
// So its options are never taken for ours.
void split_words(Context& context, const CLI::App* root, std::vector<std::string>& arguments) {
  const CLI::App* app = arguments.empty() ? nullptr : subcommand_of(root, arguments[0]);
  const auto takes = context.takes_words.find(app);
  if (!app || takes == context.takes_words.end()) return;
  std::size_t own = takes->second ? 1 : 0;  // words of the command's own
  std::size_t i = 1;
  for (; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word == "--") {
      context.words.assign(arguments.begin() + static_cast<std::ptrdiff_t>(i) + 1, arguments.end());
      arguments.resize(i);
      return;
    }
    if (word.size() < 2 || word[0] != '-') {
      if (own == 0) break;
      --own;
      continue;
    }
    const auto takes_value = [&](const std::string& name) {
      const CLI::Option* option = app->get_option_no_throw(name);
      if (option && takes->second && name == "--on") own = 0;  // instead of the word that comes before
      return option && option->get_items_expected_max() > 0;
    };
    if (word[1] == '-') {
      const std::size_t at = word.find('=');
      if (takes_value(word.substr(0, at)) && at == std::string::npos) ++i;
      continue;
    }
    for (std::size_t k = 1; k < word.size(); ++k)  // -tn, -eNAME=VALUE, -e NAME=VALUE
      if (takes_value(std::string("-") + word[k])) {
        if (k + 1 == word.size()) ++i;
        break;
      }
  }
  if (i < arguments.size()) {
    context.words.assign(arguments.begin() + static_cast<std::ptrdiff_t>(i), arguments.end());
    arguments.resize(i);
  }
}

int usage_error(const Context&, const CLI::App* app, const CLI::ParseError& problem) {
  if (const auto unknown = unknown_word(app)) {
    print_error(*unknown);
    return exit_code::usage;
  }
  print_error(Error{Code::invalid_argument, problem.what(), "See '" + path_of(app) + " --help'.", Retry::no, {}});
  return exit_code::usage;
}

int run_command(int argc, char** argv) {
  Context context;
  CLI::App root("", "flotilla");
  root.set_help_flag("-h,--help", "show this page");
  root.require_subcommand(0, 1);
  bool version = false;
  root.add_flag("--version", version, "print the version");
  context.pages[&root] = {
      "run codes and commands on other machines as if they were here",
      "Flotilla runs work on workstations behind ssh, on clusters behind a firewall, and on this machine. A resource says how to get at a "
      "machine; a pilot on its nodes runs jobs; this program and scripts say what is to run. Nothing has to be installed on the far side. "
      "'flotilla help concepts' explains the words.",
      {{"Here, at once", "flotilla run -- echo hello"},
       {"Add a machine, and see whether it works", "flotilla resource add desk --location me@desk.example.org --test"},
       {"Start a pilot there, and run something on it", "flotilla pilot start desk && flotilla run --on desk -- hostname"},
       {"Watch it in the browser", "flotilla web"}}};
  // In the order of the page. Only the group that is asked for is built when it is known: start-up time counts.
  struct Group {
    void (*add)(Context&, CLI::App*);
    std::vector<std::string> names;
  };
  const Group groups[] = {
      {add_run_commands, {"run", "submit", "attach", "exec", "shell"}},
      {add_job_commands, {"job"}},
      {add_pilot_commands, {"pilot"}},
      {add_resource_commands, {"resource"}},
      {add_daemon_commands, {"daemon"}},
      {add_amuse_commands, {"amuse"}},
      {add_other_commands, {"logs", "web", "completion", "version"}},
  };
  const std::string first = argc > 1 ? argv[1] : "";
  const auto asked = std::find_if(std::begin(groups), std::end(groups), [&](const Group& group) {
    return std::find(group.names.begin(), group.names.end(), first) != group.names.end();
  });
  for (const Group& group : groups)
    if (asked == std::end(groups) || &group == asked) group.add(context, &root);

  if (first == "__complete") {
    print(complete_line(context, &root, {argv + 2, argv + argc}));
    return exit_code::ok;
  }
  if (first == "__commands") {
    for (const auto& path : command_paths(&root)) print_line(path);
    for (const auto& [name, summary] : topics()) print_line("topic " + name);
    return exit_code::ok;
  }

  std::vector<std::string> arguments(argv + 1, argv + argc);
  split_words(context, &root, arguments);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  try {
    root.parse(arguments);
  } catch (const CLI::CallForHelp&) {
    // 'flotilla UNKNOWN --help' is no question for the page of what was understood.
    const CLI::App* app = deepest(&root);
    if (const auto unknown = unknown_word(app); unknown && !app->get_subcommands([](const CLI::App*) { return true; }).empty()) {
      print_error(*unknown);
      return exit_code::usage;
    }
    print(help_text(context, deepest(&root)));
    return exit_code::ok;
  } catch (const CLI::ParseError& problem) {
    return usage_error(context, deepest(&root), problem);
  }
  if (version) {
    print_line(std::string("flotilla ") + build_version());
    return exit_code::ok;
  }
  if (!context.action) {  // a group of commands alone
    write_all(STDERR_FILENO, help_text(context, deepest(&root)));
    return exit_code::usage;
  }
  const std::string command = deepest(&root)->get_name();
  const bool shows_job = command == "run" || command == "attach" || command == "exec" || command == "shell";
  const Result<int> code = context.action();
  if (code) return *code;
  print_error(code.error());
  const int failed = exit_code::of(code.error());
  // 1 to 5 would be taken for the job's own.
  if (shows_job && deepest(&root)->get_parent() == &root && failed != exit_code::usage && failed != exit_code::canceled)
    return exit_code::no_result;
  return failed;
}

}  // namespace

int cli_main(int argc, char** argv) {
  // A descriptor of ours must never become stdin, stdout or stderr.
  for (int fd = open("/dev/null", O_RDWR); fd >= 0 && fd <= 2; fd = open("/dev/null", O_RDWR)) {
    if (fd == 2) break;
  }
  signal(SIGPIPE, SIG_IGN);  // told by EPIPE
  try {
    return run_command(argc, argv);
  } catch (const std::exception& problem) {
    print_error(Error{Code::internal, std::string("a defect of flotilla: ") + problem.what(), "please report it", Retry::no, {}});
    return exit_code::failed;
  }
}

}  // namespace flotilla
