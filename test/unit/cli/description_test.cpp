// Files that describe jobs and resources, and the exit codes.
#include <catch2/catch.hpp>

#include "client/cli/description.hpp"
#include "client/cli/exit_codes.hpp"

using namespace flotilla;
using namespace flotilla::cli;

TEST_CASE("a job file is read in full") {
  const auto jobs = parse_jobs(R"(
name = "fit"
label = "hpc"
argv = ["./fit", "model.par"]
processes = 2
threads = 4
env = { SEED = 1, MODE = "fast", TRACE = true }
working_folder = "/data"
time_limit = "30min"
queue_timeout = 90
kill_grace = 0.5
stdin_file = "in.txt"
stdout_file = "out.txt"
merge_stderr = true
files = ["a.txt", "dir/b.txt"]
private_folder = true
pilot = 3
)",
                               "job.toml");
  REQUIRE(jobs);
  REQUIRE(jobs->size() == 1);
  const auto& job = jobs->front();
  CHECK(job.spec.name() == "fit");
  CHECK(job.spec.label() == "hpc");
  REQUIRE(job.spec.command().argv_size() == 2);
  CHECK(job.spec.command().argv(1) == "model.par");
  CHECK(job.spec.processes() == 2);
  CHECK(job.spec.threads() == 4);
  CHECK(job.spec.env().at("SEED") == "1");
  CHECK(job.spec.env().at("TRACE") == "true");
  CHECK(job.spec.time_limit_ms() == 1'800'000);
  CHECK(job.spec.queue_timeout_ms() == 90'000);
  CHECK(job.spec.kill_grace_ms() == 500);
  CHECK(job.stdin_file == "in.txt");
  CHECK(job.spec.command().merge_stderr());
  CHECK(job.spec.private_folder());
  CHECK(job.spec.pilot() == 3);
  REQUIRE(job.files.size() == 2);
  CHECK(job.files[1] == std::pair<std::string, std::string>("b.txt", "dir/b.txt"));
}

TEST_CASE("several jobs, and files by name") {
  const auto jobs =
      parse_jobs("[[job]]\nshell = \"echo $HOME | wc\"\n[[job]]\nargv = [\"x\"]\nfiles = { \"in/a.txt\" = \"/tmp/z\" }\n", "f");
  REQUIRE(jobs);
  REQUIRE(jobs->size() == 2);
  REQUIRE((*jobs)[0].spec.command().argv_size() == 3);
  CHECK((*jobs)[0].spec.command().argv(2) == "echo $HOME | wc");
  CHECK((*jobs)[1].files.front() == std::pair<std::string, std::string>("in/a.txt", "/tmp/z"));
}

TEST_CASE("all faults of a job file are told at once, each with its line") {
  const auto jobs = parse_jobs(
      "lable = \"hpc\"\nargv = \"ls\"\nslots = 0\nthreads = 2\ntime_limit = \"soon\"\nenv = { \"A-B\" = \"x\" }\nterminal = 1\nfiles = "
      "[\"../x=/y\"]\n",
      "job.toml");
  REQUIRE_FALSE(jobs);
  const auto& error = jobs.error();
  CHECK(error.code == Code::invalid_argument);
  CHECK(error.message.find("job.toml") != std::string::npos);
  CHECK_FALSE(error.hint.empty());
  const auto has = [&](const std::string& text) {
    for (const auto& fault : error.faults)
      if (fault.find(text) != std::string::npos) return true;
    UNSCOPED_INFO("missing: " << text);
    return false;
  };
  CHECK(has("line 1: unknown key 'lable'; did you mean 'label'?"));
  CHECK(has("line 2: argv must be a list of texts"));
  CHECK(has("line 3: slots must be"));
  CHECK(has("line 3: give either slots, or processes and threads"));
  CHECK(has("line 5: time_limit: 'soon' is no duration"));
  CHECK(has("line 6: 'A-B' is no name for a variable"));
  CHECK(has("line 7: terminal must be true or false"));
  CHECK(has("line 8: '../x' is no name inside the job's folder"));
}

TEST_CASE("a job file without anything to run is refused") {
  for (const char* text : {"", "name = \"x\"", "argv = []", "argv = [\"a\"]\nshell = \"b\""}) {
    INFO(text);
    CHECK_FALSE(parse_jobs(text, "f"));
  }
  const auto broken = parse_jobs("argv = [\"a\"\nname = ", "f");
  REQUIRE_FALSE(broken);
  CHECK(broken.error().message.find("f, line ") != std::string::npos);
  const auto outside = parse_jobs("name = \"x\"\n[[job]]\nargv = [\"a\"]", "f");
  REQUIRE_FALSE(outside);
  CHECK(outside.error().faults.front().find("'name' stands outside") != std::string::npos);
}

TEST_CASE("a resource file") {
  const auto resources = parse_resources(R"(
[[resource]]
name = "desk"
location = "me@desk:2222"
[[resource]]
name = "hpc"
location = "login"
gateway = "desk"
transport = "openssh"
hosts = ["node1", "node2"]
setup = ["module load gcc", "ulimit -c 0"]
env = { OMP_PROC_BIND = true }
options = { queue = "short" }
debug = true
)",
                                         "r.toml");
  REQUIRE(resources);
  REQUIRE(resources->size() == 2);
  const auto& hpc = (*resources)[1];
  CHECK(hpc.gateway() == "desk");
  CHECK(hpc.hosts_size() == 2);
  CHECK(hpc.setup(1) == "ulimit -c 0");
  CHECK(hpc.env().at("OMP_PROC_BIND") == "true");
  CHECK(hpc.options().at("queue") == "short");
  CHECK(hpc.debug());

  const auto wrong = parse_resources("loaction = \"x\"\ntransport = \"telnet\"\n", "r.toml");
  REQUIRE_FALSE(wrong);
  REQUIRE(wrong.error().faults.size() == 3);  // unknown key, no name, transport
}

TEST_CASE("input files: names stay inside the folder") {
  CHECK(parse_input_file("a/b.txt").value() == std::pair<std::string, std::string>("b.txt", "a/b.txt"));
  CHECK(parse_input_file("x=/a/b").value() == std::pair<std::string, std::string>("x", "/a/b"));
  CHECK(parse_input_file("in/x=/a/b").value() == std::pair<std::string, std::string>("in/x", "/a/b"));
  for (const char* text : {"../x=/a", "/x=/a", "a/../../x=/a", "", "x=", "dir/=/a"}) {
    INFO(text);
    CHECK_FALSE(parse_input_file(text));
  }
}

TEST_CASE("exit codes") {
  v1::ExitReason exit;
  exit.set_kind(v1::EXITED);
  exit.set_code(42);
  CHECK(exit_code::of(exit) == 42);
  exit.set_kind(v1::SIGNALED);
  exit.set_signal(9);
  CHECK(exit_code::of(exit) == 137);
  exit.set_kind(v1::TIME_LIMIT);
  CHECK(exit_code::of(exit) == 124);
  exit.set_kind(v1::CANCELED_BY_USER);
  CHECK(exit_code::of(exit) == 130);
  exit.set_kind(v1::START_FAILED);
  exit.set_code(127);
  CHECK(exit_code::of(exit) == 127);
  exit.set_code(2);
  CHECK(exit_code::of(exit) == 125);
  exit.set_kind(v1::PILOT_LOST);
  CHECK(exit_code::of(exit) == 125);
  CHECK(exit_code::of(Error{Code::not_found}) == 3);
  CHECK(exit_code::of(Error{Code::timeout}) == 5);
  CHECK(exit_code::of(Error{Code::invalid_argument}) == 2);
  CHECK(exit_code::of(Error{Code::authentication_failed}) == 4);
}
