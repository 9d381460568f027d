#include <catch2/catch.hpp>
#include <flotilla/code.hpp>
#include <flotilla/worker.hpp>

#include <sys/resource.h>
#include <thread>

using namespace flotilla;

namespace {

// A worker in a thread, its channel a socket pair.
struct Served {
  explicit Served(WorkerProgram& program) {
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    thread = std::thread([this, &program] {
      code = program.serve(pair[1]);
      ::close(pair[1]);
    });
  }
  ~Served() {
    ::close(pair[0]);
    thread.join();
  }
  int end() {
    ::shutdown(pair[0], SHUT_WR);
    char byte;
    while (::recv(pair[0], &byte, 1, 0) > 0) {}
    return code;
  }
  int pair[2];
  std::atomic<int> code = -1;
  std::thread thread;
};

}  // namespace

TEST_CASE("a worker's functions are found by kind, row by row and whole") {
  WorkerProgram program;
  std::vector<double> mass{1, 2, 3};
  program.function("get_mass", [&](std::int32_t i, double& out) {
    if (i < 0 || i > 2) return -1;
    return out = mass[static_cast<std::size_t>(i)], 0;
  });
  program.function("set_mass", [&](std::span<const std::int32_t> i, std::span<const double> m) {
    for (std::size_t row = 0; row < i.size(); ++row) mass[static_cast<std::size_t>(i[row])] = m[row];
    return 0;
  });
  Served served(program);
  RemoteCode code(served.pair[0]);
  CHECK(code.call<double>("get_mass", 1) == 2);
  code.call("set_mass", std::vector{0, 2}, std::vector{10.0, 30.0});
  CHECK(code.call<std::vector<double>>("get_mass", std::vector{0, 1, 2}) == std::vector{10.0, 2.0, 30.0});
  code.call("set_mass", std::vector{0, 1, 2}, 5.0);  // a scalar is repeated
  CHECK(mass == std::vector{5.0, 5.0, 5.0});

  SECTION("a negative result code of any row is an exception that names it") {
    try {
      code.call<std::vector<double>>("get_mass", std::vector{0, 7});
      FAIL("no exception");
    } catch (const CodeError& error) {
      CHECK(error.result == -1);
      CHECK(error.row == 1);
      CHECK(std::string(error.what()) == "function get_mass returned -1 (row 1)");
    }
    CHECK(code.call<double>("get_mass", 1) == 5);
  }
  SECTION("arguments that do not fit are refused by name, and the channel goes on") {
    CHECK_THROWS_WITH(code.call<double>("get_mass", 1.0), Catch::Contains("get_mass takes 1 items of int32 for 1 rows, the call has 0"));
    CHECK_THROWS_AS(code.call<float>("get_mass", 1), MessageError);
    CHECK_THROWS_WITH(code.call<float>("get_mass", 1), Catch::Contains("1 items of float64 instead of 0"));
    CHECK_THROWS_WITH(code.call("get_mas", 1), Catch::Contains("unknown function id " + std::to_string(wire::function_id("get_mas"))));
    CHECK_THROWS_AS(code.call("set_mass", std::vector{0, 1}, std::vector{1.0}), std::invalid_argument);
    CHECK_THROWS_AS(code.call<double>("get_mass", std::vector{0, 1}), std::invalid_argument);
    CHECK(code.call<double>("get_mass", 1) == 5);
  }
  SECTION("no rows") { CHECK(code.call<std::vector<double>>("get_mass", std::vector<std::int32_t>{}).empty()); }
  SECTION("stop is answered") {
    code.stop();
    served.thread.join();
    CHECK(served.code == 0);
    served.thread = std::thread([] {});
  }
}

TEST_CASE("what every AMUSE code has is there") {
  WorkerProgram program;
  bool initialised = false;
  program.function("initialize_code", [&] { return initialised = true, 0; });
  Served served(program);
  RemoteCode code(served.pair[0]);
  code.call("initialize_code");
  CHECK(initialised);
  for (const char* name : {"commit_parameters", "recommit_parameters", "cleanup_code"}) code.call(name);
  char* here = ::getcwd(nullptr, 0);
  CHECK(code.call<std::string>("get_working_directory") == here);
  code.call("set_working_directory", std::string("/"));
  CHECK(code.call<std::string>("get_working_directory") == "/");
  code.call("set_working_directory", here);
  CHECK_THROWS_AS(code.call("set_working_directory", "/there/is/no/such/place"), CodeError);
  std::free(here);
  code.call("internal__set_message_polling_interval", 500);
  CHECK(code.call<std::int32_t>("internal__get_message_polling_interval") == 500);
  CHECK_THROWS_WITH(code.call("internal__open_port"), Catch::Contains("no MPI ports"));
  CHECK(code.call<std::string>("flotilla_describe").find("set_working_directory: string ->\n") != std::string::npos);
}

TEST_CASE("declarations that cannot work are refused when they are made") {
  WorkerProgram program;
  program.function("a", [] { return 0; });
  CHECK_THROWS_WITH(program.function("a", [] { return 0; }), Catch::Contains("have the same id"));
  CHECK_THROWS_WITH(program.function("b", 0, [] { return 0; }), Catch::Contains("function id 0"));
  CHECK_THROWS_WITH(program.function("c", wire::function_id("a"), [] { return 0; }), Catch::Contains("functions a and c"));
}

TEST_CASE("a worker whose caller closes ends, without spinning") {
  WorkerProgram program;
  Served served(program);
  CHECK(served.end() == 0);
}

TEST_CASE("a stream that is no AMUSE stream is answered with an error and ends the worker") {
  WorkerProgram program;
  program.set_max_message_bytes(1000);
  Served served(program);
  SECTION("noise") {
    std::string noise(100, 'x');
    REQUIRE(::send(served.pair[0], noise.data(), noise.size(), 0) == 100);
  }
  SECTION("longer than is taken") {
    unsigned char raw[wire::header_size];
    wire::Header header;
    header.counts[wire::float64_type] = 1000;
    wire::format_header(header, raw);
    REQUIRE(::send(served.pair[0], raw, sizeof raw, 0) == sizeof raw);
  }
  wire::FdStream stream(served.pair[0]);
  wire::Message reply;
  REQUIRE(wire::receive(stream, reply));
  CHECK(reply.header.error);
  REQUIRE(reply.strings.size() == 1);
  CHECK(served.end() == 1);
}

TEST_CASE("a caller of the other byte order is understood") {
  WorkerProgram program;
  program.function("add", [](double a, double b, double& sum) { return sum = a + b, 0; });
  Served served(program);
  wire::Header header;
  header.big_endian = !wire::native_big_endian;
  header.call_id = 77;
  header.function_id = wire::function_id("add");
  header.call_count = 2;
  header.counts[wire::float64_type] = 4;
  unsigned char raw[wire::header_size];
  wire::format_header(header, raw);
  double values[4] = {1, 2, 10, 20};  // a of both rows, b of both rows
  wire::swap_bytes(values, 4, 8);
  iovec parts[2] = {{raw, sizeof raw}, {values, sizeof values}};
  wire::FdStream stream(served.pair[0]);
  stream.write(parts, 2);
  wire::Message reply;
  REQUIRE(wire::receive(stream, reply));
  CHECK(reply.header.call_id == 77);
  CHECK(reply.header.call_count == 2);
  REQUIRE(reply.float64s.size() == 2);
  CHECK(reply.float64s[0] == 11);
  CHECK(reply.float64s[1] == 22);
  CHECK(reply.int32s.size() == 2);
}

TEST_CASE("a program that is started without its three arguments says how it is started") {
  WorkerProgram program;
  char name[] = "code";
  char* argv[] = {name, nullptr};
  CHECK(program.run(1, argv) == 64);
}
