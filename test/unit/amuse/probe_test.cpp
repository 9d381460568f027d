#include <catch2/catch.hpp>

#include "client/amuse/core/probe.hpp"
#include "client/amuse/core/worker_request.hpp"

using namespace flotilla;
using namespace flotilla::amuse;
using Catch::Contains;
using Status = TestStep::Status;
using Family = MpiKind::Family;

namespace {

constexpr const char* open_mpi = "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4, May 26, 2022";
constexpr const char* open_mpiexec = "mpiexec (OpenRTE) 4.1.4";
constexpr const char* mpich = "MPICH Version:      4.0.2 MPICH Release date: Thu Apr 7";
constexpr const char* hydra = "HYDRA build details:     Version:                                 4.0.2";

// A machine as Debian makes it.
Probe machine() {
  Probe probe;
  probe.host = "node1";
  probe.home = "/opt/amuse";
  probe.version = "2024.6.0";
  probe.mpiexec = "/usr/bin/mpiexec";
  probe.real_mpiexec = "/usr/bin/orterun";
  probe.mpiexec_says = open_mpiexec;
  probe.libraries = {{"/lib/libmpi.so.40", "/usr/lib/x86_64-linux-gnu/libmpi.so.40.30.4", open_mpi}};
  probe.codes = {{"/opt/amuse/community/plain/plain_worker", false, {}, {}},
                 {"/opt/amuse/community/hermite/hermite_worker", false, "/lib/libmpi.so.40", {}},
                 {"/opt/amuse/community/script/script_worker", true, {}, {}}};
  return probe;
}

}  // namespace

TEST_CASE("what a probe says is understood") {
  const auto probe = parse_probe(
      "the shell's greeting\n"
      "host\tnode1\nhome\t/opt/my amuse\nversion\t__version__ = version = '2024.6.0'\npython\t/usr/bin/python3\n"
      "mpiexec\t/usr/bin/mpiexec\t/usr/bin/orterun\tmpiexec (OpenRTE) 4.1.4  \n"
      "code\t/a b/x_worker\tprogram\nneeds\tlibgsl.so.27\tnot found\nneeds\tlibmpi.so.40\t/lib/libmpi.so.40\n"
      "library\t/lib/libmpi.so.40\t/usr/lib/libmpi.so.40.30.4\tOpen MPI v4.1.4, package\n"
      "code\t/a b/y_worker\tscript\n"
      "code\t/a b/z_worker\tprogram\nneeds\tlibmpich.so.12\tnot found\n"
      "end\t\n");
  CHECK(probe.whole);
  CHECK(probe.host == "node1");
  CHECK(probe.home == "/opt/my amuse");
  CHECK(probe.version == "2024.6.0");
  CHECK(probe.real_mpiexec == "/usr/bin/orterun");
  CHECK(mpi_kind(probe.mpiexec_says).text() == "Open MPI 4.1.4");
  REQUIRE(probe.libraries.size() == 1);
  CHECK(probe.libraries[0].real_path == "/usr/lib/libmpi.so.40.30.4");
  REQUIRE(probe.codes.size() == 3);
  CHECK(probe.codes[0].name() == "x_worker");
  CHECK(probe.codes[0].mpi == "/lib/libmpi.so.40");
  CHECK(probe.codes[0].missing == std::vector<std::string>{"libgsl.so.27"});
  CHECK(probe.codes[1].script);
  CHECK_FALSE(probe.codes[1].with_mpi());
  CHECK(probe.codes[2].with_mpi());
  CHECK(probe.codes[2].mpi.empty());
}

TEST_CASE("half a probe is known as such, and what is out of place in it does no harm") {
  const auto probe = parse_probe("needs\tlibmpi.so.40\tnot found\nhost\nlibrary\t\ncode\t\tprogram\nmpiexec\t/usr/bin/mpiexec");
  CHECK_FALSE(probe.whole);
  CHECK(probe.codes.empty());
  CHECK(probe.real_mpiexec == "/usr/bin/mpiexec");
  CHECK_FALSE(parse_probe("").whole);
}

TEST_CASE("both scripts look for AMUSE with the same text") {
  const auto worker = worker_script(), probe = probe_script();
  const auto looks = worker.find("find_spec(\"amuse\")");
  REQUIRE(looks != std::string::npos);
  const auto end = worker.find("flotilla-amuse-home");
  REQUIRE(end > looks);
  CHECK(probe.substr(0, looks) == worker.substr(0, looks));
  CHECK(probe.find("flotilla-amuse-home") == std::string::npos);
}

TEST_CASE("a version is what stands in quotes") {
  CHECK(version_in("__version__ = version = '2024.6.0'") == "2024.6.0");
  CHECK(version_in("version = \"2025.9\"") == "2025.9");
  CHECK(version_in("version: str").empty());
  CHECK(version_in("version = '2024").empty());
}

TEST_CASE("MPIs by what they say") {
  CHECK(mpi_kind(open_mpi).text() == "Open MPI 4.1.4");
  CHECK(mpi_kind(open_mpiexec).text() == "Open MPI 4.1.4");
  CHECK(mpi_kind("mpiexec (Open MPI) 5.0.3").text() == "Open MPI 5.0.3");
  CHECK(mpi_kind("prterun (PRRTE) 3.0.6").text() == "Open MPI");  // a version of its own
  CHECK(mpi_kind(mpich).text() == "MPICH 4.0.2");
  CHECK(mpi_kind(hydra).text() == "MPICH 4.0.2");
  CHECK(mpi_kind("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307").text() == "Intel MPI 2021.9");
  CHECK(mpi_kind("MVAPICH2 Version      : 2.3.7").text() == "MVAPICH 2.3.7");
  CHECK(mpi_kind("srun: 22.05").family == Family::unknown);
}

TEST_CASE("the same MPI on both sides is right") {
  const auto step = judge_mpi(machine(), "hpc");
  CHECK(step.status == Status::ok);
  CHECK_THAT(step.message, Contains("1 of 3 programs are built with MPI: Open MPI 4.1.4") && Contains("/usr/bin/orterun"));
  CHECK(step.hint.empty());
}

TEST_CASE("another MPI's mpiexec is wrong, another version's is doubtful") {
  auto probe = machine();
  probe.mpiexec_says = hydra;
  auto step = judge_mpi(probe, "hpc");
  CHECK(step.status == Status::failed);
  CHECK_THAT(step.message, Contains("hermite_worker: Open MPI 4.1.4") && Contains("mpiexec is MPICH 4.0.2"));
  CHECK_THAT(step.hint, Contains("mpiexec of Open MPI 4.1.4 first in PATH") && Contains("--setup"));
  CHECK_THAT(judge_mpi(probe, "local").hint, !Contains("--setup"));  // nothing is set up for this machine
  probe.mpiexec_says = "mpiexec (Open MPI) 5.0.3";
  CHECK(judge_mpi(probe, "hpc").status == Status::warning);
  probe.mpiexec_says = "mpiexec (OpenRTE) 4.1.6";  // patches do no harm
  CHECK(judge_mpi(probe, "hpc").status == Status::ok);
}

TEST_CASE("of several MPIs the worst is told") {
  auto probe = machine();
  probe.codes.push_back({"/opt/amuse/community/other/other_worker", false, "/opt/mpich/lib/libmpi.so.12", {}});
  probe.libraries.push_back({"/opt/mpich/lib/libmpi.so.12", "/opt/mpich/lib/libmpi.so.12.2", mpich});
  probe.codes.push_back({"/opt/amuse/community/old/old_worker", false, "/old/libmpi.so.40", {}});
  const auto old = MpiLibrary{"/old/libmpi.so.40", "/old/libmpi.so.40.1", "Open MPI v3.1.0"};
  for (const bool first : {true, false}) {
    auto both = probe;
    both.libraries.insert(first ? both.libraries.begin() : both.libraries.end(), old);
    const auto step = judge_mpi(both, "hpc");
    CHECK(step.status == Status::failed);
    CHECK_THAT(step.message, Contains("other_worker: MPICH 4.0.2"));
  }
}

TEST_CASE("an MPI that does not say what it is counts as the one it lies beside") {
  auto probe = machine();
  probe.libraries[0].says.clear();
  CHECK(judge_mpi(probe, "hpc").status == Status::ok);  // both below /usr
  probe.libraries[0].real_path = "/opt/mpi/lib/libmpi.so.40.1";
  const auto step = judge_mpi(probe, "hpc");
  CHECK(step.status == Status::warning);
  CHECK_THAT(step.message, Contains("is not known"));
  probe.real_mpiexec = "/opt/mpi/bin/mpiexec";
  CHECK(judge_mpi(probe, "hpc").status == Status::ok);
}

TEST_CASE("an MPI library that is not found, and no mpiexec") {
  auto probe = machine();
  probe.mpiexec.clear();
  probe.mpiexec_says.clear();
  auto step = judge_mpi(probe, "hpc");
  CHECK(step.status == Status::failed);
  CHECK_THAT(step.message, Contains("mpiexec is not in PATH on node1"));
  probe.codes[1] = {"/opt/amuse/community/hermite/hermite_worker", false, {}, {"libgsl.so.27", "libmpi.so.40"}};
  step = judge_mpi(probe, "hpc");  // comes first: nothing starts at all
  CHECK_THAT(step.message, Contains("hermite_worker: linked with libmpi.so.40, not found on node1"));
  CHECK_THAT(step.hint, Contains("an MPI that is installed"));
  probe.codes.erase(probe.codes.begin() + 1);
  step = judge_mpi(probe, "hpc");
  CHECK(step.status == Status::skipped);  // who has no code with MPI needs none
}

TEST_CASE("AMUSE there") {
  auto probe = machine();
  auto step = judge_home(probe, "2024.6.0", "hpc");
  CHECK(step.status == Status::ok);
  CHECK_THAT(step.message, Contains("AMUSE 2024.6.0 in /opt/amuse on node1, 3 programs"));
  CHECK(judge_home(probe, "", "hpc").status == Status::ok);  // there is none here
  step = judge_home(probe, "2025.9.0", "hpc");
  CHECK(step.status == Status::warning);
  CHECK_THAT(step.message, Contains("here it is 2025.9.0"));
  probe.codes.clear();
  step = judge_home(probe, "2024.6.0", "hpc");
  CHECK(step.status == Status::failed);
  CHECK_THAT(step.hint, Contains("pip install") && Contains("--amuse-dir"));
}

TEST_CASE("AMUSE here") {
  HereFacts facts{.python = "/v/bin/python", .root = "/v/amuse", .version = "2024.6.0", .numpy = "1.26.4", .mpiexec = "/usr/bin/mpiexec"};
  CHECK(judge_here(facts).status == Status::ok);
  facts.numpy = "2.1.0";
  CHECK(judge_here(facts).status == Status::failed);
  CHECK_THAT(judge_here(facts).hint, Contains("/v/bin/python -m pip install 'numpy<2'"));
  facts.version = "2025.9.0";
  CHECK(judge_here(facts).status == Status::ok);
  facts.trouble = "ModuleNotFoundError: No module named 'h5py'";
  CHECK(judge_here(facts).status == Status::failed);
  CHECK_THAT(judge_here(facts).message, Contains("h5py"));
}

TEST_CASE("mpiexec here: AMUSE's own way of starting its distributed code") {
  HereFacts facts{.mpiexec = "/usr/bin/mpiexec"};
  CHECK(judge_mpiexec_here(facts).status == Status::ok);
  facts.mpiexec_code = 1;
  facts.mpiexec_said = "mpiexec has detected an attempt to run as root ... by setting OMPI_ALLOW_RUN_AS_ROOT ...";
  auto step = judge_mpiexec_here(facts);
  CHECK(step.status == Status::failed);
  CHECK_THAT(step.message, Contains("refuses to work for root"));
  CHECK_THAT(step.hint, Contains("export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"));
  facts.mpiexec_said = "cannot run /usr/bin/mpiexec: No such file or directory";
  step = judge_mpiexec_here(facts);
  CHECK_THAT(step.message, Contains("No such file"));
  CHECK_THAT(step.hint, Contains("initialize_mpi=False"));
  facts.mpiexec.clear();
  CHECK(judge_mpiexec_here(facts).status == Status::skipped);
}

TEST_CASE("what to do about a code that does not start") {
  const auto code = machine().codes[1];
  CHECK_THAT(advice_for(code, "x: error while loading shared libraries: libgsl.so.27: cannot open", "hpc"), Contains("--setup"));
  auto lacking = code;
  lacking.missing = {"libgsl.so.27"};
  CHECK_THAT(advice_for(lacking, "", "hpc"), Contains("libgsl.so.27"));
  CHECK_THAT(advice_for(code, "/lib/libc.so.6: version `GLIBC_2.38' not found", "hpc"), Contains("newer system"));
  CHECK_THAT(advice_for(code, "Exec format error", "hpc"), Contains("another kind of machine"));
  CHECK(advice_for(code, "Permission denied", "hpc") == "chmod +x " + code.path);
  CHECK_THAT(advice_for(code, "ModuleNotFoundError: No module named 'numpy'", "hpc"), Contains("head -n 1 " + code.path));
  CHECK_THAT(advice_for(code, "Segmentation fault", "hpc"), Contains("by hand") && Contains(code.path));
}

TEST_CASE("two ranks are tried with the first code of MPI that works") {
  const auto probe = machine();
  const auto mpi = judge_mpi(probe, "hpc");
  std::vector<const FoundCode*> works;
  for (const auto& code : probe.codes) works.push_back(&code);
  CHECK(choose_two_ranks(works, probe, mpi, 2).code == &probe.codes[1]);
  CHECK(choose_two_ranks(works, probe, mpi, 1).reason == "node1 has one processor");
  CHECK(choose_two_ranks({&probe.codes[0]}, probe, mpi, 2).reason == "no code that is built with MPI works with one");
  auto bad = mpi;
  bad.status = Status::failed;
  CHECK(choose_two_ranks(works, probe, bad, 2).code == nullptr);
  auto without = probe;
  without.codes.erase(without.codes.begin() + 1);
  CHECK(choose_two_ranks({}, without, judge_mpi(without, "hpc"), 2).reason == "no code here is built with MPI");
}
