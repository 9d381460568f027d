// How a command is put together: options (CLI11), its page of help, what it does.
#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/cli/core/json.hpp"
#include "client/cli/core/table.hpp"
#include "client/cli/core/units.hpp"
#include "client/cli/daemon_client.hpp"
#include "client/cli/description.hpp"
#include "client/cli/exit_codes.hpp"
#include "client/cli/terminal.hpp"

namespace flotilla::cli {

// What tab completion offers for an option or a positional argument.
enum class Complete { nothing, file, resource, pilot, job, label, topic, log, choices };

using Action = std::function<Result<int>()>;

struct Page {
  const char* summary;                                        // one line, no full stop
  const char* text;                                           // paragraphs
  std::vector<std::pair<const char*, const char*>> examples;  // what it does, command line
};

// Everything that the commands share while one is parsed and run.
struct Context {
  Look out = look_of(1);
  bool json = false;
  std::vector<std::string> words;  // the user's command: after "--", or from the first word that is no option
  Action action;                   // of the chosen command
  bool job_result = false;         // the exit code is the job's: failures of our own are 125
  std::map<const CLI::App*, Page> pages;
  std::map<const CLI::App*, bool> takes_words;  // value: one word of its own comes before
  std::map<const CLI::Option*, Complete> completions;

  CLI::App* add(CLI::App* parent, const std::string& name, Page page, Action action = {});
  CLI::Option* complete(CLI::Option* option, Complete what) {
    completions[option] = what;
    return option;
  }
  void add_json(CLI::App* app);
};

// Prints on stdout. A reader that has gone is no error: the program ends quietly.
void print(const std::string& text);
void print_line(const std::string& text);
// On stderr, for people; nothing when stderr is no terminal.
void note(const std::string& text);

std::int64_t now_ms();

// What is left of a wait's limit when it is asked for again.
class WaitLimit {
 public:
  explicit WaitLimit(std::int64_t ms) : ms_(ms) {}  // 0 = none
  std::int64_t left_ms() const {
    const auto passed = std::chrono::steady_clock::now() - began_;
    return ms_ == 0 ? 0 : std::max<std::int64_t>(1, ms_ - std::chrono::duration_cast<std::chrono::milliseconds>(passed).count());
  }

 private:
  std::int64_t ms_;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

// Options whose values have a form of their own; a bad value names the option and ends with exit code 2.
CLI::Option* add_duration(CLI::App* app, const std::string& names, std::int64_t& ms, const std::string& help);
CLI::Option* add_size(CLI::App* app, const std::string& names, std::uint64_t& bytes, const std::string& help);
CLI::Option* add_count(CLI::App* app, const std::string& names, std::function<void(std::uint32_t)> set,
                       const std::string& help);  // at least 1
CLI::Option* add_assignments(CLI::App* app, const std::string& names, google::protobuf::Map<std::string, std::string>& map,
                             const std::string& help, bool environment);
// `option` says all that there is to say: refused together with any of the app's options so far.
void exclude_others(CLI::App* app, const std::string& option);
CLI::Option* add_ids(CLI::App* app, const std::string& name, std::vector<std::uint64_t>& ids, const std::string& help);
CLI::Option* add_id(CLI::App* app, const std::string& name, std::uint64_t& id, const std::string& help);

// The options of run and submit (and some of exec), as a description.
struct JobOptions {
  std::string from_file;
  JobDescription job;
  std::string working_folder;
  std::vector<std::string> files;
};
void add_job_options(Context& context, CLI::App* app, JobOptions& options);
// Fills in the command, the client's folder and the files.
Result<JobDescription> make_job(const JobOptions& options, const std::vector<std::string>& words);

// Waits over the daemon's restarts; `request.timeout_ms` holds for all of it.
Result<v1::ListJobsReply> wait_for_jobs(std::unique_ptr<DaemonClient>& client, v1::WaitJobsRequest request, StatusLine& line);

void add_daemon_commands(Context& context, CLI::App* root);
void add_resource_commands(Context& context, CLI::App* root);
void add_pilot_commands(Context& context, CLI::App* root);
void add_run_commands(Context& context, CLI::App* root);  // run, submit, attach, exec, shell
void add_job_commands(Context& context, CLI::App* root);
void add_amuse_commands(Context& context, CLI::App* root);
void add_other_commands(Context& context, CLI::App* root);  // logs, web, completion, version, help

// How people see them.
std::string job_command(const v1::JobSpec& spec);
std::string exit_text(const v1::ExitReason& exit);
Error error_of_wire(const v1::Error& wire);

// Help and completion.
std::string help_text(const Context& context, const CLI::App* app);
std::string topic_text(const std::string& topic);  // "" = no such topic
std::vector<std::pair<std::string, std::string>> topics();
std::string completion_script(const std::string& shell);
std::string complete_line(const Context& context, const CLI::App* root, const std::vector<std::string>& words);
// By its full name; null = there is none.
const CLI::App* subcommand_of(const CLI::App* app, const std::string& name);
std::vector<std::string> command_paths(const CLI::App* root);

}  // namespace flotilla::cli
