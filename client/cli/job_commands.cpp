#include <unistd.h>

#include <algorithm>

#include "client/cli/command.hpp"
#include "client/cli/local_time.hpp"
#include "client/cli/session.hpp"

namespace flotilla::cli {
namespace {

constexpr std::uint32_t listed_jobs = 100;  // the newest, unless more are asked for

Result<std::unique_ptr<DaemonClient>> connected() { return DaemonClient::connect(StartDaemon::yes); }

std::string time_text(const v1::Job& job, std::int64_t now) {
  if (job.running_ms()) return format_duration(std::max<std::int64_t>(0, (job.ended_ms() ? job.ended_ms() : now) - job.running_ms()));
  return "-";
}

std::string remark(const v1::Job& job) {
  if (job.state() == v1::JOB_FINISHED) return "";
  if (job.pilot_unreachable()) return "its pilot cannot be reached; this is what was last known";
  if (!job.message().empty()) return job.message();
  return job.ended_ms() ? exit_text(job.exit()) : "";
}

void print_jobs(const Context& context, const google::protobuf::RepeatedPtrField<v1::Job>& jobs) {
  if (context.json) {
    std::vector<std::string> parts;
    for (const auto& job : jobs) parts.push_back(to_json(job));
    print_line(json_list(parts));
    return;
  }
  const auto now = now_ms();
  std::vector<std::vector<Cell>> rows;
  for (const auto& job : jobs) {
    const std::string state = state_text(job.state());
    rows.push_back({std::to_string(job.id()), Cell(state, state_colour(state)), job.spec().label().empty() ? "-" : job.spec().label(),
                    job.pilot() ? std::to_string(job.pilot()) : "-", job.host().empty() ? "-" : job.host(), time_text(job, now),
                    job.spec().name().empty() ? job_command(job.spec()) : job.spec().name(), remark(job)});
  }
  print(format_table({{"ID", Align::right},
                      {"STATE"},
                      {"LABEL"},
                      {"PILOT", Align::right},
                      {"HOST"},
                      {"TIME", Align::right},
                      {"COMMAND", Align::left, true},
                      {"", Align::left, true}},
                     rows, context.out));
}

void show_job(const v1::Job& job, const Look& look) {
  const auto now = now_ms();
  const auto& spec = job.spec();
  const auto row = [&](const char* name, const std::string& value, const char* shade = "") {
    if (!value.empty()) print_line(paint(pad(name, 14), colour::bold, look) + paint(printable(value), shade, look));
  };
  const auto moment = [&](std::int64_t ms) { return ms ? format_moment(ms, now) + " (" + format_age(ms, now) + ")" : ""; };
  const auto limit = [](std::int64_t ms) { return ms ? format_duration(ms) : ""; };
  const std::string state = state_text(job.state());
  row("job", std::to_string(job.id()));
  row("name", spec.name());
  row("command", job_command(spec));
  row("state", state, state_colour(state));
  row("", remark(job));
  row("label", spec.label());
  const std::uint32_t processes = std::max(1u, spec.processes()), threads = std::max(1u, spec.threads());
  row("slots", spec.no_slots() || spec.beside_job() ? "none"
               : threads > 1
                   ? std::to_string(processes * threads) + " (" + std::to_string(processes) + " x " + std::to_string(threads) + " threads)"
                   : std::to_string(processes));
  row("beside job", spec.beside_job() ? std::to_string(spec.beside_job()) : "");
  row("pilot", job.pilot() ? std::to_string(job.pilot()) + ", node " + std::to_string(job.node()) : "");
  row("host", job.host());
  row("process", job.pid() ? std::to_string(job.pid()) : "");
  row("attempt", job.attempt() ? std::to_string(job.attempt()) : "");
  row("folder", job.folder().empty() ? spec.working_folder() : job.folder());
  row("time limit", limit(spec.time_limit_ms()));
  row("queue timeout", limit(spec.queue_timeout_ms()));
  row("start timeout", limit(spec.start_timeout_ms()));
  row("submitted", moment(job.submitted_ms()));
  row("queued", moment(job.queued_ms()));
  row("dispatched", moment(job.dispatched_ms()));
  row("running", moment(job.running_ms()));
  row("ended", moment(job.ended_ms()));
  row("took", job.running_ms() && job.ended_ms() ? format_duration(job.ended_ms() - job.running_ms()) : "");
  row("end", job.ended_ms() ? exit_text(job.exit()) : "");
  const auto output = [&](const std::string& file, std::uint64_t bytes) {
    return file.empty() ? format_size(bytes) : "in the file " + file;
  };
  const auto& command = spec.command();
  row("stdout", output(spec.has_worker() ? spec.worker().stdout_file() : command.stdout_file(), job.stdout_bytes()));
  row("stderr", command.merge_stderr() || command.terminal()
                    ? "with stdout"
                    : output(spec.has_worker() ? spec.worker().stderr_file() : command.stderr_file(), job.stderr_bytes()));
  for (const auto& [key, value] : spec.env()) row("env", key + "=" + value);
  for (const auto& file : spec.files()) row("file", file.name() + ", " + format_size(file.size()));
  if (spec.has_worker()) {
    row("channel", job.connected() ? format_count(static_cast<double>(job.channel().calls())) + " calls, " +
                                         format_size(job.channel().bytes_to_worker()) + " to the worker, " +
                                         format_size(job.channel().bytes_from_worker()) + " from it"
                                   : "not connected");
  }
  if (!job.exit().stderr_tail().empty()) {
    print_line(paint("last lines of stderr", colour::bold, look));
    std::string_view rest = job.exit().stderr_tail();
    while (!rest.empty()) {
      const std::size_t end = rest.find('\n');
      print_line("  " + printable(rest.substr(0, end)));
      rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    }
  }
}

struct Selection {
  std::vector<std::uint64_t> ids;
  std::string label;
  bool all = false;
};

Status some(const Selection& selection, bool all_allowed) {
  if (!selection.ids.empty() || !selection.label.empty() || selection.all) return {};
  return fail(Code::invalid_argument, "no job is named", all_allowed ? "give ids, --label or --all" : "give ids or --label");
}

struct LogOptions {
  std::uint64_t job = 0;
  bool follow = false, only_stdout = false, only_stderr = false;
  std::uint64_t tail = 0;
};

Result<int> logs(const LogOptions& options) {
  auto client = connected();
  if (!client) return fail(client.error());
  v1::AttachOpen open;
  open.set_job(options.job);
  open.set_output_only(true);
  open.set_no_follow(!options.follow);
  open.set_tail_bytes(options.tail);
  SessionOptions session;
  session.want_stdout = !options.only_stderr;
  session.want_stderr = !options.only_stdout;
  const auto result = run_session(*client, std::move(open), session);
  if (!result) return fail(result.error());
  const auto& spec = result->job.spec();
  const std::string& out = spec.has_worker() ? spec.worker().stdout_file() : spec.command().stdout_file();
  const std::string& err = spec.has_worker() ? spec.worker().stderr_file() : spec.command().stderr_file();
  if (!out.empty() || !err.empty())
    note("flotilla: job " + std::to_string(options.job) + " writes " +
         (out.empty() ? "" : "stdout to " + out + (err.empty() ? "" : " and ")) + (err.empty() ? "" : "stderr to " + err) +
         (result->job.host().empty() ? "" : " on " + result->job.host()) + "; read it with 'flotilla exec' or there");
  return exit_code::ok;
}

}  // namespace

Result<v1::ListJobsReply> wait_for_jobs(std::unique_ptr<DaemonClient>& client, v1::WaitJobsRequest request, StatusLine& line) {
  const WaitLimit limit(request.timeout_ms());
  for (;;) {
    line.show(request.ids_size() == 1 ? "waiting for job " + std::to_string(request.ids(0))
                                      : "waiting for " + std::to_string(request.ids_size()) + " jobs");
    auto reply = client->wait_jobs(request);
    if (reply || !client->lost()) {
      line.clear();
      return reply;
    }
    line.show("waiting for the daemon to come back");
    if (auto again = find_again(client); !again) {
      line.clear();
      return fail(again.error());
    }
    request.set_timeout_ms(limit.left_ms());
  }
}

void add_job_commands(Context& context, CLI::App* root) {
  auto* job = context.add(root, "job",
                          {"look at and steer jobs",
                           "A job is a command that runs on a pilot, or a worker: a code that stays up and is called from a script. "
                           "'flotilla run' and 'flotilla submit' make them.",
                           {{"What runs, what waits?", "flotilla job list"}, {"Why does it not start?", "flotilla job why 12"}}});

  struct ListOptions {
    std::vector<std::string> states;
    std::string label;
    std::uint32_t limit = listed_jobs;
    bool all = false, workers = false;
  };
  const auto listing = std::make_shared<ListOptions>();
  auto* list = context.add(
      job, "list",
      {"list jobs",
       "Shows the newest hundred jobs, the newest at the end, unless --limit or --all says otherwise.",
       {{"What waits?", "flotilla job list --state queued"},
        {"Ids of what failed, for a script", "flotilla job list --all --state failed --json | jq '.[].id'"}}},
      [&context, listing]() -> Result<int> {
        auto client = connected();
        if (!client) return fail(client.error());
        v1::ListJobsRequest request;
        for (const auto& name : listing->states) {
          v1::JobState state{};
          std::string upper = "JOB_" + name;
          std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
          if (v1::JobState_Parse(upper, &state)) request.add_states(state);
        }
        request.set_label(listing->label);
        request.set_limit(listing->all ? 0 : listing->limit);
        request.set_workers_only(listing->workers);
        const auto reply = (*client)->list_jobs(request);
        if (!reply) return fail(reply.error());
        print_jobs(context, reply->jobs());
        if (reply->total() > static_cast<std::uint64_t>(reply->jobs_size()))
          note(std::to_string(reply->total() - static_cast<std::uint64_t>(reply->jobs_size())) + " more; --all shows them.");
        return exit_code::ok;
      });
  context.complete(list->add_option("--state", listing->states, "only those in this state (may be given several times)")
                       ->type_name("STATE")
                       ->check(CLI::IsMember({"submitted", "queued", "dispatched", "running", "finished", "failed", "canceled"}))
                       ->take_all()
                       ->allow_extra_args(false),
                   Complete::choices);
  context.complete(list->add_option("--label", listing->label, "only those with this label")->type_name("LABEL"), Complete::label);
  add_count(
      list, "--limit", [listing](std::uint32_t value) { listing->limit = value; }, "at most this many (default 100)");
  list->add_flag("--all", listing->all, "all of them");
  list->add_flag("--workers", listing->workers, "only workers");
  context.add_json(list);

  const auto ids = std::make_shared<std::vector<std::uint64_t>>();
  auto* show =
      context.add(job, "show",
                  {"show jobs in full",
                   "Shows what was asked for, where it runs, states with their moments, and how it ended.",
                   {{"Show one", "flotilla job show 12"}, {"Its exit code, with jq", "flotilla job show 12 --json | jq .exit.code"}}},
                  [&context, ids]() -> Result<int> {
                    auto client = connected();
                    if (!client) return fail(client.error());
                    v1::ListJobsRequest request;
                    request.mutable_ids()->Add(ids->begin(), ids->end());
                    const auto reply = (*client)->list_jobs(request);
                    if (!reply) return fail(reply.error());
                    if (context.json) {
                      if (ids->size() == 1 && reply->jobs_size() == 1) print_line(to_json(reply->jobs(0)));
                      else print_jobs(context, reply->jobs());
                      return exit_code::ok;
                    }
                    for (int i = 0; i < reply->jobs_size(); ++i) {
                      if (i > 0) print("\n");
                      show_job(reply->jobs(i), context.out);
                    }
                    return exit_code::ok;
                  });
  context.complete(add_ids(show, "JOB", *ids, "their ids")->required(), Complete::job);
  context.add_json(show);

  const auto reading = std::make_shared<LogOptions>();
  auto* logs_command =
      context.add(job, "logs",
                  {"show a job's output",
                   "Prints what the job wrote so far: its stdout on stdout, its stderr on stderr. With -f it goes on until the job ends.",
                   {{"Follow it", "flotilla job logs -f 12"}, {"The end of its errors", "flotilla job logs 12 --stderr --tail 2k"}}},
                  [reading] { return logs(*reading); });
  context.complete(add_id(logs_command, "JOB", reading->job, "its id")->required(), Complete::job);
  logs_command->add_flag("-f,--follow", reading->follow, "go on until it ends");
  auto* only_stdout = logs_command->add_flag("--stdout", reading->only_stdout, "only its stdout");
  logs_command->add_flag("--stderr", reading->only_stderr, "only its stderr")->excludes(only_stdout);
  add_size(logs_command, "--tail", reading->tail, "start at most this far before the end");

  const auto selected = std::make_shared<Selection>();
  auto* cancel = context.add(job, "cancel",
                             {"cancel jobs",
                              "A waiting job is taken out of the queue; the processes of a running one get TERM, and KILL after the job's "
                              "grace. Jobs that have ended are left alone.",
                              {{"Cancel two", "flotilla job cancel 12 13"}, {"All of a label", "flotilla job cancel --label gas"}}},
                             [&context, selected]() -> Result<int> {
                               if (auto good = some(*selected, true); !good) return fail(good.error());
                               auto client = connected();
                               if (!client) return fail(client.error());
                               std::vector<v1::Job> ended;
                               if (!selected->ids.empty()) {
                                 v1::ListJobsRequest named;
                                 named.mutable_ids()->Add(selected->ids.begin(), selected->ids.end());
                                 const auto there = (*client)->list_jobs(named);
                                 if (!there) return fail(there.error());
                                 for (const auto& each : there->jobs())
                                   if (each.state() >= v1::JOB_FINISHED) ended.push_back(each);
                               }
                               v1::CancelJobsRequest request;
                               request.mutable_ids()->Add(selected->ids.begin(), selected->ids.end());
                               request.set_label(selected->label);
                               request.set_all(selected->all);
                               const auto reply = (*client)->cancel_jobs(request);
                               if (!reply) return fail(reply.error());
                               for (const auto& each : ended)
                                 write_all(STDERR_FILENO, "flotilla: job " + std::to_string(each.id()) +
                                                              " had ended already: " + printable(exit_text(each.exit())) + "\n");
                               if (context.json) print_jobs(context, reply->jobs());
                               return exit_code::ok;
                             });
  context.complete(add_ids(cancel, "JOB", selected->ids, "their ids"), Complete::job);
  context.complete(cancel->add_option("--label", selected->label, "those with this label")->type_name("LABEL"), Complete::label);
  cancel->add_flag("--all", selected->all, "all jobs");
  context.add_json(cancel);

  struct SignalOptions {
    int number = 0;
    Selection selection;
  };
  const auto signaling = std::make_shared<SignalOptions>();
  auto* signal_command = context.add(job, "signal",
                                     {"send a signal to running jobs",
                                      "The signal goes to the whole process group of each job.",
                                      {{"Ask a code to write a checkpoint", "flotilla job signal USR1 12"}}},
                                     [&context, signaling]() -> Result<int> {
                                       if (auto good = some(signaling->selection, false); !good) return fail(good.error());
                                       auto client = connected();
                                       if (!client) return fail(client.error());
                                       v1::SignalJobsRequest request;
                                       request.mutable_ids()->Add(signaling->selection.ids.begin(), signaling->selection.ids.end());
                                       request.set_label(signaling->selection.label);
                                       request.set_signal(signaling->number);
                                       const auto reply = (*client)->signal_jobs(request);
                                       if (!reply) return fail(reply.error());
                                       if (context.json) print_jobs(context, reply->jobs());
                                       return exit_code::ok;
                                     });
  signal_command
      ->add_option_function<std::string>(
          "SIGNAL",
          [signaling](const std::string& text) {
            const auto number = parse_signal(text);
            if (!number) throw CLI::ValidationError("SIGNAL", number.error().message + "; " + number.error().hint);
            signaling->number = *number;
          },
          "its name or number")
      ->required()
      ->type_name("");
  context.complete(add_ids(signal_command, "JOB", signaling->selection.ids, "their ids"), Complete::job);
  context.complete(
      signal_command->add_option("--label", signaling->selection.label, "all running jobs with this label")->type_name("LABEL"),
      Complete::label);
  context.add_json(signal_command);

  struct WaitOptions {
    std::vector<std::uint64_t> ids;
    std::int64_t timeout_ms = 0;
    bool running = false;
  };
  const auto waiting = std::make_shared<WaitOptions>();
  auto* wait = context.add(
      job, "wait",
      {"wait until jobs have ended",
       "Returns when all of them have ended (with --running: have started). The exit code is 0 when all finished well, 1 when one failed "
       "or was canceled, and 5 after --timeout.",
       {{"Wait for two", "flotilla job wait 12 13"}, {"Until it has started", "flotilla job wait --running 12"}}},
      [&context, waiting]() -> Result<int> {
        auto client = connected();
        if (!client) return fail(client.error());
        v1::WaitJobsRequest request;
        request.mutable_ids()->Add(waiting->ids.begin(), waiting->ids.end());
        request.set_timeout_ms(waiting->timeout_ms);
        request.set_running(waiting->running);
        StatusLine line;
        const auto reply = wait_for_jobs(*client, std::move(request), line);
        if (!reply) return fail(reply.error());
        if (context.json) print_jobs(context, reply->jobs());
        int code = exit_code::ok;
        for (const auto& each : reply->jobs())
          if (each.state() == v1::JOB_FAILED || each.state() == v1::JOB_CANCELED) {
            code = exit_code::failed;
            note("job " + std::to_string(each.id()) + ": " + exit_text(each.exit()));
          }
        return code;
      });
  context.complete(add_ids(wait, "JOB", waiting->ids, "their ids")->required(), Complete::job);
  wait->add_flag("--running", waiting->running, "only until they have started");
  add_duration(wait, "--timeout", waiting->timeout_ms, "give up after this");
  context.add_json(wait);

  const auto asked = std::make_shared<std::uint64_t>(0);
  auto* why = context.add(
      job, "why",
      {"say why a job waits or how it ended", "One sentence, and with it what was looked at.", {{"Why?", "flotilla job why 12"}}},
      [&context, asked]() -> Result<int> {
        auto client = connected();
        if (!client) return fail(client.error());
        v1::WhyJobRequest request;
        request.set_id(*asked);
        const auto reply = (*client)->why_job(request);
        if (!reply) return fail(reply.error());
        if (context.json) {
          print_line(to_json(*reply));
          return exit_code::ok;
        }
        print_line(printable(reply->sentence()));
        for (const auto& detail : reply->details()) print_line("  - " + printable(detail));
        return exit_code::ok;
      });
  context.complete(add_id(why, "JOB", *asked, "its id")->required(), Complete::job);
  context.add_json(why);
}

}  // namespace flotilla::cli
