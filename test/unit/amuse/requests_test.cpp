#include <catch2/catch.hpp>

#include "client/amuse/core/names.hpp"
#include "client/amuse/core/own_words.hpp"
#include "client/amuse/core/worker_request.hpp"
#include "messages.hpp"

using namespace flotilla;
using namespace flotilla::amuse;
using test::Made;

namespace {

struct StringSource {
  std::string bytes;
  std::size_t at = 0;
  bool read_header(unsigned char (&out)[wire::header_size]) {
    iovec part{out, sizeof out};
    read(&part, 1);
    return true;
  }
  void read(iovec* parts, int count) {
    for (int i = 0; i < count; ++i) {
      REQUIRE(at + parts[i].iov_len <= bytes.size());
      std::memcpy(parts[i].iov_base, bytes.data() + at, parts[i].iov_len);
      at += parts[i].iov_len;
    }
  }
};

WorkerRequest parse(const Made& made) {
  StringSource source{test::message(made)};
  wire::Message message;
  wire::receive(source, message);
  return parse_worker_request(message);
}

const Made asked{.call_id = 1,
                 .function_id = start_worker_id,
                 .ints = {4, 2},
                 .bools = {false},
                 .strings = {"community/hermite/hermite_worker", "/dev/null", "/home/me/err.txt", "gpu", "/amuse/community/hermite"}};

}  // namespace

TEST_CASE("what a script asks a worker's port for") {
  const auto request = parse(asked);
  CHECK(request.name() == "hermite_worker");
  CHECK(request.processes == 4);
  CHECK(request.threads == 2);
  const auto spec = make_worker_spec(request, "/amuse", {}, {std::chrono::seconds(7), std::chrono::seconds(9), false});
  CHECK(spec.name == "hermite_worker");
  CHECK(spec.label == "gpu");
  CHECK(spec.processes * spec.threads == 8);  // threads are slots too
  CHECK(spec.mpi);
  CHECK(spec.env.at("OMP_NUM_THREADS") == "2");
  CHECK(spec.stdout_file == "/dev/null");
  CHECK(spec.stderr_file.empty());
  CHECK(spec.private_folder);
  CHECK(spec.queue_timeout == std::chrono::seconds(7));
  CHECK(spec.start_timeout == std::chrono::seconds(9));
  CHECK(spec.args == std::vector<std::string>{"amuse", "community/hermite/hermite_worker", ""});
}

TEST_CASE("dynamic Python code is sent with its files, and runs from its folder") {
  auto made = asked;
  made.ints = {1, 0};
  made.bools = {true};
  made.strings[0] = "../../../home/me/code_worker.py";
  made.strings[4] = std::string("/home/me\0/opt/python", 20);
  CHECK(parse(made).folder == "/home/me");
  const auto spec = make_worker_spec(parse(made), "/amuse", {"/home/me/code_worker.py", "/home/me/other.py"}, {});
  CHECK(spec.args == std::vector<std::string>{"folder", "code_worker.py", "/opt/python"});
  CHECK(spec.files.size() == 3);
  CHECK_FALSE(spec.mpi);
  CHECK(spec.env.count("OMP_NUM_THREADS") == 0);
}

TEST_CASE("a request that is not whole is refused with what is missing") {
  auto made = asked;
  made.strings.pop_back();
  CHECK_THROWS_WITH(parse(made), Catch::Contains("5 strings") && Catch::Contains("4, 2 and 1"));
  made = asked;
  made.ints[0] = 0;
  CHECK_THROWS_WITH(parse(made), "number_of_workers is 0; it must be 1 or more");
  made = asked;
  made.function_id = 3;
  CHECK_THROWS_WITH(parse(made), Catch::Contains("function id 3"));
}

TEST_CASE("AMUSE's resources in Flotilla's words") {
  ResourceRow row{.name = "hpc", .location = "me@hpc:2222", .amuse_dir = "amuse", .tmp_dir = "/scratch", .gateway = "door"};
  auto spec = make_resource_spec(row, true);
  CHECK(spec.driver == "ssh");
  CHECK(spec.location == "me@hpc:2222");
  CHECK(spec.scratch_dir == "/scratch");
  CHECK(spec.gateway == "door");
  CHECK(spec.env.at("FLOTILLA_AMUSE_DIR") == "amuse");
  CHECK(spec.debug);
  row.location = "ssh://hpc";
  CHECK(make_resource_spec(row, false).location == "hpc");
  for (const char* here : {"", "localhost", "local", "null"}) {
    row.location = here;
    row.scheduler_type = "slurm";  // a location that is here counts more
    spec = make_resource_spec(row, false);
    CHECK(spec.driver == "local");
    CHECK(spec.location.empty());
  }
  row.location = "hpc";
  CHECK_THROWS_WITH(make_resource_spec(row, false), Catch::Contains("'slurm'") && Catch::Contains("there are: local, ssh"));
}

TEST_CASE("AMUSE's pilots in Flotilla's words") {
  PilotRow row{.resource_name = "hpc", .node_count = 2, .time_minutes = 90, .slots_per_node = 3, .label = "big", .options = "a=1;;b=c=d;"};
  const auto spec = make_pilot_spec(row, false);
  CHECK(spec.time == std::chrono::minutes(90));
  CHECK(spec.node_count == 2);
  CHECK(spec.slots_per_node == 3);
  CHECK(spec.options == std::map<std::string, std::string>{{"a", "1"}, {"b", "c=d"}});
  row.options = "exclusive";
  CHECK_THROWS_WITH(make_pilot_spec(row, false), Catch::Contains("'exclusive'") && Catch::Contains("key=value"));
  row.options.clear();
  row.slots_per_node = 0;
  CHECK_THROWS_WITH(make_pilot_spec(row, false), Catch::Contains("slots_per_node 0"));
  row.slots_per_node = 1;
  row.queue_name = "gpu";
  CHECK_THROWS_WITH(make_pilot_spec(row, false),
                    Catch::Contains("'hpc'") && Catch::Contains("queue 'gpu'") && Catch::Contains("leave queue_name"));
}

TEST_CASE("commands in a text reach the script's own daemon") {
  CHECK(own_words("no; see 'flotilla pilot list'", "/s") == "no; see 'FLOTILLA_STATE_DIR=/s flotilla pilot list'");
  CHECK(own_words("flotilla job list shows them (flotilla logs daemon)", "/s") ==
        "FLOTILLA_STATE_DIR=/s flotilla job list shows them (FLOTILLA_STATE_DIR=/s flotilla logs daemon)");
  for (const char* other : {"put the program flotilla into PATH", "/opt/flotilla run", "flotilla amuse install", "flotilla ", ""})
    CHECK(own_words(other, "/s") == other);
}

TEST_CASE("states in AMUSE's words") {
  CHECK(pilot_status(PilotState::starting) == "WAITING");
  CHECK(pilot_status(PilotState::unreachable) == "RUNNING");
  CHECK(pilot_status(PilotState::finished) == "DONE");
  CHECK(job_status(JobState::queued) == "PENDING");
  CHECK(job_status(JobState::dispatched) == "INITIALIZING");
  CHECK(job_status(JobState::canceled) == "FAILED");
}
