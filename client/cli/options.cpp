#include <unistd.h>

#include <charconv>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "client/cli/command.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/error_wire.hpp"
#include "proto/base/text.hpp"

namespace flotilla::cli {
namespace {

[[noreturn]] void refuse(const std::string& option, const Error& error) {
  throw CLI::ValidationError(option.substr(0, option.find(',')), error.message + (error.hint.empty() ? "" : "; " + error.hint));
}

std::uint64_t to_id(const std::string& option, const std::string& text) {
  std::uint64_t id = 0;
  const auto done = std::from_chars(text.data(), text.data() + text.size(), id);
  if (done.ec != std::errc() || done.ptr != text.data() + text.size() || id == 0)
    refuse(option, Error{Code::invalid_argument, "'" + printable(text) + "' is no id", "ids are whole numbers, such as 12", Retry::no, {}});
  return id;
}

}  // namespace

CLI::App* Context::add(CLI::App* parent, const std::string& name, Page page, Action run) {
  CLI::App* app = parent->add_subcommand(name, page.summary);
  app->set_help_flag("-h,--help", "show this page");
  app->require_subcommand(0, 1);
  pages[app] = std::move(page);
  if (run) app->callback([this, run = std::move(run)] { action = run; });
  return app;
}

void Context::add_json(CLI::App* app) { app->add_flag("--json", json, "print JSON, whose form does not change"); }

void print(const std::string& text) {
  if (write_all(STDOUT_FILENO, text)) return;
  if (errno == EPIPE) _exit(exit_code::signal_base + SIGPIPE);
  std::perror("flotilla: cannot write to stdout");
  _exit(exit_code::failed);
}
void print_line(const std::string& text) { print(text + "\n"); }

void note(const std::string& text) {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  if (terminal) write_all(STDERR_FILENO, text + "\n");
}

std::int64_t now_ms() { return wall_ms(); }

CLI::Option* add_duration(CLI::App* app, const std::string& names, std::int64_t& ms, const std::string& help) {
  return app
      ->add_option_function<std::string>(
          names,
          [&ms, names](const std::string& text) {
            const auto value = parse_duration(text);
            if (!value) refuse(names, value.error());
            ms = *value;
          },
          help)
      ->type_name("DURATION");
}

CLI::Option* add_size(CLI::App* app, const std::string& names, std::uint64_t& bytes, const std::string& help) {
  return app
      ->add_option_function<std::string>(
          names,
          [&bytes, names](const std::string& text) {
            const auto value = parse_size(text);
            if (!value) refuse(names, value.error());
            bytes = static_cast<std::uint64_t>(*value);
          },
          help)
      ->type_name("SIZE");
}

CLI::Option* add_count(CLI::App* app, const std::string& names, std::function<void(std::uint32_t)> set, const std::string& help) {
  return app
      ->add_option_function<std::string>(
          names,
          [set = std::move(set), names](const std::string& text) {
            constexpr std::uint32_t most = 1'000'000;  // more than any machine has: a slip of the pen
            std::uint32_t value = 0;
            const auto done = std::from_chars(text.data(), text.data() + text.size(), value);
            if (done.ec != std::errc() || done.ptr != text.data() + text.size() || value < 1 || value > most)
              refuse(names, Error{Code::invalid_argument,
                                  "'" + printable(text) + "' is no whole number from 1 to " + std::to_string(most),
                                  "",
                                  Retry::no,
                                  {}});
            set(value);
          },
          help)
      ->type_name("N");
}

CLI::Option* add_assignments(CLI::App* app, const std::string& names, google::protobuf::Map<std::string, std::string>& map,
                             const std::string& help, bool environment) {
  return app
      ->add_option_function<std::vector<std::string>>(
          names,
          [&map, names, environment](const std::vector<std::string>& texts) {
            for (const auto& text : texts) {
              if (environment && text.find('=') == std::string::npos) {
                // A name alone: its value here.
                const auto named = parse_assignment(text + "=");
                if (!named) refuse(names, named.error());
                const char* value = std::getenv(text.c_str());
                if (!value)
                  refuse(names, Error{Code::invalid_argument,
                                      "the variable " + text + " is not set here",
                                      "give it a value: " + text + "=VALUE",
                                      Retry::no,
                                      {}});
                map[text] = value;
                continue;
              }
              if (environment) {
                const auto pair = parse_assignment(text);
                if (!pair) refuse(names, pair.error());
                map[pair->first] = pair->second;
                continue;
              }
              const std::size_t at = text.find('=');
              if (at == std::string::npos || at == 0)
                refuse(names, Error{Code::invalid_argument, "'" + printable(text) + "' is no KEY=VALUE", "", Retry::no, {}});
              map[text.substr(0, at)] = text.substr(at + 1);
            }
          },
          help)
      ->type_name(environment ? "KEY[=VALUE]" : "KEY=VALUE")
      ->take_all()
      ->allow_extra_args(false);
}

void exclude_others(CLI::App* app, const std::string& option) {
  CLI::Option* one = app->get_option(option);
  for (CLI::Option* other : app->get_options())
    if (other != one && other != app->get_help_ptr()) one->excludes(other);
}

CLI::Option* add_ids(CLI::App* app, const std::string& name, std::vector<std::uint64_t>& ids, const std::string& help) {
  return app
      ->add_option_function<std::vector<std::string>>(
          name,
          [&ids, name](const std::vector<std::string>& texts) {
            for (const auto& text : texts) ids.push_back(to_id(name, text));
          },
          help)
      ->type_name("");
}

CLI::Option* add_id(CLI::App* app, const std::string& name, std::uint64_t& id, const std::string& help) {
  return app
      ->add_option_function<std::string>(
          name, [&id, name](const std::string& text) { id = to_id(name, text); }, help)
      ->type_name(name == "JOB" || name == "PILOT" ? "" : "ID");
}

void add_job_options(Context& context, CLI::App* app, JobOptions& options) {
  v1::JobSpec& spec = options.job.spec;
  v1::CommandSpec& command = *spec.mutable_command();
  context.complete(app->add_option_function<std::string>(
                          "--on", [&spec](const std::string& label) { spec.set_label(label); },
                          "run only on pilots with this label, or on this resource")
                       ->type_name("LABEL"),
                   Complete::label);
  context.complete(app->add_option_function<std::string>(
                          "--pilot", [&spec](const std::string& text) { spec.set_pilot(to_id("--pilot", text)); }, "run only on this pilot")
                       ->type_name("ID"),
                   Complete::pilot);
  auto* slots = add_count(
      app, "--slots", [&spec](std::uint32_t value) { spec.set_processes(value); }, "room that it takes on its node (default 1)");
  add_count(
      app, "--processes", [&spec](std::uint32_t value) { spec.set_processes(value); }, "instead of --slots: slots = processes x threads")
      ->excludes(slots);
  add_count(
      app, "--threads", [&spec](std::uint32_t value) { spec.set_threads(value); }, "threads of each process; sets OMP_NUM_THREADS")
      ->excludes(slots);
  add_assignments(app, "--env,-e", *spec.mutable_env(), "environment variable; without a value, the one that it has here", true);
  app->add_option("--cwd", options.working_folder,
                  "folder on the node where it runs (relative: from here). Default: this folder on this machine, a private "
                  "folder elsewhere")
      ->type_name("FOLDER");
  app->add_option_function<std::string>(
         "--name", [&spec](const std::string& name) { spec.set_name(name); }, "shown in listings")
      ->type_name("TEXT");
  const auto duration = [&](const char* name, void (v1::JobSpec::*set)(std::int64_t), const char* help) {
    app->add_option_function<std::string>(
           name,
           [&spec, set, name](const std::string& text) {
             const auto ms = parse_duration(text);
             if (!ms) refuse(name, ms.error());
             (spec.*set)(*ms);
           },
           help)
        ->type_name("DURATION");
  };
  duration("--time", &v1::JobSpec::set_time_limit_ms, "it is ended after this, and starts only where that fits");
  duration("--queue-timeout", &v1::JobSpec::set_queue_timeout_ms, "give up when it has not started after this");
  duration("--kill-grace", &v1::JobSpec::set_kill_grace_ms, "between TERM and KILL when it is canceled (default 5 s)");
  context.complete(app->add_option("--file,-f", options.files, "lay this file of ours into its private folder (may be given several times)")
                       ->type_name("[NAME=]PATH")
                       ->take_all()
                       ->allow_extra_args(false),
                   Complete::file);
  app->add_flag_function(
      "--private-folder", [&spec](std::int64_t) { spec.set_private_folder(true); }, "run in a new folder of its own");
  app->add_flag_function(
      "--debug", [&spec](std::int64_t) { spec.set_debug(true); }, "keep the private folder");
  app->add_option_function<std::string>(
         "--stdout", [&command](const std::string& path) { command.set_stdout_file(path); },
         "write stdout to this file on the node, instead of keeping it")
      ->type_name("FILE");
  app->add_option_function<std::string>(
         "--stderr", [&command](const std::string& path) { command.set_stderr_file(path); },
         "write stderr to this file on the node, instead of keeping it")
      ->type_name("FILE");
  app->add_flag_function(
      "--merge-stderr", [&command](std::int64_t) { command.set_merge_stderr(true); }, "stderr goes where stdout goes");
}

Result<JobDescription> make_job(const JobOptions& options, const std::vector<std::string>& words) {
  JobDescription job = options.job;
  for (const auto& word : words) job.spec.mutable_command()->add_argv(word);
  std::error_code problem;
  const std::filesystem::path here = std::filesystem::current_path(problem);
  if (problem) return fail(Code::failed_precondition, "this folder cannot be named: " + problem.message(), "change to one that exists");
  job.spec.set_client_folder(here.string());
  if (!options.working_folder.empty()) job.spec.set_working_folder((here / options.working_folder).lexically_normal().string());
  Error faults{Code::invalid_argument, "these files cannot be sent along", "", Retry::no, {}};
  for (const auto& text : options.files) {
    auto file = parse_input_file(text);
    if (!file) faults.faults.push_back(file.error().message);
    else if (!is_utf8(file->first))
      faults.faults.push_back("'" + printable(file->first) + "' is no name in UTF-8; give it one for the job: NAME=PATH");
    else if (!std::filesystem::is_regular_file(file->second, problem))
      faults.faults.push_back(file->second + (std::filesystem::exists(file->second, problem) ? " is no regular file" : " does not exist"));
    else job.files.push_back(std::move(*file));
  }
  if (!faults.faults.empty()) return fail(std::move(faults));
  if (const auto good = check_text(job.spec); !good) return fail(good.error());
  return job;
}

std::string job_command(const v1::JobSpec& spec) {
  std::string out;
  if (spec.has_worker()) {
    out = "worker " + shell_quote(spec.worker().executable());
    for (const auto& word : spec.worker().args()) out += " " + shell_quote(word);
    return out;
  }
  for (const auto& word : spec.command().argv()) out += (out.empty() ? "" : " ") + shell_quote(word);
  return out;
}

std::string exit_text(const v1::ExitReason& exit) {
  if (!exit.message().empty()) return exit.message();
  switch (exit.kind()) {
    case v1::EXITED: return "exit code " + std::to_string(exit.code());
    case v1::SIGNALED: return "killed by " + format_signal(exit.signal()) + (exit.core_dumped() ? " (core dumped)" : "");
    default: {
      std::string text = state_text(exit.kind());
      for (char& c : text)
        if (c == '_') c = ' ';
      return text;
    }
  }
}

Error error_of_wire(const v1::Error& wire) { return from_wire(wire); }

}  // namespace flotilla::cli
