#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <thread>

#include "proto/base/random.hpp"
#include "proto/channel/hand_over.hpp"

using namespace flotilla;
using namespace flotilla::channel;
using namespace std::chrono_literals;

namespace {

struct Listener {
  std::filesystem::path dir = std::filesystem::temp_directory_path() / ("fl-take-" + random_hex(4));
  std::filesystem::path path = dir / "take.sock";
  unique_fd fd;
  Listener() {
    std::filesystem::create_directory(dir);
    fd.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.native().copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(fd.get(), 4) == 0);
  }
  ~Listener() { std::filesystem::remove_all(dir); }
  unique_fd accept() const { return unique_fd(::accept4(fd.get(), nullptr, nullptr, SOCK_CLOEXEC)); }
};

std::string read_exactly(int fd, std::size_t size) {
  std::string got(size, '\0');
  std::size_t have = 0;
  while (have < size) {
    const auto count = ::read(fd, got.data() + have, size - have);
    if (count <= 0) break;
    have += static_cast<std::size_t>(count);
  }
  got.resize(have);
  return got;
}

const std::string ticket(32, '\x5a');

}  // namespace

TEST_CASE("requests and answers are parsed as they are written") {
  const std::string request = format_take_request(ticket);
  CHECK(request.size() == take_request_bytes);
  CHECK(*parse_take_request(request) == ticket);
  for (std::string bad : {std::string(), request.substr(1), request + "x", "FLOTILLA-TAKE 2 " + request.substr(16),
                          request.substr(0, 80) + " ", "FLOTILLA-TAKE 1 " + std::string(64, 'g') + "\n"})
    CHECK_FALSE(parse_take_request(bad));

  Error error{Code::worker_failed, "worker\n\"x\" died", "look", Retry::yes, {}};
  std::string line = format_take_error(error);
  CHECK(std::count(line.begin(), line.end(), '\n') == 1);
  line.pop_back();
  auto parsed = parse_take_error(line);
  REQUIRE(parsed);
  CHECK((parsed->code() == v1::WORKER_FAILED && parsed->message() == error.message && parsed->hint() == "look" && parsed->retry()));

  v1::ExitReason exit;
  exit.set_kind(v1::SIGNALED);
  exit.set_signal(11);
  exit.set_stderr_tail("one\ntwo\n");
  line = format_end(exit);
  line.pop_back();
  auto end = parse_end(line);
  REQUIRE(end);
  CHECK((end->kind() == v1::SIGNALED && end->signal() == 11 && end->stderr_tail() == "one\ntwo\n"));
  CHECK_FALSE(parse_end("END {"));
  CHECK_FALSE(parse_end("ERROR {}"));
  CHECK(parse_end("END {\"kind\":\"EXITED\",\"of_later\":[1]}"));  // a newer giver
}

TEST_CASE("a channel is handed over with its counters, and its end is told") {
  Listener listener;
  int pair[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  unique_fd worker(pair[0]), channel(pair[1]);
  auto counters = CountersMap::create();
  REQUIRE(counters);
  std::string seen;
  unique_fd connection;
  std::thread giver([&] {
    connection = listener.accept();
    seen = read_exactly(connection.get(), take_request_bytes);
    // The end follows at once: it must not be lost behind the OK.
    send_fds(connection.get(), take_ok, {channel.get(), counters->fd()});
    channel.reset();
    v1::ExitReason exit;
    exit.set_kind(v1::EXITED);
    exit.set_code(3);
    send_fds(connection.get(), format_end(exit), {});
  });
  auto taken = take_channel(listener.path, ticket, 10s);
  giver.join();
  REQUIRE(taken);
  CHECK(*parse_take_request(seen) == ticket);
  CHECK((::fcntl(taken->fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
  taken->counters->calls = 42;
  CHECK((*counters)->calls == 42);
  REQUIRE(::write(worker.get(), "hello", 5) == 5);
  CHECK(read_exactly(taken->fd.get(), 5) == "hello");
  std::string partial;
  auto end = read_end(taken->control.get(), partial, 10s);
  REQUIRE(end);
  REQUIRE(*end);
  CHECK((*end)->code() == 3);
  // The giver kept no duplicate: the worker's close is seen.
  worker.reset();
  CHECK(read_exactly(taken->fd.get(), 1).empty());
}

TEST_CASE("a refusal, silence, and a giver that goes away are told apart") {
  Listener listener;
  SECTION("refusal") {
    std::thread giver([&] {
      auto connection = listener.accept();
      read_exactly(connection.get(), take_request_bytes);
      send_fds(connection.get(), format_take_error({Code::not_found, std::string(9000, 'x'), "", Retry::no, {}}), {});
    });
    auto taken = take_channel(listener.path, ticket, 10s);
    giver.join();
    REQUIRE_FALSE(taken);
    CHECK(taken.error().code == Code::not_found);
    CHECK(taken.error().message.size() == 9000);
  }
  SECTION("silence") { CHECK(take_channel(listener.path, ticket, 50ms).error().code == Code::timeout); }
  SECTION("gone") {
    std::thread giver([&] { read_exactly(listener.accept().get(), take_request_bytes); });
    CHECK(take_channel(listener.path, ticket, 10s).error().code == Code::unavailable);
    giver.join();
  }
  SECTION("nobody there") { CHECK(take_channel(listener.dir / "none", ticket, 1s).error().code == Code::unavailable); }
  SECTION("a path that is too long") { CHECK(take_channel(std::string(200, 'p'), ticket, 1s).error().code == Code::invalid_argument); }
  SECTION("no end yet") {
    int pair[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    unique_fd one(pair[0]), two(pair[1]);
    std::string partial;
    auto end = read_end(one.get(), partial, 20ms);
    REQUIRE(end);
    CHECK_FALSE(*end);
    two.reset();
    CHECK(read_end(one.get(), partial, 1s).error().code == Code::unavailable);
  }
}
