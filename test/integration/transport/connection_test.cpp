// A connection from nothing to its end: the agent brought there, the hub started, the link, and all gone afterwards.
#include <arpa/inet.h>
#include <signal.h>
#include <sys/mount.h>
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

// The pretender, of at least this size.
fs::path large_agent(const Home& home, std::uintmax_t bytes) {
  const auto file = home.path / "agent";
  fs::copy_file(FLOTILLA_FAKE_AGENT, file, fs::copy_options::overwrite_existing);
  if (fs::file_size(file) < bytes) fs::resize_file(file, bytes);
  return file;
}

class SmallDisk {
 public:
  SmallDisk(fs::path at, std::size_t bytes) : at_(std::move(at)) {
    REQUIRE(mount("tmpfs", at_.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, ("mode=700,size=" + std::to_string(bytes)).c_str()) == 0);
  }
  ~SmallDisk() { umount2(at_.c_str(), MNT_DETACH); }

 private:
  fs::path at_;
};

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
  config.agent = FLOTILLA_FAKE_AGENT;  // nothing packed beside it
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
  config.agent = packed_beside(FLOTILLA_AGENT);
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

TEST_CASE("places that do not take the agent are named, each with its reason") {
  constexpr std::uintmax_t limit_kib = 4096;
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      const auto far_home = home.path / "far";
      // The unit of bash's ulimit -f is 1 KiB.
      Machine machine(home, "ForceCommand ulimit -f " + std::to_string(limit_kib) +
                                "; eval \"$SSH_ORIGINAL_COMMAND\"\nSetEnv HOME=" + far_home.string() + "\n");
      Side side(home);
      auto config = side.config(machine, transport);
      config.agent = large_agent(home, (limit_kib + 1024) << 10);
      side.connect(config);
      REQUIRE(side.until([&] { return side.ended || side.hello; }));
      REQUIRE_FALSE(side.hello);
      INFO(side.ended->text());
      CHECK(side.ended->code == Code::failed_precondition);
      REQUIRE(side.ended->faults.size() >= 3);
      CHECK_THAT(side.ended->faults[0], Catch::Contains(machine.scratch().string()));
      CHECK_THAT(side.ended->faults[1], Catch::Contains(far_home.string()));
      for (const auto& fault : side.ended->faults) CHECK_THAT(fault, Catch::Contains("not be this large"));
      CHECK(files_in(machine.scratch()).empty());
      CHECK(files_in(far_home).empty());
    }
  }
  finish_packing();
}

TEST_CASE("a place without room is left, and the next one is taken in the same conversation") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      const auto far_home = home.path / "far";
      Machine machine(home, "SetEnv HOME=" + far_home.string() + "\n");
      // Room for what unpacks the agent, not for the agent.
      const SmallDisk disk(machine.scratch(), unpacker().size() + (1u << 20));
      Side side(home);
      auto config = side.config(machine, transport);
      config.agent = large_agent(home, 16u << 20);
      side.connect(config);
      REQUIRE(side.until_connected());
      CHECK(ping_pong(side));
      CHECK(files_in(machine.scratch()).empty());
      const auto files = files_in(far_home);
      REQUIRE(files.size() == 1);
      CHECK(files[0].parent_path() == far_home / ".cache" / "flotilla");
      CHECK(machine.connections().size() == 1);
      side.end_hub();
    }
  }
  finish_packing();
}

TEST_CASE("an upload clears away old agents, and nothing that only looks like one") {
  Home home;
  Machine machine(home);
  Side side(home);
  auto config = side.config(machine);
  const auto place = machine.scratch() / "flotilla";
  const auto notes = place / "pilots" / "1.0" / "flotilla-agent-notes.txt", old = place / "flotilla-agent-0123",
             recent = place / "flotilla-agent-4567";
  for (const auto& each : {notes, old, recent}) {
    fs::create_directories(each.parent_path());
    std::ofstream(each) << "text\n";
    if (each != recent) fs::last_write_time(each, fs::file_time_type::clock::now() - 24h * 100);
  }
  fs::permissions(place, fs::perms::owner_all);
  side.connect(config);
  REQUIRE(side.until_connected());
  CHECK(fs::exists(notes));
  CHECK(fs::exists(recent));
  CHECK_FALSE(fs::exists(old));
  side.end_hub();
}

TEST_CASE("a hub that dies is replaced in the login that is there") {
  Home home;
  Machine machine(home);
  Side side(home);
  side.starts_hubs_again = true;
  auto config = side.config(machine);
  side.connect(config);
  REQUIRE(side.until_connected());
  const auto login = machine.connections();
  for (int round = 1; round <= 2; ++round) {
    const auto pid = side.hello->pid();
    kill(static_cast<pid_t>(pid), SIGKILL);
    REQUIRE(side.until([&] { return side.losses == round; }));
    REQUIRE(side.until_connected());
    CHECK(side.hello->pid() != pid);
    CHECK(ping_pong(side));
  }
  CHECK(machine.connections() == login);
  // One that dies again and again is not: whoever tries again takes his time.
  kill(static_cast<pid_t>(side.hello->pid()), SIGKILL);
  REQUIRE(side.until([&] { return side.ended.has_value(); }));
  CHECK(side.ended->retry == Retry::yes);
  CHECK(side.losses == 2);

  // The end that it was told of is the connection's.
  side.connect(config);
  REQUIRE(side.until_connected());
  side.end_hub();
  CHECK(side.ended);
  CHECK(side.losses == 0);
  // So is the end of the login.
  side.connect(config);
  REQUIRE(side.until_connected());
  machine.end_connections();
  REQUIRE(side.until([&] { return side.ended.has_value(); }));
  CHECK(side.losses == 0);
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

TEST_CASE("a program that ~/.ssh/config goes through is heard when it fails") {
  Home home;
  Machine machine(home);
  std::ofstream(home.path / ".ssh" / "config") << "Host hpc1\n  ProxyCommand sh -c 'echo no way through the wall >&2; exit 3'\n";
  Side side(home);
  auto config = side.config(machine);
  config.spec.set_location("root@hpc1");
  side.connect(config);
  REQUIRE(side.until([&] { return side.ended.has_value(); }));
  CHECK_THAT(side.ended->message, Catch::Contains("no way through the wall"));
  CHECK(side.ended->retry == Retry::yes);
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
    const DeafPort closed;
    error = fail_at("root@127.0.0.1:" + std::to_string(closed.port), transport);
    CHECK(error.code == Code::unavailable);
    CHECK_THAT(error.message, Catch::Contains("refused"));
    CHECK(error.retry == Retry::yes);
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

TEST_CASE("who asked a gateway for a way through is told when its connection is dropped") {
  Home home;
  Machine gateway(home);
  Side side(home);
  side.connect(side.config(gateway));
  REQUIRE(side.until_connected());
  std::optional<Result<unique_fd>> result;
  side.connection->open_tcp("127.0.0.1", 1, [&](Result<unique_fd> fd) { result.emplace(std::move(fd)); });
  side.connection.reset();
  REQUIRE(side.until([&] { return result.has_value(); }));
  CHECK_FALSE(*result);
}

TEST_CASE("a resource behind a gateway is reached through the gateway's connection") {
  const auto restriction = GENERATE(as<std::string>{}, "", "AllowTcpForwarding no\n");
  const auto transports = GENERATE(std::make_pair("libssh", "libssh"), std::make_pair("libssh", "openssh"),
                                   std::make_pair("openssh", "libssh"), std::make_pair("openssh", "openssh"));
  CAPTURE(restriction, transports.first, transports.second);
  Home home;
  Machine gateway(home, restriction), inner(home);
  std::optional<Result<unique_fd>> result;  // outlives the connections, which answer as they end
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
  const DeafPort closed;
  first.connection->open_tcp("127.0.0.1", closed.port, [&](Result<unique_fd> fd) { result.emplace(std::move(fd)); });
  if (restriction.empty()) {
    REQUIRE(first.until([&] { return result.has_value(); }));
    CHECK_FALSE(*result);
  }
  // The gateway's end is the end of what goes through it.
  gateway.end_connections();
  CHECK(both([&] { return second.ended.has_value(); }));
  inner.end_connections();
}
