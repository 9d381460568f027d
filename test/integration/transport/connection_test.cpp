// A connection from nothing to its end: the agent brought there, the hub started, the link, and all gone afterwards.
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>

#include <fstream>

#include "daemon/transport/agent_package.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/random.hpp"
#include "proto/tls/certificate.hpp"
#include "test/integration/transport/machine.hpp"

namespace {

bool ping_pong(Side& side) {
  v1::Frame frame;
  frame.mutable_ping()->set_id(42);
  side.connection->send(frame);
  return side.until([&] {
    for (const auto& each : side.frames)
      if (each.has_pong() && each.pong().id() == 42) return true;
    return false;
  });
}

}  // namespace

TEST_CASE("nothing is there: the agent is sent, the hub starts, frames flow; the second time nothing is sent") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      Machine machine(home);
      Side side(home);
      auto config = side.config(machine, transport);
      side.connect(config);
      REQUIRE(side.until_connected());
      CHECK(side.saw(v1::HUB_CONNECTING));
      CHECK(side.saw(v1::HUB_UPLOADING));
      CHECK(side.saw(v1::HUB_STARTING));
      CHECK(side.states.back().first == v1::HUB_CONNECTED);
      CHECK(side.hello->instance() == config.instance);
      CHECK(side.connection->connected());
      CHECK(ping_pong(side));
      const auto files = files_in(machine.scratch());
      REQUIRE(files.size() == 1);  // the agent, and nothing of how it came
      CHECK(files[0].filename() == "flotilla-agent-" + describe_agent(config.agent)->sha256);

      side.end_hub();
      REQUIRE(side.ended);
      side.connect(config);
      REQUIRE(side.until_connected());
      CHECK_FALSE(side.saw(v1::HUB_UPLOADING));
      CHECK(ping_pong(side));
      side.end_hub();
      CHECK(side.ends == 1);
      side.connection.reset();
      CHECK(side.until([&] { return machine.connections().empty(); }));
    }
  }
  finish_packing();
}

TEST_CASE("the packed agent is kept, and what is kept is used") {
  Home home;
  Machine machine(home);
  Side side(home);
  auto config = side.config(machine);
  const auto description = describe_agent(config.agent);
  REQUIRE(description);
  const auto cache = home.path / "cache";
  const auto quick = packed_agent(config.agent, *description, cache);
  REQUIRE(quick);
  finish_packing();
  const auto kept = packed_agent(config.agent, *description, cache);
  REQUIRE(kept);
  CHECK(kept->size() < quick->size());
  // Damaged: made again.
  const auto file = cache / ("flotilla-agent-" + description->sha256 + ".zst");
  fs::resize_file(file, kept->size() / 2);
  const auto again = packed_agent(config.agent, *description, cache);
  REQUIRE(again);
  CHECK(again->size() == quick->size());
  finish_packing();
}

TEST_CASE("an agent that was damaged there is sent again") {
  Home home;
  Machine machine(home);
  Side side(home);
  auto config = side.config(machine);
  const auto file = machine.scratch() / "flotilla" / ("flotilla-agent-" + describe_agent(config.agent)->sha256);
  fs::create_directories(file.parent_path());
  std::ofstream(file) << "#!/bin/sh\nexit 1\n";
  fs::permissions(file, fs::perms::owner_all);
  side.connect(config);
  REQUIRE(side.until_connected());
  CHECK(side.saw(v1::HUB_UPLOADING));
  CHECK(fs::file_size(file) == describe_agent(config.agent)->size);
}

TEST_CASE("the agent of this build, packed, goes to a hub of its own and back") {
  Home home;
  Machine machine(home);
  Side side(home);
  auto config = side.config(machine);
  config.agent = FLOTILLA_AGENT;
  config.hub_id = "hub-" + random_hex(4);
  const auto ca = tls::make_ca(config.instance, wall_ms());
  REQUIRE(ca);
  const auto hub = tls::issue_intermediate(*ca, config.hub_id, wall_ms());
  REQUIRE(hub);
  config.tls_ca = ca->chain;
  config.tls_chain = hub->chain;
  config.tls_key = hub->key;
  const auto begin = std::chrono::steady_clock::now();
  side.connect(config);
  REQUIRE(side.until_connected());
  const auto cold = std::chrono::steady_clock::now() - begin;
  CHECK(side.hello->hub().hub_id() == config.hub_id);
  // The hub outlives its connection, and is found again.
  const auto pid = side.hello->pid();
  side.connection.reset();
  const auto second = std::chrono::steady_clock::now();
  side.connect(config);
  REQUIRE(side.until_connected());
  const auto warm = std::chrono::steady_clock::now() - second;
  CHECK(side.hello->pid() == pid);
  WARN("agent of this build: cold " << std::chrono::duration_cast<std::chrono::milliseconds>(cold).count() << " ms, again "
                                    << std::chrono::duration_cast<std::chrono::milliseconds>(warm).count() << " ms");
  side.end_hub();
  CHECK(side.ended);
  CHECK(side.until([&] { return kill(static_cast<pid_t>(pid), 0) != 0; }, 15s));
  finish_packing();
}

TEST_CASE("a hub that does not start is explained") {
  Home home;
  Machine machine(home);
  Side side(home);
  const auto fail_with = [&](const std::string& fake) {
    auto config = side.config(machine);
    (*config.spec.mutable_env())["FAKE"] = fake;
    side.connect(config);
    REQUIRE(side.until([&] { return side.ended.has_value(); }));
    CHECK_FALSE(side.hello);
    CHECK(side.ends == 1);
    return *side.ended;
  };
  auto error = fail_with("refuse");
  CHECK(error.code == Code::resource_exhausted);
  CHECK_THAT(error.message, Catch::Contains("the hub has no room"));
  CHECK(error.hint == "make some");
  error = fail_with("crash");
  CHECK_THAT(error.message, Catch::Contains("terminate called"));
  CHECK_THAT(error.message, Catch::Contains("signal ABRT") || Catch::Contains("134"));  // as the shell there passes it on
  error = fail_with("stranger");
  CHECK(error.code == Code::permission_denied);
}

TEST_CASE("a place without room is named, and the next one is taken") {
  Home home;
  Machine machine(home, "ForceCommand ulimit -f 4096; eval \"$SSH_ORIGINAL_COMMAND\"\n");  // of 512 bytes: 2 MiB
  Side side(home);
  auto config = side.config(machine);
  side.connect(config);
  REQUIRE(side.until([&] { return side.ended.has_value(); }, 60s));
  CHECK(side.ended->code == Code::failed_precondition);
  REQUIRE(side.ended->faults.size() >= 2);
  CHECK_THAT(side.ended->faults[0], Catch::Contains(machine.scratch().string()));
  CHECK_THAT(side.ended->faults[0], Catch::Contains("not be this large"));
  CHECK(files_in(machine.scratch()).empty());
}

TEST_CASE("an account that runs no commands is told as what it is") {
  Home home;
  Machine machine(home, "ForceCommand echo 'This account is for file transfer only.'\n");
  Side side(home);
  side.connect(side.config(machine));
  REQUIRE(side.until([&] { return side.ended.has_value(); }));
  CHECK_THAT(side.ended->message, Catch::Contains("no POSIX shell"));
  CHECK_THAT(side.ended->message, Catch::Contains("file transfer only"));
}

TEST_CASE("a dying connection is told at once, with its cause, and leaves nothing") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      Machine machine(home);
      Side side(home);
      auto config = side.config(machine, transport);
      side.connect(config);
      REQUIRE(side.until_connected());
      const auto begin = std::chrono::steady_clock::now();
      machine.end_connections();
      REQUIRE(side.until([&] { return side.ended.has_value(); }));
      CHECK(std::chrono::steady_clock::now() - begin < 2s);
      CHECK(side.ended->code == Code::unavailable);
      CHECK(side.ended->retry == Retry::yes);
      CHECK_THAT(side.ended->message, Catch::Contains("hpc1"));
      CHECK_FALSE(side.connection->connected());
      // The same again after it.
      side.connect(config);
      REQUIRE(side.until_connected());
      CHECK(ping_pong(side));
    }
  }
}

TEST_CASE("threads and descriptors come back, wherever a connection is dropped") {
  Home home;
  Machine machine(home);
  for (const std::string transport : {"libssh", "openssh"}) {
    Side side(home);
    auto config = side.config(machine, transport);
    side.connect(config);  // what is made once for all
    REQUIRE(side.until_connected());
    side.end_hub();
    side.connection.reset();
    finish_packing();
    side.until([] { return false; }, 300ms);  // gRPC closes what it had
    const int fds = open_fds(), before = threads();
    for (const auto state : {v1::HUB_CONNECTING, v1::HUB_AUTHENTICATING, v1::HUB_STARTING, v1::HUB_CONNECTED}) {
      side.connect(config);
      side.until([&] { return side.saw(state) || side.ended; });
      const auto begin = std::chrono::steady_clock::now();
      side.connection.reset();
      CHECK(std::chrono::steady_clock::now() - begin < 1s);
    }
    CHECK(side.until([&] { return open_fds() <= fds && threads() <= before; }, 10s));
    CHECK(side.until([&] { return machine.connections().empty(); }, 10s));
    CHECK(files_in(home.path / "run").empty());
  }
}

TEST_CASE("what cannot be reached is told with its reason") {
  Home home;
  Machine machine(home);
  Side side(home);
  const auto fail_at = [&](const std::string& location, const std::string& transport) {
    auto config = side.config(machine, transport);
    config.spec.set_location(location);
    side.connect(config);
    REQUIRE(side.until([&] { return side.ended.has_value(); }));
    return *side.ended;
  };
  for (const std::string transport : {"libssh", "openssh"}) {
    INFO(transport);
    auto error = fail_at("root@no-such-host.invalid", transport);
    CHECK(error.code == Code::unavailable);
    CHECK_THAT(error.message, Catch::Contains("no-such-host.invalid"));
    const auto port = machine.port();
    Machine other(home);
    const auto closed = other.port();
    other.stop();
    error = fail_at("root@127.0.0.1:" + std::to_string(closed), transport);
    CHECK(error.code == Code::unavailable);
    CHECK_THAT(error.message, Catch::Contains("refused"));
    CHECK(error.retry == Retry::yes);
    CHECK(port != closed);
  }
  CHECK(fail_at("root@127.0.0.1:x", "libssh").code == Code::invalid_argument);
  CHECK(fail_at("root@127.0.0.1", "carrier-pigeon").code == Code::invalid_argument);
}

TEST_CASE("something that does not speak ssh is told as that") {
  Home home;
  Machine machine(home);
  Side side(home);
  // A server that hangs up.
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  unique_fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  socklen_t size = sizeof address;
  REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(listener.get(), 4) == 0);
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size);
  auto config = side.config(machine);
  config.spec.set_location("root@127.0.0.1:" + std::to_string(ntohs(address.sin_port)));
  side.connect(config);
  unique_fd taken(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const char hello[] = "220 mail.example ESMTP\r\n";
  REQUIRE(send(taken.get(), hello, sizeof hello - 1, MSG_NOSIGNAL) > 0);
  taken.reset();
  REQUIRE(side.until([&] { return side.ended.has_value(); }));
  CHECK(side.ended->code == Code::unavailable);
  CHECK_THAT(side.ended->message, Catch::Contains("ssh"));
}

TEST_CASE("a resource behind a gateway is reached through the gateway's connection") {
  const auto restriction = GENERATE(as<std::string>{}, "", "AllowTcpForwarding no\n");
  const auto transports = GENERATE(std::make_pair("libssh", "libssh"), std::make_pair("libssh", "openssh"),
                                   std::make_pair("openssh", "libssh"), std::make_pair("openssh", "openssh"));
  CAPTURE(restriction, transports.first, transports.second);
  Home home;
  Machine gateway(home, restriction), inner(home);
  Side first(home), second(home);
  first.connect(first.config(gateway, transports.first));
  REQUIRE(first.until_connected());
  second.dial_gateway = [&](const std::string& host, int port, std::function<void(Result<unique_fd>)> done) {
    first.connection->open_tcp(host, port, std::move(done));
  };
  auto config = second.config(inner, transports.second);
  config.spec.set_gateway("hpc1");
  config.spec.set_name("inner");
  const auto both = [&](const std::function<bool()>& done) {
    return second.until([&] {
      first.until([] { return true; });
      first.io.restart();
      first.io.poll();
      return done();
    });
  };
  second.connect(config);
  both([&] { return second.hello || second.ended; });
  if (second.ended) UNSCOPED_INFO(second.ended->text());
  REQUIRE(second.hello);
  v1::Frame frame;
  frame.mutable_ping()->set_id(7);
  second.connection->send(frame);
  CHECK(both([&] { return !second.frames.empty() && second.frames.back().pong().id() == 7; }));

  // Where nothing listens: told, not hung.
  std::optional<Result<unique_fd>> result;
  Machine closed(home);
  closed.stop();
  first.connection->open_tcp("127.0.0.1", closed.port(), [&](Result<unique_fd> fd) { result.emplace(std::move(fd)); });
  if (restriction.empty()) {
    REQUIRE(first.until([&] { return result.has_value(); }));
    CHECK_FALSE(*result);
  }
  // The gateway's end is the end of what goes through it.
  gateway.end_connections();
  CHECK(both([&] { return second.ended.has_value(); }));
  inner.end_connections();
}
