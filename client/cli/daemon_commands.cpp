#include <unistd.h>

#include <csignal>
#include <optional>

#include "client/cli/command.hpp"
#include "client/cli/daemon_start.hpp"
#include "client/cli/prompts.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/version.hpp"

namespace flotilla::cli {
namespace {

constexpr DaemonClient::Limit status_limit{5'000};
constexpr int end_limit_ms = 60'000;   // after its connection ended
constexpr int done_limit_ms = 10'000;  // after it said that it is done: what is left is its own clean-up

Result<int> show_status(const Context& context) {
  auto client = DaemonClient::connect(StartDaemon::no, AnyBuild::yes);
  if (!client) {
    if (client.error().code != Code::not_found) return fail(client.error());
    print_line(context.json ? "{\n  \"running\": false\n}" : "The daemon is not running. Any command that needs it starts it.");
    return exit_code::not_found;
  }
  const auto info = (*client)->get_info(status_limit);
  if (!info) return fail(info.error());
  if (context.json) {
    std::string text = to_json(*info);
    text.insert(1, "\n  \"running\": true,");
    print_line(text);
    return exit_code::ok;
  }
  const auto now = now_ms();
  const auto row = [&](const char* name, const std::string& value) {
    print_line(paint(pad(name, 10), colour::bold, context.out) + printable(value));
  };
  row("daemon",
      "running, process " + std::to_string(info->pid()) + " on " + info->host() + ", started " + format_age(info->started_ms(), now));
  row("build", info->build() + (info->build() == build_version()
                                    ? ""
                                    : " (this program is " + std::string(build_version()) + "; run 'flotilla daemon restart')"));
  row("memory", format_size(static_cast<std::uint64_t>(info->resident_bytes())));
  row("resources", std::to_string(info->resources()));
  row("pilots", std::to_string(info->pilots_running()) + " running");
  row("jobs", std::to_string(info->jobs_running()) + " running, " + std::to_string(info->jobs_waiting()) + " waiting");
  if (!info->web_problem().empty()) row("web page", "none: " + info->web_problem());
  row("state", info->state_dir());
  row("log", info->log_file());
  row("config", info->config_file());
  row("socket", info->socket());
  return exit_code::ok;
}

// Returns false when none was running.
Result<bool> stop(bool all, bool kill_it) {
  auto socket = connect_daemon_socket();
  if (!socket) {
    if (socket.error().code == Code::not_found) return false;
    return fail(socket.error());
  }
  const int pid = socket->pid;
  bool done = false;
  Status said;  // what could not be ended
  socket->fd.reset();
  // Programs that are attached to jobs shall not start it again.
  if (auto marked = write_file(stopped_marker(), "stopped by 'flotilla daemon stop'\n"); !marked) return fail(marked.error());
  if (kill_it) {
    if (kill(pid, SIGKILL) != 0 && errno != ESRCH) return fail(errno_error(Code::permission_denied, "kill process " + std::to_string(pid)));
  } else {
    auto client = DaemonClient::connect(StartDaemon::no, AnyBuild::yes);
    if (!client) {
      if (client.error().code == Code::not_found) return false;
      return fail(client.error());
    }
    StatusLine line;
    v1::ShutdownRequest request;
    request.set_all(all);
    // Resources that are not connected are tried again, and may ask for a password.
    std::optional<Prompter> prompter;
    if (all) prompter.emplace(**client, "", false, line);
    const Status ended = (*client)->shutdown(request, [&](const v1::Progress& progress) {
      if (progress.has_error()) said = fail(error_of_wire(progress.error()));
      else line.show(progress.message());
      done = done || progress.done();
      return true;
    });
    prompter.reset();
    line.clear();
    if (all && ended && !done)
      return fail(Code::internal, "the daemon did not say whether everything has ended", "see 'flotilla logs daemon'");
    if (all && !done && ended.error().code == Code::unavailable)
      return fail(Code::unavailable, "the daemon ended before everything had: " + ended.error().message,
                  "to go on: flotilla daemon stop --all");
    // The connection may end together with the daemon.
    if (!ended && ended.error().code != Code::unavailable) return fail(ended.error());
  }
  if (done && !wait_for_end(pid, done_limit_ms)) {
    // All is in its journal: nothing is lost by this.
    note("The daemon said that it was done, but did not end within " + format_duration(done_limit_ms) + ": it is killed.");
    kill(pid, SIGKILL);
  }
  if (!wait_for_end(pid, end_limit_ms))
    return fail(Code::timeout, "the daemon (process " + std::to_string(pid) + ") has not ended after " + format_duration(end_limit_ms),
                "end it with 'flotilla daemon stop --kill'; jobs and pilots go on");
  if (!said) return fail(said.error());
  return true;
}

}  // namespace

void add_daemon_commands(Context& context, CLI::App* root) {
  auto* daemon =
      context.add(root, "daemon",
                  {"start, stop and look at the daemon",
                   "The daemon is the process on this machine that knows all resources, pilots and jobs. One runs for each user. Every "
                   "command that needs it starts it, so that 'flotilla daemon start' is seldom needed.\n\n"
                   "Pilots and jobs do not depend on it: while it is stopped they go on, and at its next start it takes them up again.",
                   {{"Is it running, and where is its log?", "flotilla daemon status"},
                    {"End everything: jobs, pilots, hubs and the daemon", "flotilla daemon stop --all"}}});

  context.add(daemon, "start",
              {"start the daemon, if it does not run",
               "Starts the daemon in the background and returns when it takes commands. When it cannot start, the reason and the "
               "last lines that it wrote are shown.",
               {{"Start it", "flotilla daemon start"}}},
              []() -> Result<int> {
                constexpr DaemonClient::Limit answer_limit{10'000};
                for (int rest = 2;; --rest) {
                  const auto started = start_daemon();
                  if (!started) return fail(started.error());
                  // Also says when it is of another build.
                  const auto client = DaemonClient::connect(StartDaemon::no);
                  const auto info = client ? (*client)->get_info(answer_limit) : fail(client.error());
                  if (info) {
                    note(*started ? "The daemon is running." : "The daemon was running already.");
                    return exit_code::ok;
                  }
                  // One that is dying takes connections for a moment.
                  const bool dies = info.error().code == Code::unavailable || info.error().code == Code::not_found;
                  if (!dies || rest == 0) return fail(info.error());
                }
              });

  struct StopOptions {
    bool all = false;
    bool kill_it = false;
  };
  const auto stopping = std::make_shared<StopOptions>();
  auto* stop_command = context.add(
      daemon, "stop",
      {"stop the daemon",
       "Stops the daemon. Jobs, pilots and hubs go on and are taken up again at its next start. With --all they are ended first: "
       "every job is canceled, every pilot and hub ends, on all machines, and the command returns when nothing is left. Resources "
       "that are not connected are tried again for 20 s, all at the same time; what cannot be reached is named, with the time at "
       "which it ends by itself, and the exit code is not 0.",
       {{"Stop the daemon, jobs go on", "flotilla daemon stop"}, {"End everything", "flotilla daemon stop --all"}}},
      [stopping]() -> Result<int> {
        const auto stopped = stop(stopping->all, stopping->kill_it);
        if (!stopped) return fail(stopped.error());
        if (*stopped || !stopping->all) {
          note(*stopped ? "The daemon has ended." : "The daemon was not running.");
          return exit_code::ok;
        }
        // Pilots and hubs may have outlived an earlier daemon: one is needed that reaches them.
        if (const auto started = start_daemon(LocalPilot::none); !started) return fail(started.error());
        const auto again = stop(true, false);
        if (!again) return fail(again.error());
        note("All has ended.");
        return exit_code::ok;
      });
  auto* all = stop_command->add_flag("--all", stopping->all, "end all jobs, pilots and hubs first");
  stop_command->add_flag("--kill", stopping->kill_it, "kill it, for one that does not answer (nothing that it acknowledged is lost)")
      ->excludes(all);

  auto* status = context.add(daemon, "status",
                             {"show the daemon's state and places",
                              "Does not start the daemon. The exit code is 0 when it runs and 3 when it does not.",
                              {{"For a script", "flotilla daemon status --json"}}},
                             [&context] { return show_status(context); });
  context.add_json(status);

  context.add(daemon, "restart",
              {"stop the daemon and start this program's build of it",
               "Jobs and pilots go on meanwhile. Needed after an update: commands refuse to work with a daemon of another build.",
               {{"After an update", "flotilla daemon restart"}}},
              []() -> Result<int> {
                if (const auto stopped = stop(false, false); !stopped) return fail(stopped.error());
                if (const auto started = start_daemon(); !started) return fail(started.error());
                note("The daemon is running.");
                return exit_code::ok;
              });

  // `flotilla daemon run` never comes here (main.cpp); it is listed for its help.
  context.add(
      daemon, "run",
      {"run the daemon in the foreground",
       "For service managers, and to see what it does. It ends on SIGTERM or Ctrl-C; jobs and pilots go on.",
       {{"See its log live", "flotilla daemon run"}}},
      []() -> Result<int> { return fail(Code::unsupported, "this program was built without the daemon", "use the whole program"); });
}

}  // namespace flotilla::cli
