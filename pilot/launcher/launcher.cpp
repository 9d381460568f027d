#include "pilot/launcher/launcher.hpp"

#include <algorithm>

namespace flotilla::pilot {

Launch build_worker_launch(const v1::WorkerSpec& worker, std::uint32_t processes, const std::string& executable, std::uint16_t port,
                           bool as_root) {
  Launch launch;
  if (worker.mpi()) {
    launch.argv = {"mpiexec", "-n", std::to_string(std::max(1u, processes))};
    // Slots are counted by us: Open MPI must not count cores again, nor bind two workers to the same ones.
    launch.environment = {{"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                          {"OMPI_MCA_hwloc_base_binding_policy", "none"},
                          {"PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"}};
    if (as_root) {  // otherwise Open MPI refuses
      launch.environment.emplace_back("OMPI_ALLOW_RUN_AS_ROOT", "1");
      launch.environment.emplace_back("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
  }
  launch.argv.push_back(executable);
  launch.argv.insert(launch.argv.end(), worker.args().begin(), worker.args().end());
  launch.argv.insert(launch.argv.end(), {std::to_string(port), "127.0.0.1", worker.mpi() ? "true" : "false"});
  return launch;
}

Launch build_command_launch(const v1::CommandSpec& command) {
  Launch launch;
  launch.argv.assign(command.argv().begin(), command.argv().end());
  return launch;
}

}  // namespace flotilla::pilot
