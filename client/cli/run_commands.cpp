#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <mutex>
#include <optional>
#include <thread>

#include "client/cli/command.hpp"
#include "client/cli/session.hpp"
#include "client/cli/upload.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/text.hpp"

namespace flotilla::cli {
namespace {

constexpr std::uint64_t shown_on_attach = 64 * 1024;  // of earlier output
constexpr std::size_t longest_line = 64 * 1024;       // of one job among many: longer ones are cut

bool stdin_is_null() {
  struct stat input {
  }, null{};
  return fstat(STDIN_FILENO, &input) != 0 || (S_ISCHR(input.st_mode) && stat("/dev/null", &null) == 0 && input.st_rdev == null.st_rdev);
}

// What the user reads on stderr, and the exit code, after a session.
int finish(const SessionResult& result) {
  const std::string id = std::to_string(result.job.id());
  if (result.output_closed) return exit_code::signal_base + SIGPIPE;
  if (result.detached) {
    note("flotilla: job " + id + " goes on; come back to it with 'flotilla attach " + id + "'");
    return exit_code::ok;
  }
  if (!result.ended) return exit_code::canceled;  // left while it was being canceled
  const v1::ExitReason& exit = result.exit;
  const int code = exit_code::of(exit);
  // A plain exit is told by its code alone, as the program itself would.
  if (exit.kind() != v1::EXITED && !(exit.kind() == v1::EXIT_NONE && code == 0)) {
    std::string text = "flotilla: job " + id + ": " + exit_text(exit);
    if (exit.kind() == v1::START_FAILED && !exit.stderr_tail().empty()) text += "\n" + exit.stderr_tail();
    if (text.back() != '\n') text += '\n';
    write_all(STDERR_FILENO, text);
  }
  return code;
}

struct RunOptions {
  JobOptions job;
  bool terminal = false, no_stdin = false, accept_new = false;
};

Result<int> run_job(v1::JobSpec spec, const RunOptions& options, JobDescription* files) {
  v1::CommandSpec& command = *spec.mutable_command();
  SessionOptions session;
  session.pass_signals = true;
  session.show_why = true;
  session.accept_new_host_keys = options.accept_new;
  session.pass_stdin = !options.no_stdin && !stdin_is_null();
  if (options.terminal) {
    command.set_terminal(true);
    if (const auto size = window_size()) *command.mutable_window() = *size;
    session.raw_terminal = isatty(STDIN_FILENO) != 0 && session.pass_stdin;
    const char* term = std::getenv("TERM");
    if (term && *term && !spec.env().contains("TERM")) (*spec.mutable_env())["TERM"] = term;
  }
  command.set_stdin_open(session.pass_stdin);
  spec.set_cancel_with_client(true);
  if (const auto good = check_text(spec); !good) return fail(good.error());
  auto client = DaemonClient::connect(StartDaemon::yes, AnyBuild::no, block_session_signals);
  if (!client) return fail(client.error());
  if (files && (!files->files.empty() || !files->stdin_file.empty())) {
    StatusLine line;
    SentFiles known;
    if (auto sent = upload(**client, *files, line, known); !sent) return fail(sent.error());
    *spec.mutable_files() = files->spec.files();
  }
  v1::AttachOpen open;
  *open.mutable_submit() = std::move(spec);
  auto result = run_session(*client, std::move(open), session);
  if (!result) return fail(result.error());
  return finish(*result);
}

Result<int> run(const Context& context, const RunOptions& options) {
  if (context.words.empty()) return fail(Code::invalid_argument, "nothing to run", "write 'flotilla run [OPTIONS] -- COMMAND [ARGUMENTS]'");
  auto job = make_job(options.job, context.words);
  if (!job) return fail(job.error());
  const v1::JobSpec spec = job->spec;
  return run_job(spec, options, &*job);
}

struct SubmitOptions {
  JobOptions job;
  std::string stdin_file;
  bool wait = false;
};

Result<int> submit(const Context& context, const SubmitOptions& options) {
  std::vector<JobDescription> jobs;
  if (!options.job.from_file.empty()) {
    if (!context.words.empty())
      return fail(Code::invalid_argument, "both --from-file and a command are given", "put the command into the file");
    auto text = read_file(options.job.from_file);
    if (!text) return fail(Code::invalid_argument, text.error().message);
    auto parsed = parse_jobs(*text, options.job.from_file);
    if (!parsed) return fail(parsed.error());
    jobs = std::move(*parsed);
    const auto here = make_job(JobOptions(), {"-"});  // for the folder
    if (!here) return fail(here.error());
    for (auto& job : jobs) job.spec.set_client_folder(here->spec.client_folder());
  } else {
    if (context.words.empty())
      return fail(Code::invalid_argument, "nothing to submit",
                  "write 'flotilla submit [OPTIONS] -- COMMAND [ARGUMENTS]', or give --from-file");
    auto job = make_job(options.job, context.words);
    if (!job) return fail(job.error());
    job->stdin_file = options.stdin_file;
    jobs.push_back(std::move(*job));
  }
  auto client = DaemonClient::connect(StartDaemon::yes);
  if (!client) return fail(client.error());
  v1::SubmitRequest request;
  StatusLine line;
  SentFiles known;
  for (auto& job : jobs) {
    if (auto sent = upload(**client, job, line, known); !sent) return fail(sent.error());
    *request.add_specs() = std::move(job.spec);
  }
  const auto reply = (*client)->submit(request);
  if (!reply) return fail(reply.error());
  if (context.json) {
    std::vector<std::string> parts;
    for (const auto id : reply->ids()) parts.push_back(std::to_string(id));
    print_line(json_list(parts));
  } else {
    for (const auto id : reply->ids()) print_line(std::to_string(id));
  }
  if (!options.wait) return exit_code::ok;
  v1::WaitJobsRequest waiting;
  *waiting.mutable_ids() = reply->ids();
  const auto ended = wait_for_jobs(*client, std::move(waiting), line);
  if (!ended) return fail(ended.error());
  for (const auto& job : ended->jobs())
    if (job.state() != v1::JOB_FINISHED) return exit_code::failed;
  return exit_code::ok;
}

struct AttachOptions {
  std::uint64_t job = 0;
  bool from_start = false, only_new = false, no_stdin = false;
};

Result<v1::Job> find_job(DaemonClient& client, std::uint64_t id) {
  v1::ListJobsRequest request;
  request.add_ids(id);
  const auto reply = client.list_jobs(request);
  if (!reply) return fail(reply.error());
  if (reply->jobs().empty())
    return fail(Code::not_found, "there is no job " + std::to_string(id), "'flotilla job list' shows what there is");
  return reply->jobs(0);
}

Result<int> attach(const AttachOptions& options) {
  auto client = DaemonClient::connect(StartDaemon::yes, AnyBuild::no, block_session_signals);
  if (!client) return fail(client.error());
  const auto job = find_job(**client, options.job);
  if (!job) return fail(job.error());
  const v1::CommandSpec& command = job->spec().command();
  SessionOptions session;
  session.pass_signals = true;
  session.show_why = true;
  session.pass_stdin = !options.no_stdin && command.stdin_open() && !stdin_is_null() && job->state() < v1::JOB_FINISHED;
  // Ctrl-P Ctrl-Q shall leave also a job that reads nothing.
  session.raw_terminal = command.terminal() && isatty(STDIN_FILENO) != 0 && session.pass_stdin;
  session.hang_up_detaches = true;
  session.redraw = session.raw_terminal;
  v1::AttachOpen open;
  open.set_job(options.job);
  open.set_from_end(options.only_new);
  if (!options.from_start && !options.only_new) open.set_tail_bytes(shown_on_attach);
  if (session.pass_stdin && isatty(STDIN_FILENO))
    note("flotilla: attached to job " + std::to_string(options.job) + "; Ctrl-P Ctrl-Q leaves it");
  auto result = run_session(*client, std::move(open), session);
  if (!result) return fail(result.error());
  if (job->state() < v1::JOB_FINISHED || !result->ended) return finish(*result);
  write_all(STDERR_FILENO, "flotilla: job " + std::to_string(options.job) + " has ended: " + printable(exit_text(result->exit)) + "\n");
  return exit_code::of(result->exit);
}

struct ExecOptions {
  RunOptions run;
  std::uint64_t job = 0;
  std::string label;
};

// One job of many: whole lines with its number in front.
class Prefixed {
 public:
  Prefixed(std::mutex& mutex, std::string prefix) : mutex_(mutex), prefix_(std::move(prefix)) {}
  // false = nobody reads it any more.
  bool add(unsigned stream, std::string_view data) {
    std::string& rest = rest_[stream == 2];
    rest += data;
    std::string lines;
    std::size_t at = 0;
    for (;;) {
      const std::size_t end = rest.find('\n', at);
      const std::size_t size = end == std::string::npos ? rest.size() - at : end - at;
      if (end == std::string::npos && size < longest_line) break;
      lines.append(prefix_).append(rest, at, std::min(size, longest_line)) += '\n';
      at += std::min(size, longest_line);
      if (at == end) ++at;
    }
    rest.erase(0, at);
    return put(stream, lines);
  }
  void finish() {
    for (const unsigned stream : {1u, 2u})
      if (std::string& rest = rest_[stream == 2]; !rest.empty()) put(stream, prefix_ + rest + "\n"), rest.clear();
  }

 private:
  bool put(unsigned stream, const std::string& text) {
    const std::scoped_lock lock(mutex_);
    return write_all(stream == 2 ? STDERR_FILENO : STDOUT_FILENO, text);
  }
  std::mutex& mutex_;
  std::string prefix_;
  std::string rest_[2];
};

Result<int> exec_on_label(const Context& context, const ExecOptions& options) {
  auto client = DaemonClient::connect(StartDaemon::yes);
  if (!client) return fail(client.error());
  v1::ListJobsRequest request;
  request.set_label(options.label);
  request.add_states(v1::JOB_RUNNING);
  const auto reply = (*client)->list_jobs(request);
  if (!reply) return fail(reply.error());
  std::vector<std::uint64_t> jobs;
  for (const auto& job : reply->jobs())
    if (job.spec().beside_job() == 0 && !job.spec().no_slots()) jobs.push_back(job.id());
  std::sort(jobs.begin(), jobs.end());
  if (jobs.empty())
    return fail(Code::not_found, "no job with the label '" + options.label + "' is running", "'flotilla job list' shows what runs");
  v1::JobSpec common = options.run.job.job.spec;
  common.set_cancel_with_client(true);
  for (const auto& word : context.words) common.mutable_command()->add_argv(word);
  if (const auto good = check_text(common); !good) return fail(good.error());
  std::mutex output;
  std::atomic<bool> closed{false};  // nobody reads what we write
  std::vector<int> codes(jobs.size(), exit_code::no_result);
  std::vector<std::unique_ptr<AttachStream>> streams;
  while (streams.size() < jobs.size()) streams.push_back((*client)->attach());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < jobs.size(); ++i)
    threads.emplace_back([&, i] {
      Prefixed lines(output, std::to_string(jobs[i]) + ": ");
      const auto& stream = streams[i];
      v1::AttachInput first;
      v1::JobSpec& spec = *first.mutable_open()->mutable_submit();
      spec = common;
      spec.set_beside_job(jobs[i]);
      stream->write(first);
      v1::AttachOutput message;
      std::optional<v1::ExitReason> exit;
      while (stream->read(message)) {
        if (message.has_output() && !lines.add(message.output().stream(), message.output().data()) && !closed.exchange(true))
          for (const auto& each : streams) each->cancel();  // which ends their commands
        if (message.has_end()) exit = message.end();
      }
      const Status ended = stream->finish();
      if (closed) return;
      lines.finish();
      if (exit) {
        codes[i] = exit_code::of(*exit);
        if (exit->kind() != v1::EXITED && codes[i] != 0) lines.add(2, "flotilla: " + exit_text(*exit) + "\n");
      } else if (!ended) {
        lines.add(2, "flotilla: " + ended.error().text() + "\n");
      }
    });
  for (auto& thread : threads) thread.join();
  if (closed) return exit_code::signal_base + SIGPIPE;
  for (const int code : codes)
    if (code != 0) return code;
  return exit_code::ok;
}

Result<int> exec(const Context& context, const ExecOptions& options) {
  if ((options.job == 0) == options.label.empty())
    return fail(Code::invalid_argument, options.job == 0 ? "no job is named" : "both a job and --on are given",
                "write 'flotilla exec JOB -- COMMAND', or 'flotilla exec --on LABEL -- COMMAND' for all running jobs of a label");
  if (context.words.empty()) return fail(Code::invalid_argument, "nothing to run", "write 'flotilla exec JOB -- COMMAND [ARGUMENTS]'");
  if (!options.label.empty()) {
    if (options.run.terminal) return fail(Code::invalid_argument, "-t works with one job only", "name the job");
    return exec_on_label(context, options);
  }
  v1::JobSpec spec = options.run.job.job.spec;
  for (const auto& word : context.words) spec.mutable_command()->add_argv(word);
  spec.set_beside_job(options.job);
  return run_job(std::move(spec), options.run, nullptr);
}

Result<int> shell(const Context& context, std::uint64_t pilot) {
  RunOptions options;
  options.terminal = true;
  v1::JobSpec spec;
  spec.set_pilot(pilot);
  spec.set_no_slots(true);
  spec.set_name("shell");
  if (context.words.empty()) {
    for (const char* word : {"/bin/sh", "-c", "cd 2> /dev/null; exec \"${SHELL:-/bin/sh}\" -l"}) spec.mutable_command()->add_argv(word);
  } else {
    for (const char* word : {"/bin/sh", "-c", "cd 2> /dev/null; exec \"$@\"", "sh"}) spec.mutable_command()->add_argv(word);
    for (const auto& word : context.words) spec.mutable_command()->add_argv(word);
    options.terminal = isatty(STDIN_FILENO) != 0;
  }
  if (!isatty(STDIN_FILENO)) options.terminal = false;
  return run_job(std::move(spec), options, nullptr);
}

}  // namespace

void add_run_commands(Context& context, CLI::App* root) {
  const auto running = std::make_shared<RunOptions>();
  auto* run_command = context.add(
      root, "run",
      {"run a command on a pilot and wait for it",
       "Runs a command as a job, as if it ran here: its output is shown live, our stdin is its stdin, and its exit code is ours. "
       "Without --on it runs on any pilot; this machine has one from the start.\n\n"
       "Ctrl-C sends SIGINT to the job; a second one within two seconds cancels it (TERM, then KILL, to all of its processes). "
       "While it waits for a slot for more than half a second, a line on the terminal says why. Ctrl-P Ctrl-Q leaves the job running "
       "and returns; 'flotilla attach JOB' comes back to it. The job is canceled when this program is killed; it goes on, and this "
       "program with it, when the daemon is restarted.\n\n"
       "The exit code is the command's, or 128 + the number of the signal that killed it; 'flotilla help exit-codes' lists the others.",
       {{"On this machine", "flotilla run -- make -j4"},
        {"On a resource, with four slots", "flotilla run --on hpc --slots 4 -- ./simulate input.txt"},
        {"An interactive program", "flotilla run --on hpc -t -- htop"},
        {"Send a file along, pipe data through", "flotilla run --on hpc -f model.par -- ./fit model.par < data.csv > fit.csv"},
        {"At most ten minutes", "flotilla run --time 10min -- ./step"}}},
      [&context, running] { return run(context, *running); });
  context.takes_words[run_command] = false;
  add_job_options(context, run_command, running->job);
  run_command->add_flag("-t,--terminal", running->terminal, "give it a terminal (for editors, shells, full-screen programs)");
  run_command->add_flag("-n,--no-stdin", running->no_stdin, "it reads nothing (for loops that read stdin themselves)");
  run_command->add_flag("--accept-new", running->accept_new, "take an unknown host's key as right, should a login be needed");

  const auto submitting = std::make_shared<SubmitOptions>();
  auto* submit_command = context.add(
      root, "submit",
      {"submit jobs and return at once",
       "Submits a command, or all jobs of a file, and prints their ids. Their output is kept: see 'flotilla job logs' and 'flotilla "
       "attach'. Of a file either all jobs are taken or none. Work that no pilot could ever run is refused at once.",
       {{"One job", "id=$(flotilla submit --on hpc --time 2h -- ./simulate input.txt)"},
        {"Jobs from a file ('flotilla help from-file' lists the keys)", "flotilla submit --from-file jobs.toml"},
        {"Wait for it later", "flotilla job wait $id && flotilla job logs $id"}}},
      [&context, submitting] { return submit(context, *submitting); });
  context.takes_words[submit_command] = false;
  add_job_options(context, submit_command, submitting->job);
  context.complete(submit_command->add_option("--stdin", submitting->stdin_file, "what it reads (default: nothing)")->type_name("FILE"),
                   Complete::file);
  context.complete(
      submit_command
          ->add_option("--from-file", submitting->job.from_file, "take the descriptions from a TOML file, instead of other options")
          ->type_name("FILE"),
      Complete::file);
  exclude_others(submit_command, "--from-file");
  submit_command->add_flag("--wait", submitting->wait, "wait until they have ended; exit code 1 when one failed");
  context.add_json(submit_command);

  const auto attaching = std::make_shared<AttachOptions>();
  auto* attach_command = context.add(
      root, "attach",
      {"come back to a running job's terminal or output",
       "Shows the last of what the job wrote and follows it; keys and Ctrl-C go to the job, as with 'flotilla run'. Ctrl-P Ctrl-Q "
       "leaves it running; so does closing the window. It goes on where it was when the daemon was restarted or the laptop "
       "slept. When the job ends its exit code is ours. Of a job that has ended, it shows the last output and how it ended.",
       {{"Come back to job 12", "flotilla attach 12"}, {"All that it wrote so far, then the rest", "flotilla attach 12 --from-start"}}},
      [attaching] { return attach(*attaching); });
  context.complete(add_id(attach_command, "JOB", attaching->job, "its id")->required(), Complete::job);
  auto* from_start = attach_command->add_flag("--from-start", attaching->from_start, "show its output from the start");
  attach_command->add_flag("--new", attaching->only_new, "show only what comes from now on")->excludes(from_start);
  attach_command->add_flag("-n,--no-stdin", attaching->no_stdin, "do not pass keys on");

  const auto executing = std::make_shared<ExecOptions>();
  auto* exec_command = context.add(
      root, "exec",
      {"run a command beside a running job",
       "Runs a command on the node of a running job, in its folder and with its environment, without taking a slot: to look around, "
       "attach a debugger, or read a file. With --on it runs beside every running job of that label at the same time; each line of "
       "output then starts with the job's id, and the exit code is the first that is not 0.",
       {{"What has it written?", "flotilla exec 12 -- ls -l"},
        {"A shell beside it", "flotilla exec 12 -t -- bash"},
        {"On all jobs of a label", "flotilla exec --on gas -- tail -n 1 progress.log"}}},
      [&context, executing] { return exec(context, *executing); });
  context.takes_words[exec_command] = true;
  context.complete(add_id(exec_command, "JOB", executing->job, "its id"), Complete::job);
  context.complete(exec_command->add_option("--on", executing->label, "beside all running jobs with this label")->type_name("LABEL"),
                   Complete::label);
  exec_command->add_flag("-t,--terminal", executing->run.terminal, "give it a terminal");
  exec_command->add_flag("-n,--no-stdin", executing->run.no_stdin, "it reads nothing");
  add_assignments(exec_command, "--env,-e", *executing->run.job.job.spec.mutable_env(), "environment variable", true);

  const auto entered = std::make_shared<std::uint64_t>(0);
  auto* shell_command =
      context.add(root, "shell",
                  {"open a shell on a pilot's node",
                   "Opens the user's login shell on a node of a pilot, in the home folder there, without taking a slot. A command may be "
                   "given instead.",
                   {{"A shell on pilot 3", "flotilla shell 3"}, {"Without the pilot's number", "flotilla run --on hpc -t -- bash -l"}}},
                  [&context, entered] { return shell(context, *entered); });
  context.takes_words[shell_command] = true;
  context.complete(add_id(shell_command, "PILOT", *entered, "its id")->required(), Complete::pilot);
}

}  // namespace flotilla::cli
