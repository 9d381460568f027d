#include "pilot/process/environment.hpp"

#include <catch2/catch.hpp>

#include <algorithm>

#include "pilot/process/spawn.hpp"

using namespace flotilla;
using namespace flotilla::pilot;

TEST_CASE("launcher variables go, how sites reach their tools stays") {
  for (const char* name :
       {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_FD", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "NSLOTS", "FLOTILLA_JOB"})
    CHECK(is_launcher_variable(name));
  for (const char* name : {"PATH", "SLURM_CONF", "SGE_ROOT", "HOME", "OMP_NUM_THREADS", "PMIXED"}) CHECK_FALSE(is_launcher_variable(name));
}

TEST_CASE("variables are laid over a shared base") {
  const Environment base({"A=1", "B=2", "nonsense", "OMPI_X=1", "AB=3"});
  Environment job = base.cleaned();
  job.set("B", "two");
  job.set("C", "");
  job.set("B", "three");
  CHECK(*job.get("A") == "1");
  CHECK(*job.get("B") == "three");
  CHECK(job.get("C")->empty());
  CHECK_FALSE(job.get("OMPI_X"));
  CHECK_FALSE(job.get("D"));
  CHECK(*base.get("B") == "2");
  auto entries = job.entries();
  std::sort(entries.begin(), entries.end());
  CHECK(entries == std::vector<std::string>{"A=1", "AB=3", "B=three", "C="});
  CHECK(job.pointers().back() == nullptr);
}

TEST_CASE("what would run is found as a shell finds it, or the sentence says where was looked") {
  Environment environment({"PATH=/nowhere:/bin:/usr/bin"});
  CHECK(find_executable("sh", environment, "/tmp", "n1").value() == "/bin/sh");
  CHECK(find_executable("/bin/sh", environment, "/tmp", "n1").value() == "/bin/sh");
  CHECK(find_executable("../bin/sh", environment, "/tmp", "n1").value() == "/tmp/../bin/sh");
  CHECK(find_executable("foo", environment, "/tmp", "node1").error().message == "cannot run 'foo': not found in PATH on node1");
  CHECK(find_executable("/etc/passwd", environment, "/tmp", "n1").error().code == Code::permission_denied);
  CHECK(find_executable("/etc", environment, "/tmp", "n1").error().message.find("is a folder") != std::string::npos);
  CHECK_FALSE(find_executable("", environment, "/tmp", "n1"));
}
