#include <csignal>
#include <filesystem>
#include <mutex>
#include <thread>

#include "client/amuse/check.hpp"
#include "client/amuse/install.hpp"
#include "client/cli/command.hpp"
#include "client/cli/test_steps.hpp"

namespace flotilla::cli {
namespace {

Result<std::filesystem::path> own_program() {
  std::error_code problem;
  auto path = std::filesystem::read_symlink("/proc/self/exe", problem);
  if (problem) return fail(Code::internal, "cannot find out where this program is: " + problem.message());
  return path;
}

Result<int> tell(const Result<amuse::Touched>& touched, const char* nothing) {
  if (!touched) return fail(touched.error());
  for (const auto& line : touched->lines) print_line(line);
  if (touched->lines.empty()) print_line(nothing);
  return exit_code::ok;
}

struct TestOptions {
  std::string resource = "local", python, amuse_dir;
  bool accept_new = false;
};

constexpr int end_signals[] = {SIGINT, SIGTERM, SIGHUP};

// Those that are not ignored, as SIGHUP is under nohup.
sigset_t end_signal_set() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : end_signals) {
    struct sigaction now {};
    sigaction(number, nullptr, &now);
    if (now.sa_handler != SIG_IGN) sigaddset(&set, number);
  }
  return set;
}

void block_end_signals() {
  const sigset_t set = end_signal_set();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

// The first one ends the pilot and then this process, the second this process at once.
void take_end_signals(amuse::Check& check, TestSteps& steps) {
  std::thread([&check, &steps] {
    const sigset_t set = end_signal_set();
    int number = 0;
    sigwait(&set, &number);
    std::thread([set] {
      int second = 0;
      sigwait(&set, &second);
      _exit(exit_code::signal_base + second);
    }).detach();
    steps.fall_silent();
    try {
      check.interrupt();
      note("Interrupted; what was started is ended.");
    } catch (const std::exception& error) {
      std::fputs((std::string("flotilla: the pilot of this test may still run: ") + error.what() + "\n").c_str(), stderr);
    }
    _exit(exit_code::signal_base + number);
  }).detach();
}

v1::TestStep to_wire(const TestStep& step) {
  v1::TestStep wire;
  wire.set_name(step.name);
  wire.set_status(static_cast<v1::TestStep::Status>(step.status));
  wire.set_message(step.message);
  wire.set_hint(step.hint);
  wire.set_took_ms(step.took.count());
  return wire;
}

Error error_of(const FlotillaError& error) {
  return {static_cast<Code>(error.code()), error.message(), error.hint(), error.retry() ? Retry::yes : Retry::no, error.faults()};
}

Result<int> test(const Context& context, const TestOptions& options) {
  const auto program = own_program();
  if (!program) return fail(program.error());
  // Starts the daemon when it does not run. Threads come after the signals are blocked.
  const auto client = DaemonClient::connect(StartDaemon::yes, AnyBuild::no, block_end_signals);
  if (!client) return fail(client.error());
  v1::ListResourcesRequest wanted;
  wanted.set_name(options.resource);
  const auto known = (*client)->list_resources(wanted);
  if (!known) return fail(known.error());
  if (known->resources().empty())
    return fail(Code::not_found, "there is no resource '" + options.resource + "'", "'flotilla resource list' shows what there is");
  TestSteps steps(context, 19);
  amuse::Check check({.resource = options.resource, .python = options.python, .program = program->string(), .amuse_dir = options.amuse_dir},
                     [&steps](const TestStep& step) { steps.take(to_wire(step)); });
  take_end_signals(check, steps);
  check.here();
  try {
    DaemonOptions how;
    how.program = program->string();
    how.accept_new_host_keys = options.accept_new;
    how.prompts = [&steps](const Prompt& prompt) {
      const auto quiet = steps.pause();
      return ask_on_terminal(prompt);
    };
    how.on_waiting = [&steps](const WaitNotice& notice) { steps.show_wait(notice.sentence); };
    check.there(Daemon(how));
  } catch (const FlotillaError& error) {
    steps.finish();
    return fail(error_of(error));
  }
  steps.finish();
  if (!context.json) print_line(steps.summary());
  return steps.failed() ? exit_code::failed : exit_code::ok;
}

}  // namespace

void add_amuse_commands(Context& context, CLI::App* root) {
  auto* amuse =
      context.add(root, "amuse",
                  {"be AMUSE's distributed code",
                   "AMUSE's DistributedAmuse starts a program, distributed_worker, that runs codes on other machines. 'install' puts "
                   "Flotilla in its place: scripts stay as they are.",
                   {{"Once, in AMUSE's environment", "flotilla amuse install"},
                    {"Is everything set up, here and on a cluster?", "flotilla amuse test --on hpc"}}});
  amuse->require_subcommand(1);

  const auto python = std::make_shared<std::string>();
  auto* install = context.add(
      amuse, "install",
      {"put Flotilla where the present AMUSE finds it",
       "From then on every script that uses amuse.community.distributed runs on Flotilla. What is replaced is kept beside "
       "it, and told. An AMUSE that has no such package gets one, which wants the Python package flotilla.",
       {{"The AMUSE of python3 in PATH", "flotilla amuse install"}, {"Another one", "flotilla amuse install --python ~/amuse/bin/python"}}},
      [python]() -> Result<int> {
        const auto place = amuse::find_amuse(*python);
        if (!place) return fail(place.error());
        const auto program = own_program();
        if (!program) return fail(program.error());
        return tell(amuse::install(*place, *program), "nothing was to be done");
      });
  auto* uninstall = context.add(amuse, "uninstall",
                                {"put back what 'flotilla amuse install' replaced",
                                 "Nothing happens where it was not installed.",
                                 {{"The AMUSE of python3 in PATH", "flotilla amuse uninstall"}}},
                                [python]() -> Result<int> {
                                  const auto place = amuse::find_amuse(*python);
                                  if (!place) return fail(place.error());
                                  return tell(amuse::uninstall(*place), "it is not installed there");
                                });
  const auto testing = std::make_shared<TestOptions>();
  auto* testing_app = context.add(
      amuse, "test",
      {"see step by step whether AMUSE's codes run over Flotilla",
       "Looks at AMUSE here and at what 'flotilla amuse install' put into it, then at a resource: logs in, starts a pilot of its own, "
       "starts every installed code once and has it answer, and compares the MPI that the codes are linked with and mpiexec. For each "
       "step it says what works and what to do about what does not. The exit code is 1 when a step failed.\n\n"
       "Nothing of it stays: the pilot ends with the test, also after Ctrl-C.",
       {{"This machine", "flotilla amuse test"},
        {"A resource ('flotilla resource add' made it)", "flotilla amuse test --on hpc"},
        {"AMUSE lies in a folder there that is not found by itself", "flotilla amuse test --on hpc --amuse-dir /opt/amuse"},
        {"In a script", "flotilla amuse test --on hpc --json"}}},
      [&context, python, testing]() -> Result<int> {
        testing->python = *python;
        return test(context, *testing);
      });
  context.complete(testing_app->add_option("--on", testing->resource, "where the codes are to run (default: local, this machine)")
                       ->type_name("RESOURCE"),
                   Complete::resource);
  testing_app->add_option("--amuse-dir", testing->amuse_dir, "where AMUSE is on the resource (default: it is looked for)")
      ->type_name("FOLDER");
  testing_app->add_flag("--accept-new", testing->accept_new, "take the host's key as right when it is not known yet (never a changed one)");
  context.add_json(testing_app);
  for (auto* each : {install, uninstall, testing_app})
    context.complete(
        each->add_option("--python", *python, "the Python whose AMUSE is meant (default: python3 in PATH)")->type_name("PROGRAM"),
        Complete::file);

  context.add(
      amuse, "serve",
      {"what AMUSE starts",
       "Started by AMUSE as 'flotilla amuse serve PORT HOST true|false', in the way of its workers: it connects there, is told what "
       "machines and pilots there are, and starts codes on them. It has a daemon of its own, and leaves nothing behind.",
       {{"What is installed as distributed_worker runs", "flotilla amuse serve 40000 localhost true"}}},
      []() -> Result<int> {
        return fail(Code::invalid_argument, "'amuse serve' is started by AMUSE, with a port, a host and a flag",
                    "in a script: from amuse.community.distributed.interface import DistributedAmuse");
      });
}

}  // namespace flotilla::cli
