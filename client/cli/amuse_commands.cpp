#include <filesystem>

#include "client/amuse/install.hpp"
#include "client/cli/command.hpp"

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

}  // namespace

void add_amuse_commands(Context& context, CLI::App* root) {
  auto* amuse =
      context.add(root, "amuse",
                  {"be AMUSE's distributed code",
                   "AMUSE's DistributedAmuse starts a program, distributed_worker, that runs codes on other machines. 'install' puts "
                   "Flotilla in its place: scripts stay as they are.",
                   {{"Once, in AMUSE's environment", "flotilla amuse install"},
                    {"In another one", "flotilla amuse install --python ~/amuse/bin/python"}}});
  amuse->require_subcommand(1);

  const auto python = std::make_shared<std::string>();
  auto* install =
      context.add(amuse, "install",
                  {"put Flotilla where the present AMUSE finds it",
                   "From then on every script that uses amuse.community.distributed runs on Flotilla. What is replaced is kept beside "
                   "it, and told. An AMUSE that has no such package gets one, which wants the Python package flotilla.",
                   {{"The AMUSE of python3 in PATH", "flotilla amuse install"}}},
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
  for (auto* each : {install, uninstall})
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
