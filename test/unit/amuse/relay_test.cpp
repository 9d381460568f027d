#include "client/amuse/relay.hpp"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <thread>

#include "messages.hpp"
#include "proto/base/unique_fd.hpp"

using namespace flotilla;
using namespace flotilla::amuse;
using test::message;

namespace {

struct Pair {
  unique_fd near, far;
  Pair() {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    near.reset(ends[0]);
    far.reset(ends[1]);
  }
};

void give(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const auto count = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count <= 0) return;
    bytes.remove_prefix(static_cast<std::size_t>(count));
  }
}

std::string take(int fd, std::size_t size) {
  std::string got(size, '\0');
  std::size_t have = 0;
  while (have < size) {
    const auto count = ::recv(fd, got.data() + have, size - have, 0);
    if (count <= 0) break;
    have += static_cast<std::size_t>(count);
  }
  got.resize(have);
  return got;
}

// A relay in a thread of its own, as the worker port has it.
struct Running {
  Pair script, worker;
  unique_fd wake{eventfd(0, EFD_CLOEXEC)};
  std::uint64_t counters[3] = {};
  RelayEnd end{};
  std::thread thread;
  Running() {
    thread = std::thread([this] {
      Relay relay(script.near.get(), worker.near.get(), wake.get(), counters);
      end = relay.run();
      if (end == RelayEnd::worker_left) relay.answer_for_the_dead("killed by signal 9");
      script.near.reset();
    });
  }
  ~Running() {
    script.far.reset();
    worker.far.reset();
    if (thread.joinable()) thread.join();
  }
};

}  // namespace

TEST_CASE("calls and answers go through, large ones too, and the last ends it") {
  Running running;
  const auto call = message({.call_id = 5, .function_id = 6, .doubles = std::vector<double>(1'000'000, 1.5)});
  std::string got;
  std::thread worker([&] {
    got = take(running.worker.far.get(), call.size());
    give(running.worker.far.get(), got);
  });
  give(running.script.far.get(), call);
  CHECK(take(running.script.far.get(), call.size()) == call);
  worker.join();
  CHECK(got == call);
  const auto stop = message({.call_id = 9, .function_id = 0});
  give(running.script.far.get(), stop);
  CHECK(take(running.worker.far.get(), stop.size()) == stop);
  give(running.worker.far.get(), stop);
  CHECK(take(running.script.far.get(), stop.size()) == stop);
  running.thread.join();
  CHECK(running.end == RelayEnd::stopped);
  CHECK(running.counters[0] == 2);
  CHECK(running.counters[1] == call.size() + stop.size());
  CHECK(running.counters[2] == call.size() + stop.size());
}

TEST_CASE("a dead worker's calls are answered: the one that waits, all later ones, and the stop") {
  Running running;
  // The call may be on its way when the worker dies: a short one has not come to it, of a long one a part.
  const auto call =
      message({.call_id = 5, .function_id = 6, .ints = std::vector<std::int32_t>(GENERATE(3, 100'000)), .strings = {"words"}});
  const std::size_t given = GENERATE(0, 1) ? call.size() : std::min<std::size_t>(call.size() - 1, 60'000);
  give(running.script.far.get(), std::string_view(call).substr(0, given));
  if (given == call.size() || given == 60'000) REQUIRE(take(running.worker.far.get(), given).size() == given);
  running.worker.far.reset();
  give(running.script.far.get(), std::string_view(call).substr(given));
  for (const std::int32_t id : {5, 7, 8}) {
    if (id != 5) give(running.script.far.get(), message({.call_id = id, .function_id = id + 1}));
    const auto want = message({.call_id = id, .function_id = id + 1, .error = true, .strings = {"killed by signal 9"}});
    CHECK(take(running.script.far.get(), want.size()) == want);
  }
  give(running.script.far.get(), message({.call_id = 1, .function_id = 0}));
  CHECK(take(running.script.far.get(), wire::header_size) == message({.call_id = 1, .function_id = 0}));
  CHECK(take(running.script.far.get(), 1).empty());
}

TEST_CASE("a short message that comes piece by piece goes on as one") {
  Running running;
  const auto call = message({.call_id = 5, .function_id = 6, .ints = {1, 2, 3}});
  const auto piecewise = [&](int from, int to) {
    for (const auto& [begin, size] : {std::pair<std::size_t, std::size_t>{0, 4}, {4, 40}, {44, call.size()}})
      give(from, std::string_view(call).substr(begin, size));
    std::string got(call.size(), '\0');
    CHECK(::recv(to, got.data(), got.size(), 0) == static_cast<ssize_t>(call.size()));
    CHECK(got == call);
  };
  piecewise(running.script.far.get(), running.worker.far.get());
  piecewise(running.worker.far.get(), running.script.far.get());
}

TEST_CASE("a worker that dies in the middle of a short answer: the call is answered with the cause") {
  Running running;
  const auto call = message({.call_id = 5, .function_id = 6});
  give(running.script.far.get(), call);
  REQUIRE(take(running.worker.far.get(), call.size()) == call);
  give(running.worker.far.get(), std::string_view(message({.call_id = 5, .function_id = 6, .doubles = {1, 2, 3}})).substr(0, 50));
  running.worker.far.reset();
  const auto want = message({.call_id = 5, .function_id = 6, .error = true, .strings = {"killed by signal 9"}});
  CHECK(take(running.script.far.get(), want.size()) == want);
}

TEST_CASE("a worker that dies in the middle of a long answer ends the script's connection") {
  Running running;
  const auto call = message({.call_id = 5, .function_id = 6});
  give(running.script.far.get(), call);
  REQUIRE(take(running.worker.far.get(), call.size()) == call);
  const auto answer = message({.call_id = 5, .function_id = 6, .doubles = std::vector<double>(10'000)});
  give(running.worker.far.get(), std::string_view(answer).substr(0, 60'000));
  running.worker.far.reset();
  CHECK(take(running.script.far.get(), answer.size()).size() == 60'000);
}

TEST_CASE("a script that leaves, and one that does not read") {
  {
    Running running;
    running.script.far.reset();
    running.thread.join();
    CHECK(running.end == RelayEnd::client_left);
  }
  {  // the worker takes nothing, and the script goes away while its array is on its way
    Running running;
    std::thread script([&] { give(running.script.far.get(), message({.doubles = std::vector<double>(1'000'000, 2.5)})); });
    REQUIRE(take(running.worker.far.get(), 100).size() == 100);
    ::shutdown(running.script.far.get(), SHUT_RDWR);
    script.join();
    running.thread.join();
    CHECK(running.end == RelayEnd::client_left);
  }
  {
    Running running;
    const std::uint64_t one = 1;
    REQUIRE(::write(running.wake.get(), &one, sizeof one) == sizeof one);
    running.thread.join();
    CHECK(running.end == RelayEnd::told);
  }
}
