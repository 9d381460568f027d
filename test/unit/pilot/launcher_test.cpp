#include "pilot/launcher/launcher.hpp"

#include <catch2/catch.hpp>

using namespace flotilla;
using namespace flotilla::pilot;

TEST_CASE("a worker is started as program, arguments, port, host, flag") {
  v1::WorkerSpec worker;
  worker.add_args("--fast");
  const auto launch = build_worker_launch(worker, 1, "/opt/worker", 40123, false);
  CHECK(launch.argv == std::vector<std::string>{"/opt/worker", "--fast", "40123", "127.0.0.1", "false"});
  CHECK(launch.environment.empty());
}

TEST_CASE("an MPI worker is started by mpiexec; root and oversubscription are allowed to Open MPI") {
  v1::WorkerSpec worker;
  worker.set_mpi(true);
  auto launch = build_worker_launch(worker, 4, "/opt/worker", 40123, true);
  CHECK(launch.argv == std::vector<std::string>{"mpiexec", "-n", "4", "/opt/worker", "40123", "127.0.0.1", "true"});
  auto has = [&](const std::string& name) {
    for (const auto& [key, value] : launch.environment)
      if (key == name && value == "1") return true;
    return false;
  };
  CHECK(has("OMPI_ALLOW_RUN_AS_ROOT"));
  CHECK(has("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"));
  CHECK(has("OMPI_MCA_rmaps_base_oversubscribe"));
  launch = build_worker_launch(worker, 4, "/opt/worker", 40123, false);
  CHECK_FALSE(has("OMPI_ALLOW_RUN_AS_ROOT"));
}
