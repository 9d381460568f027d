// The C++ calling side against worker processes of both languages.
#include <catch2/catch.hpp>
#include <flotilla/code.hpp>

#include <filesystem>
#include <fstream>
#include <sys/stat.h>

#include "started_worker.hpp"

using namespace flotilla;
namespace fs = std::filesystem;

namespace {

struct Scratch {
  Scratch() {
    char name[] = "/tmp/flotilla-sdk-XXXXXX";
    if (!::mkdtemp(name)) throw std::runtime_error("mkdtemp");
    path = name;
  }
  ~Scratch() { fs::remove_all(path); }
  fs::path path;
};

// The Python worker as it is shipped: beside a copy of worker.py, with an interpreter that has nothing else.
struct Program {
  explicit Program(const std::string& language) {
    if (language == "C++") {
      command = {ECHO_WORKER};
    } else {
      fs::copy_file(WORKER_PY, scratch.path / "worker.py");
      fs::copy_file(ECHO_WORKER_PY, scratch.path / "echo_worker.py");
      command = {"python3", "-S", "-E", (scratch.path / "echo_worker.py").string()};
    }
  }
  Scratch scratch;
  std::vector<std::string> command;
};

}  // namespace

TEST_CASE("every type goes there and back") {
  std::string language = GENERATE("C++", "Python");
  INFO(language);
  Program program(language);
  StartedWorker worker(program.command);
  RemoteCode code(worker.fd());
  CHECK(code.call<std::int32_t>("echo_int32", INT32_MIN) == INT32_MIN);
  CHECK(code.call<std::int64_t>("echo_int64", INT64_MAX) == INT64_MAX);
  CHECK(code.call<float>("echo_float32", 0.1f) == 0.1f);
  CHECK(code.call<double>("echo_float64", 0.1) == 0.1);
  CHECK(code.call<bool>("echo_bool", true));
  CHECK_FALSE(code.call<bool>("echo_bool", false));
  CHECK(code.call<std::string>("echo_string", "Grüße, 銀河") == "Grüße, 銀河");
  CHECK(code.call<std::string>("echo_string", std::string()).empty());
  auto [f, e, d, c, b, a, g] = code.call<float, std::int64_t, bool, std::int32_t, std::string, double, std::int32_t>(
      "echo_all", 1.5, "zwei", 3, true, std::int64_t{1} << 40, 2.5f, 9);
  CHECK((f == 2.5f && e == std::int64_t{1} << 40 && d && c == 3 && b == "zwei" && a == 1.5 && g == 9));
  CHECK(code.call<std::int32_t>("double_it", 21) == 42);
  CHECK(code.call<std::vector<std::int32_t>>("double_it", std::vector{1, 2, 3}) == std::vector{2, 4, 6});
  CHECK(code.call<std::vector<double>>("double_all", std::vector{1.5, 2.5}) == std::vector{3.0, 5.0});
  code.call(no_result_code("no_result"));
  CHECK(code.call<double>(no_result_code("half"), 5.0) == 2.5);
  CHECK(code.call<std::int32_t>(FunctionName("by_hand", 4711)) == 42);

  std::vector<std::string> words{"eins", "", "drei ö"};
  std::array<bool, 3> flags{true, false, true}, flags_out{};
  std::vector<std::int32_t> numbers{7, 8, 9};
  auto strings = code.call<std::vector<std::string>>("echo_arrays", words, flags, numbers, into(flags_out), into(numbers));
  CHECK(strings == words);
  CHECK(flags_out == flags);

  std::vector<Unit> units{{1000, 1, {1, 0, 0, 0, 0, 0, 0}}, {}};
  CHECK(code.call<double>("echo_units", 4.0, with_units(units)) == 4);
  REQUIRE(code.last_units().size() == 2);
  CHECK(code.last_units()[0].factor == 1000);
  CHECK(code.last_units()[0].powers[0] == 1);
  CHECK(code.call<double>("echo_units", 4.0) == 4);
  CHECK(code.last_units().empty());

  CHECK_THROWS_WITH(code.call("fail", "because of ü"), "function fail: fail: because of ü");
  code.call("return_code", 3);
  CHECK(code.last_result() == 3);
  CHECK_THROWS_AS(code.call("return_code", -3), CodeError);
  CHECK(code.call<std::int32_t>("echo_int32", 1) == 1);
  code.stop();
  CHECK(worker.wait() == 0);
  CHECK_THROWS_AS(code.call("echo_int32", 1), ChannelClosed);
  CHECK_FALSE(code.usable());
}

TEST_CASE("large arrays arrive as they were sent, into memory of the caller") {
  std::string language = GENERATE("C++", "Python");
  INFO(language);
  Program program(language);
  StartedWorker worker(program.command);
  std::uint64_t counters[3] = {};
  RemoteCode code(worker.fd(), {.counters = counters});
  constexpr std::size_t rows = 300'001;
  std::vector<double> in[7], out[7];
  for (int i = 0; i < 7; ++i) {
    out[i].resize(rows);
    for (std::size_t row = 0; row < rows; ++row) in[i].push_back(static_cast<double>(row) * (i + 1));
  }
  code.call("put", in[0], in[1], in[2], in[3], in[4], in[5], in[6]);
  code.call("get", into(out[0]), into(out[1]), into(out[2]), into(out[3]), into(out[4]), into(out[5]), into(out[6]));
  for (int i = 0; i < 7; ++i) CHECK(in[i] == out[i]);
  CHECK(counters[0] == 2);
  CHECK(counters[1] == 2 * wire::header_size + 7 * rows * 8);
  CHECK(counters[2] == 2 * wire::header_size + 7 * rows * 8 + 2 * rows * 4);
  CHECK_THROWS_AS(code.call<std::vector<double>>("get", rows == 0 ? Rows{0} : Rows{rows}), MessageError);  // fewer outputs than it has
  CHECK(code.call<std::int32_t>("echo_int32", 5) == 5);                                                    // and still in step
}

TEST_CASE("a worker ends when its channel closes") {
  std::string language = GENERATE("C++", "Python");
  INFO(language);
  Program program(language);
  StartedWorker worker(program.command);
  {
    RemoteCode code(worker.fd());
    CHECK(code.call<std::int32_t>("echo_int32", 5) == 5);
  }
  worker.close();
  CHECK(worker.wait() == 0);
}

TEST_CASE("a worker that dies in a call ends it with the cause that is known") {
  Program program("C++");
  StartedWorker worker(program.command);
  RemoteCode code(worker.fd(), {.explain = [] { return "exit code 7"; }});
  CHECK_THROWS_WITH(code.call("die", 7), Catch::Contains("function die: ") && Catch::Contains("exit code 7"));
  CHECK_THROWS_WITH(code.call("die", 7), Catch::Contains("the channel has ended: exit code 7"));
  CHECK(worker.wait() == 7);
}

TEST_CASE("several workers compute at once, and are waited for together") {
  Scratch scratch;
  auto pipe_a = scratch.path / "a", pipe_b = scratch.path / "b";
  REQUIRE(::mkfifo(pipe_a.c_str(), 0600) == 0);
  REQUIRE(::mkfifo(pipe_b.c_str(), 0600) == 0);
  Program cpp("C++"), python("Python");
  StartedWorker worker_a(cpp.command), worker_b(python.command);
  RemoteCode a(worker_a.fd()), b(worker_b.fd());
  auto first = a.async<std::string>("wait_for", pipe_a.string());
  auto second = b.async<std::string>("wait_for", pipe_b.string());
  CHECK_FALSE(first.ready());
  CHECK_FALSE(second.ready());
  CHECK(wait_any({&first, &second}, std::chrono::milliseconds(1)) == std::nullopt);
  std::ofstream(pipe_b) << "two\n";
  CHECK(wait_any({&first, &second}, std::chrono::seconds(20)) == 1u);
  CHECK(second.get() == "two");
  CHECK_FALSE(first.ready());
  std::ofstream(pipe_a) << "one\n";
  CHECK(wait_any({&first}) == 0u);
  CHECK(first.get() == "one");

  SECTION("a second call takes the first one's reply first, and it is kept") {
    auto kept = a.async<std::int32_t>("echo_int32", 1);
    auto dropped = b.async<std::int32_t>("echo_int32", 1);
    (void)dropped;
    CHECK(a.call<std::int32_t>("echo_int32", 2) == 2);
    CHECK(kept.get() == 1);
    CHECK(b.call<std::int32_t>("echo_int32", 3) == 3);
  }
  SECTION("an error comes out of get") {
    auto failing = a.async<>("fail", "no");
    CHECK_THROWS_AS(failing.get(), CallError);
  }
}

TEST_CASE("a program's own arguments stand before the three") {
  std::string language = GENERATE("C++", "Python");
  Program program(language);
  auto command = program.command;
  command.push_back("--table=solar");
  StartedWorker worker(command);
  RemoteCode code(worker.fd());
  CHECK(code.call<std::string>("own_argument") == "--table=solar");
}

#ifdef ECHO_WORKER_MPI
TEST_CASE("an MPI worker: rank 0 has the channel, all ranks run the call") {
  std::vector<std::string> environment{"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                                       "OMPI_MCA_rmaps_base_oversubscribe=1"};
  StartedWorker worker({MPIEXEC, "-n", "2", ECHO_WORKER_MPI}, "true", environment);
  RemoteCode code(worker.fd());
  CHECK(code.call<std::int32_t>("ranks") == 2);
  CHECK(code.call<std::string>("echo_string", "grün") == "grün");
  CHECK_THROWS_WITH(code.call("fail_on_rank", 1), Catch::Contains("rank 1: fail_on_rank: as told"));
  CHECK_THROWS_WITH(code.call("fail_on_rank", 0), Catch::Contains("fail_on_rank: as told"));
  code.call("internal__set_message_polling_interval", 1000);
  CHECK(code.call<std::vector<double>>("double_all", std::vector<double>(100'000, 1.0)) == std::vector<double>(100'000, 2.0));
  SECTION("told to stop") {
    code.stop();
    CHECK(worker.wait() == 0);
  }
  SECTION("its channel closes") {
    worker.close();
    CHECK(worker.wait() == 0);
  }
}
#endif
