#include <sys/socket.h>

#include <boost/asio/io_context.hpp>
#include <catch2/catch.hpp>
#include <future>
#include <thread>

#include "proto/base/clock.hpp"
#include "proto/base/random.hpp"
#include "proto/link/link.hpp"
#include "proto/tls/certificate.hpp"
#include "proto/tls/stream.hpp"

using namespace flotilla;
using namespace std::chrono_literals;

namespace {

constexpr std::int64_t year_ms = 365LL * 24 * 3600 * 1000;

template <class T>
T must(Result<T> result) {
  if (!result) FAIL(result.error().text());
  return std::move(*result);
}

struct Trust {
  explicit Trust(const std::string& hub_id = "h1", std::int64_t now_ms = wall_ms())
      : ca(must(tls::make_ca(std::string(16, 'i'), now_ms))), hub(must(tls::issue_intermediate(ca, hub_id, now_ms))),
        server(must(tls::issue_server(hub, ca.chain, hub_id, now_ms))) {}
  link::TlsIdentity pilot(std::uint64_t id, std::int64_t lifetime_ms = 0, std::int64_t now_ms = wall_ms()) const {
    return must(tls::issue_pilot(hub, ca.chain, PilotId{id}, lifetime_ms, now_ms));
  }
  tls::Authority ca, hub;
  link::TlsIdentity server;
};

// What the server sees of one attempt to connect: the peer's URI with "open", or how the client's link ended.
struct Outcome {
  bool open = false;
  std::string uri, client_cause;
};

Outcome try_link(const link::TlsIdentity& server_identity, const link::TlsIdentity& client_identity, const std::string& name) {
  boost::asio::io_context io;
  Outcome outcome;
  bool done = false;
  link::Server server(io,
                      {[&](const link::LinkPtr& l) {
                         outcome.open = true;
                         outcome.uri = l->peer_uri();
                         done = true;
                       },
                       [](const link::LinkPtr&, v1::Frame) {}, [](const link::LinkPtr&, const std::string&) {}},
                      link::keepalive_cluster);
  const int port = must(server.listen_tls("127.0.0.1:0", server_identity));
  auto client = link::connect_tls(io, "127.0.0.1:" + std::to_string(port), name, client_identity,
                                  {nullptr, [](const link::LinkPtr&, v1::Frame) {},
                                   [&](const link::LinkPtr&, const std::string& cause) {
                                     outcome.client_cause = cause;
                                     done = true;
                                   }},
                                  link::keepalive_cluster);
  v1::Frame hello;
  hello.mutable_hello()->set_protocol(1);
  client->send(hello);
  const auto limit = std::chrono::steady_clock::now() + 20s;
  while (!done && std::chrono::steady_clock::now() < limit) {
    io.restart();
    io.run_one_for(100ms);
  }
  REQUIRE(done);
  client->detach();
  client->abort();
  io.restart();
  io.run_for(10ms);
  return outcome;
}

struct StreamPair {
  StreamPair() {
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    server.reset(fds[0]);
    client.reset(fds[1]);
  }
  unique_fd server, client;
};

// The two handshakes, at the same time.
std::pair<Status, Status> shake(tls::Stream& server, tls::Stream& client) {
  auto other = std::async(std::launch::async, [&] { return server.handshake_within(5s); });
  Status mine = client.handshake_within(5s);
  // In TLS 1.3 the client learns of a refusal only with its first read.
  if (mine) {
    char byte;
    if (client.read(&byte, 1).step == tls::Step::failed) mine = fail(Code::authentication_failed, client.cause());
  }
  Status theirs = other.get();
  return {theirs, mine};
}

}  // namespace

TEST_CASE("names in certificates are made and read alike, and nothing else is read") {
  CHECK(tls::server_name("h1") == "h1.flotilla");
  CHECK(tls::format_pilot_uri(PilotId{7}) == "flotilla:pilot/7");
  CHECK(must(tls::parse_pilot_uri("flotilla:pilot/18446744073709551615")).value == 18446744073709551615u);
  for (const char* wrong : {"", "flotilla:pilot/", "flotilla:pilot/0", "flotilla:pilot/07", "flotilla:pilot/7/", "flotilla:pilot/-7",
                            "flotilla:pilot/18446744073709551616", "http://x/flotilla:pilot/7", "Flotilla:pilot/7", "flotilla:pilot/7 "}) {
    INFO(wrong);
    CHECK_FALSE(tls::parse_pilot_uri(wrong));
  }
}

TEST_CASE("a hub's id that cannot stand in a DNS name is refused") {
  const auto ca = must(tls::make_ca(std::string(16, 'i'), wall_ms()));
  for (const auto& wrong : std::vector<std::string>{"", "Hub", "a.b", "a,DNS:other", "-a", "a-", std::string(41, 'a')}) {
    INFO(wrong);
    auto made = tls::issue_intermediate(ca, wrong, wall_ms());
    REQUIRE_FALSE(made);
    CHECK(made.error().code == Code::invalid_argument);
  }
  CHECK(tls::issue_intermediate(ca, std::string(40, 'a'), wall_ms()));
}

TEST_CASE("what is issued does not outlive what vouches for it") {
  const std::int64_t now = wall_ms();
  Trust trust("h1", now);
  const auto hub_end = must(tls::valid_until_ms(trust.hub.chain));
  CHECK(hub_end > now + year_ms - 1000);
  CHECK(must(tls::valid_until_ms(trust.pilot(1, 10 * year_ms).chain)) == hub_end);
  const auto hour = must(tls::valid_until_ms(trust.pilot(1, 3600'000).chain));
  CHECK(hour > now + 3600'000);
  CHECK(hour < now + 3 * 24 * 3600'000LL);
}

TEST_CASE("keys and certificates of different issuers are not mixed up") {
  Trust one, other;
  tls::Authority mixed{one.hub.chain, other.hub.key};
  auto made = tls::issue_pilot(mixed, one.ca.chain, PilotId{1}, 0, wall_ms());
  REQUIRE_FALSE(made);
  CHECK(made.error().code == Code::invalid_argument);
  CHECK_FALSE(tls::issue_intermediate({"nonsense", "nonsense"}, "h1", wall_ms()));
}

TEST_CASE("a pilot's link is admitted, and the hub sees which pilot it is") {
  Trust trust;
  const auto outcome = try_link(trust.server, trust.pilot(7), "h1.flotilla");
  INFO(outcome.client_cause);
  CHECK(outcome.open);
  CHECK(must(tls::parse_pilot_uri(outcome.uri)).value == 7);
}

TEST_CASE("a pilot of an earlier intermediate certificate of the same hub is admitted") {
  Trust trust;
  const auto earlier = trust.pilot(7);
  const auto renewed = must(tls::issue_intermediate(trust.ca, "h1", wall_ms()));
  const auto server = must(tls::issue_server(renewed, trust.ca.chain, "h1", wall_ms()));
  CHECK(try_link(server, earlier, "h1.flotilla").open);
}

TEST_CASE("links that must not come about") {
  Trust trust, stranger;
  SECTION("a pilot of another instance") {
    auto identity = stranger.pilot(7);
    identity.ca = trust.ca.chain;  // it trusts the hub, the hub not it
    CHECK_FALSE(try_link(trust.server, identity, "h1.flotilla").open);
  }
  SECTION("a hub of another instance") { CHECK_FALSE(try_link(stranger.server, trust.pilot(7), "h1.flotilla").open); }
  SECTION("another hub of the same instance") { CHECK_FALSE(try_link(trust.server, trust.pilot(7), "h2.flotilla").open); }
  SECTION("a pilot whose certificate has expired") {
    const auto old = trust.pilot(7, 3600'000, wall_ms() - 10LL * 24 * 3600 * 1000);
    CHECK_FALSE(try_link(trust.server, old, "h1.flotilla").open);
  }
  SECTION("a pilot that poses as the hub") { CHECK_FALSE(try_link(trust.pilot(7), trust.pilot(8), "h1.flotilla").open); }
  SECTION("a hub that names itself like another one") {
    // The intermediate CA of h1 is constrained to its own name.
    const auto forged = must(tls::issue_server(trust.hub, trust.ca.chain, "h2", wall_ms()));
    CHECK_FALSE(try_link(forged, trust.pilot(7), "h2.flotilla").open);
  }
  SECTION("a hub's CA that makes a CA of its own") {
    const auto rogue = must(tls::issue_intermediate(trust.hub, "h2", wall_ms()));
    const tls::Authority chain{rogue.chain + trust.hub.chain, rogue.key};
    CHECK_FALSE(try_link(trust.server, must(tls::issue_pilot(chain, trust.ca.chain, PilotId{7}, 0, wall_ms())), "h1.flotilla").open);
  }
  SECTION("nobody at all") { CHECK_FALSE(try_link(trust.server, {trust.ca.chain, "", ""}, "h1.flotilla").open); }
}

TEST_CASE("a stream carries bytes both ways and half-closes") {
  Trust trust;
  StreamPair pair;
  auto server =
      must(tls::Stream::make(must(tls::make_context(tls::Role::server, trust.server)), tls::Role::server, std::move(pair.server), ""));
  auto client = must(tls::Stream::make(must(tls::make_context(tls::Role::client, trust.pilot(7))), tls::Role::client,
                                       std::move(pair.client), "h1.flotilla"));
  auto [theirs, mine] = shake(server, client);
  REQUIRE(theirs);
  REQUIRE(mine);
  CHECK(server.peer_uri() == "flotilla:pilot/7");

  const std::string text = random_bytes(3'000'000);
  std::string got;
  std::size_t sent = 0;
  bool finished = false;
  std::vector<char> buffer(100'000);
  while (!finished || got.size() < text.size()) {
    if (sent < text.size()) {
      const auto moved = client.write(text.data() + sent, text.size() - sent);
      REQUIRE(moved.step != tls::Step::failed);
      sent += moved.bytes;
    } else if (!finished) {
      finished = client.finish() == tls::Step::done;
    }
    for (;;) {
      const auto moved = server.read(buffer.data(), buffer.size());
      REQUIRE(moved.step != tls::Step::failed);
      if (moved.step != tls::Step::done) break;
      got.append(buffer.data(), moved.bytes);
    }
  }
  CHECK(got == text);
  CHECK(server.read(buffer.data(), 1).step == tls::Step::ended);
  // The other direction is still open.
  REQUIRE(server.write("back", 4).bytes == 4);
  const auto moved = client.read(buffer.data(), buffer.size());
  REQUIRE(moved.step == tls::Step::done);
  CHECK(std::string(buffer.data(), moved.bytes) == "back");
}

TEST_CASE("streams that must not come about") {
  Trust trust, stranger;
  StreamPair pair;
  auto connect = [&](const link::TlsIdentity& server_identity, const link::TlsIdentity& client_identity, const char* name) {
    auto server =
        must(tls::Stream::make(must(tls::make_context(tls::Role::server, server_identity)), tls::Role::server, std::move(pair.server), ""));
    auto client = must(
        tls::Stream::make(must(tls::make_context(tls::Role::client, client_identity)), tls::Role::client, std::move(pair.client), name));
    return shake(server, client);
  };
  SECTION("a pilot of another instance") {
    auto identity = stranger.pilot(7);
    identity.ca = trust.ca.chain;
    CHECK_FALSE(connect(trust.server, identity, "h1.flotilla").first);
  }
  SECTION("a hub of another instance") {
    auto [server, client] = connect(stranger.server, trust.pilot(7), "h1.flotilla");
    CHECK_FALSE(server);
    REQUIRE_FALSE(client);
    CHECK(client.error().message.find("certificate") != std::string::npos);
  }
  SECTION("another hub of the same instance") { CHECK_FALSE(connect(trust.server, trust.pilot(7), "h2.flotilla").second); }
  SECTION("a peer that says nothing") {
    auto server =
        must(tls::Stream::make(must(tls::make_context(tls::Role::server, trust.server)), tls::Role::server, std::move(pair.server), ""));
    auto silent = server.handshake_within(50ms);
    REQUIRE_FALSE(silent);
    CHECK(silent.error().code == Code::timeout);
  }
}
