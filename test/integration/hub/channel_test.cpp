// Channels through the real hub: by a passed socket beside it, by a TLS relay to a node.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <future>
#include <stdexcept>
#include <thread>

#include "hub/core/node_script.hpp"
#include "hub/hub_start.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"
#include "proto/channel/hand_over.hpp"
#include "proto/channel/opening.hpp"
#include "proto/tls/stream.hpp"
#include "test/integration/hub/fake_daemon.hpp"

using namespace flotilla;
using namespace flotilla::test;

namespace {

struct Opened {
  std::string ticket;
  std::string header;
};

// Announces a channel and opens the daemon's connection for it.
Opened expect(FakeDaemon& daemon, const std::string& peer, std::uint64_t channel) {
  Opened out;
  out.ticket = random_bytes(channel::ticket_bytes);
  v1::Frame frame;
  auto* order = frame.mutable_expect_channel();
  order->set_channel(channel);
  order->set_epoch(1);
  order->set_ticket(out.ticket);
  order->set_peer(peer);
  daemon.send(frame);
  channel::Opening opening;
  opening.channel = channel;
  opening.epoch = 1;
  std::copy(out.ticket.begin(), out.ticket.end(), opening.ticket.begin());
  const auto bytes = channel::format_opening(opening);
  out.header.assign(bytes.data(), bytes.size());
  return out;
}

std::string read_bytes(int fd, std::size_t size, std::chrono::milliseconds limit = 20s) {
  std::string got(size, '\0');
  if (!hub::read_exactly(fd, got.data(), size, std::chrono::steady_clock::now() + limit)) return {};
  return got;
}

bool ended(int fd) {
  char byte;
  pollfd wait{fd, POLLIN, 0};
  return poll(&wait, 1, 15'000) == 1 && recv(fd, &byte, 1, 0) <= 0;
}

// A pilot's node that is this test: registers over TLS with a certificate of the hub's CA, as a real one would.
struct FakeNode {
  FakeNode(FakeDaemon& daemon, std::uint64_t pilot, const std::string& address)
      : identity(*tls::issue_pilot(daemon.hub, daemon.ca.chain, PilotId{pilot}, 0, wall_ms())) {
    link::Handlers handlers;
    handlers.on_frame = [this](const link::LinkPtr&, v1::Frame frame) {
      if (frame.has_welcome()) welcome = frame.welcome();
      if (frame.has_expect_channel()) expected.push_back(frame.expect_channel());
    };
    handlers.on_closed = [this](const link::LinkPtr&, const std::string&) { closed = true; };
    link = link::connect_tls(daemon.io, address, "h1.flotilla", identity, std::move(handlers), link::keepalive_cluster);
    v1::Frame frame;
    auto* hello = frame.mutable_hello();
    hello->set_protocol(protocol_version);
    hello->set_protocol_min(protocol_minimum);
    hello->set_instance(daemon.instance);
    hello->mutable_pilot()->set_pilot(pilot);
    hello->mutable_pilot()->set_incarnation("12345678");
    link->send(frame);
  }
  ~FakeNode() {
    link->detach();
    link->abort();
  }
  link::TlsIdentity identity;
  link::LinkPtr link;
  std::optional<v1::Welcome> welcome;
  std::vector<v1::ExpectChannel> expected;
  bool closed = false;
};

unique_fd dial(const std::string& address) {
  const auto parsed = hub::parse_address(address);
  REQUIRE(parsed);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(parsed->second));
  REQUIRE(inet_pton(AF_INET, parsed->first.c_str(), &to.sin_addr) == 1);
  unique_fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

tls::Stream dial_tls(const link::TlsIdentity& identity, const std::string& address) {
  auto context = tls::make_context(tls::Role::client, identity);
  REQUIRE(context);
  auto stream = tls::Stream::make(*context, tls::Role::client, dial(address), "h1.flotilla");
  REQUIRE(stream);
  REQUIRE(stream->handshake_within(5s));
  return std::move(*stream);
}

// In place of REQUIRE where a thread beside the test's runs it: its future throws.
void need(bool holds) {
  if (!holds) throw std::runtime_error("the TLS stream broke, or nothing came in time");
}

void write_tls(tls::Stream& stream, std::string_view data) {
  while (!data.empty()) {
    const auto out = stream.write(data.data(), data.size());
    if (out.step == tls::Step::done) {
      data.remove_prefix(out.bytes);
      continue;
    }
    need(out.step == tls::Step::want_read || out.step == tls::Step::want_write);
    pollfd wait{stream.fd(), static_cast<short>(out.step == tls::Step::want_read ? POLLIN : POLLOUT), 0};
    need(poll(&wait, 1, 20'000) == 1);
  }
}
// Up to `size` bytes; empty at the end.
std::size_t read_tls(tls::Stream& stream, char* to, std::size_t size) {
  for (;;) {
    const auto in = stream.read(to, size);
    if (in.step == tls::Step::done) return in.bytes;
    if (in.step != tls::Step::want_read) return 0;
    pollfd wait{stream.fd(), POLLIN, 0};
    need(poll(&wait, 1, 20'000) == 1);
  }
}

// A hub with a listening TLS port (a real pilot was started on a node), and a launch whose node this test plays.
struct Site {
  Site() {
    daemon.link_up();
    daemon.launch(7, 1, {"node1"});
    REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
    daemon.launch(8, 1, {"silent1"});  // its start never says anything: we are its node
    REQUIRE(daemon.run_until([&] { return daemon.report(8, 0, v1::LaunchReport::STARTING); }));
    daemon.cut();
    daemon.link_up();
    // Its answer comes after it has taken up the new link.
    v1::Frame ping;
    ping.mutable_ping()->set_id(1);
    daemon.send(ping);
    REQUIRE(daemon.run_until([&] { return daemon.find([](const v1::Frame& f) { return f.has_pong(); }); }));
    address = daemon.hello.hub().address();
    REQUIRE_FALSE(address.empty());
  }
  ~Site() {
    daemon.end_hub();
    CHECK(daemon.run_until([&] { return daemon.processes().empty(); }));
  }
  FakeDaemon daemon;
  std::string address;
};

}  // namespace

TEST_CASE("a channel to a pilot beside the hub: the pilot gets the daemon's own socket, with the header") {
  FakeDaemon daemon;
  daemon.link_up();
  daemon.launch(7);
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
  // The pilot has no such channel and says so in its answer: header and socket have reached it, and its bytes come back.
  const auto opened = expect(daemon, "7.0", 99);
  unique_fd socket(*channel::connect_unix(daemon.channel_socket));
  REQUIRE(hub::write_all(socket.get(), opened.header));
  std::string answer;
  auto reading = std::async(std::launch::async, [&] { answer = read_bytes(socket.get(), channel::opening_bytes); });
  daemon.run_until([&] { return reading.wait_for(0s) == std::future_status::ready; });
  const auto parsed = channel::parse_opening(answer);
  REQUIRE(parsed);
  CHECK(parsed->channel == 99);
  CHECK(parsed->flags == (channel::opening_answer | channel::opening_refused));

  SECTION("a ticket is good once") {
    unique_fd again(*channel::connect_unix(daemon.channel_socket));
    REQUIRE(hub::write_all(again.get(), opened.header));
    pollfd wait{again.get(), POLLIN, 0};
    CHECK(poll(&wait, 1, 500) == 0);  // it is not passed on
  }
  SECTION("what is no header is closed") {
    unique_fd wrong(*channel::connect_unix(daemon.channel_socket));
    REQUIRE(hub::write_all(wrong.get(), std::string(channel::opening_bytes, 'x')));
    CHECK(ended(wrong.get()));
  }
  daemon.end_hub();
  CHECK(daemon.run_until([&] { return daemon.processes().empty(); }));
}

TEST_CASE("a socket that the pilot does not take is refused, with the cause") {
  FakeDaemon daemon;
  daemon.link_up();
  daemon.launch(7);
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
  const auto socket_file = daemon.channel_socket.parent_path() / "p7.0" / "channel.sock";
  const auto plain = daemon.dir / "plain";
  REQUIRE(write_file(plain, ""));
  std::filesystem::rename(plain, socket_file);  // there is one; nobody listens on it
  const auto opened = expect(daemon, "7.0", 99);
  unique_fd socket(*channel::connect_unix(daemon.channel_socket));
  REQUIRE(hub::write_all(socket.get(), opened.header));
  const auto refused = [&] { return daemon.find([](const v1::Frame& f) { return f.has_channel_refused(); }); };
  REQUIRE(daemon.run_until([&] { return refused(); }));
  CHECK(refused()->peer() == "7.0");
  CHECK(refused()->channel_refused().channel() == 99);
  CHECK(refused()->channel_refused().epoch() == 1);
  CHECK(refused()->channel_refused().cause().find(socket_file.string()) != std::string::npos);
  daemon.end_hub();
  CHECK(daemon.run_until([&] { return daemon.processes().empty(); }));
}

TEST_CASE("who comes without a good certificate, or for another pilot, is not let in") {
  Site site;
  SECTION("a live pilot of this hub") {
    FakeNode node(site.daemon, 8, site.address);
    REQUIRE(site.daemon.run_until([&] { return node.welcome.has_value(); }));
    CHECK(node.welcome->error().empty());
  }
  SECTION("a pilot that this hub does not know") {
    FakeNode node(site.daemon, 1234, site.address);
    CHECK(site.daemon.run_until([&] { return node.closed; }));
    CHECK_FALSE(node.welcome);
  }
  SECTION("another instance") {
    FakeDaemon stranger;
    stranger.instance = site.daemon.instance;
    FakeNode node(stranger, 8, site.address);
    CHECK(stranger.run_until([&] { return node.closed; }));
    CHECK_FALSE(node.welcome);
  }
}

TEST_CASE("a channel to a node: relayed over TLS both ways, 100 MB and calls") {
  Site site;
  FakeNode node(site.daemon, 8, site.address);
  REQUIRE(site.daemon.run_until([&] { return node.welcome.has_value(); }));
  const auto opened = expect(site.daemon, "8.0", 5);
  unique_fd socket(*channel::connect_unix(site.daemon.channel_socket));
  REQUIRE(hub::write_all(socket.get(), opened.header + "early"));
  REQUIRE(site.daemon.run_until([&] { return !node.expected.empty(); }));
  CHECK(node.expected[0].ticket() == opened.ticket);
  REQUIRE_FALSE(node.expected[0].dial().empty());

  SECTION("a wrong ticket is not joined") {
    auto stream = dial_tls(node.identity, node.expected[0].dial());
    write_tls(stream, std::string(channel::ticket_bytes, 't'));
    char byte;
    CHECK(read_tls(stream, &byte, 1) == 0);
  }
  SECTION("the ticket of another pilot's channel is not good") {
    const auto other = *tls::issue_pilot(site.daemon.hub, site.daemon.ca.chain, PilotId{7}, 0, wall_ms());
    auto stream = dial_tls(other, node.expected[0].dial());
    write_tls(stream, opened.ticket);
    char byte;
    CHECK(read_tls(stream, &byte, 1) == 0);
  }
  SECTION("the right one") {
    auto stream = dial_tls(node.identity, node.expected[0].dial());
    write_tls(stream, opened.ticket);
    std::string head(channel::opening_bytes + 5, '\0');
    for (std::size_t at = 0; at < head.size();) {
      const std::size_t n = read_tls(stream, head.data() + at, head.size() - at);
      REQUIRE(n > 0);
      at += n;
    }
    CHECK(head == opened.header + "early");

    // Bulk, both directions at once.
    constexpr std::size_t bulk = 100u << 20;
    const std::string chunk = random_bytes(1 << 20);
    const auto begin = std::chrono::steady_clock::now();
    auto up = std::async(std::launch::async, [&] {
      for (std::size_t sent = 0; sent < bulk; sent += chunk.size())
        if (!hub::write_all(socket.get(), chunk)) return false;
      return true;
    });
    std::vector<char> buffer(256 << 10);
    std::size_t got = 0;
    bool same = true;
    while (got < bulk) {
      const std::size_t n = read_tls(stream, buffer.data(), buffer.size());
      REQUIRE(n > 0);
      for (std::size_t i = 0; i < n;) {
        const std::size_t in_chunk = (got + i) % chunk.size();
        const std::size_t part = std::min(n - i, chunk.size() - in_chunk);
        same = same && std::equal(buffer.begin() + static_cast<long>(i), buffer.begin() + static_cast<long>(i + part),
                                  chunk.begin() + static_cast<long>(in_chunk));
        i += part;
      }
      got += n;
    }
    CHECK(up.get());
    CHECK(same);
    const double up_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const auto back = std::chrono::steady_clock::now();
    auto down = std::async(std::launch::async, [&] {
      std::size_t size = 0;
      std::vector<char> into(256 << 10);
      while (size < bulk) {
        const ssize_t n = read(socket.get(), into.data(), into.size());
        if (n <= 0) break;
        size += static_cast<std::size_t>(n);
      }
      return size;
    });
    for (std::size_t sent = 0; sent < bulk; sent += chunk.size()) write_tls(stream, chunk);
    CHECK(down.get() == bulk);
    const double down_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - back).count();

    // Calls: 64 bytes there, 64 back.
    constexpr int calls = 2000;
    auto worker = std::async(std::launch::async, [&] {
      char message[64];
      for (int i = 0; i < calls; ++i) {
        for (std::size_t at = 0; at < sizeof message;) {
          const std::size_t n = read_tls(stream, message + at, sizeof message - at);
          if (n == 0) return false;
          at += n;
        }
        write_tls(stream, {message, sizeof message});
      }
      return true;
    });
    std::vector<double> times;
    char message[64] = {};
    for (int i = 0; i < calls; ++i) {
      const auto start = std::chrono::steady_clock::now();
      REQUIRE(write(socket.get(), message, sizeof message) == sizeof message);
      for (std::size_t at = 0; at < sizeof message;) {
        const ssize_t n = read(socket.get(), message + at, sizeof message - at);
        REQUIRE(n > 0);
        at += static_cast<std::size_t>(n);
      }
      times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    CHECK(worker.get());
    std::sort(times.begin(), times.end());
    WARN("relay to a node: " << bulk / up_s / 1e6 << " MB/s to it, " << bulk / down_s / 1e6 << " MB/s from it; call p50 "
                             << times[calls / 2] << " us, p99 " << times[calls * 99 / 100] << " us");

    // One direction ends, the other goes on.
    shutdown(socket.get(), SHUT_WR);
    char byte;
    CHECK(read_tls(stream, &byte, 1) == 0);
    write_tls(stream, "last");
    CHECK(read_bytes(socket.get(), 4) == "last");
    CHECK(stream.finish() == tls::Step::done);
    CHECK(ended(socket.get()));
  }
}

TEST_CASE("a channel to a real pilot on a node: it dials the hub, and its answer comes back") {
  Site site;
  REQUIRE(site.daemon.run_until([&] { return site.daemon.joined("7.0", 1); }));
  const auto opened = expect(site.daemon, "7.0", 99);
  unique_fd socket(*channel::connect_unix(site.daemon.channel_socket));
  REQUIRE(hub::write_all(socket.get(), opened.header));
  auto reading = std::async(std::launch::async, [&] { return read_bytes(socket.get(), channel::opening_bytes); });
  site.daemon.run_until([&] { return reading.wait_for(0s) == std::future_status::ready; }, 25s);
  const auto parsed = channel::parse_opening(reading.get());
  REQUIRE(parsed);
  CHECK(parsed->channel == 99);
  CHECK(parsed->flags == (channel::opening_answer | channel::opening_refused));
  CHECK(ended(socket.get()));
}

TEST_CASE("dial joins stdin and stdout to a port, and half-closes") {
  unique_fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in own{};
  own.sin_family = AF_INET;
  own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof own;
  REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&own), size) == 0);
  REQUIRE(listen(listener.get(), 1) == 0);
  REQUIRE(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&own), &size) == 0);
  auto in = *hub::make_pipe();
  auto out = *hub::make_pipe();
  hub::Spawn what;
  what.program = FLOTILLA_AGENT;
  what.argv = {"flotilla-agent", "dial", "localhost", std::to_string(ntohs(own.sin_port))};
  what.in = in.read.get();
  what.out = out.write.get();
  auto child = *hub::spawn(what);
  in.read.reset();
  out.write.reset();
  unique_fd accepted(accept(listener.get(), nullptr, nullptr));
  REQUIRE(accepted);
  const std::string bulk = random_bytes(3 << 20);
  auto writer = std::async(std::launch::async, [&] {
    const bool ok = bool(hub::write_all(in.write.get(), bulk));
    in.write.reset();
    return ok;
  });
  CHECK(read_bytes(accepted.get(), bulk.size()) == bulk);
  CHECK(writer.get());
  CHECK(ended(accepted.get()));
  auto answer = std::async(std::launch::async, [&] {
    const bool ok = bool(hub::write_all(accepted.get(), bulk));
    accepted.reset();
    return ok;
  });
  CHECK(read_bytes(out.read.get(), bulk.size()) == bulk);
  CHECK(answer.get());
  pollfd wait{child.pidfd.get(), POLLIN, 0};
  REQUIRE(poll(&wait, 1, 10'000) == 1);
  CHECK(hub::reap(child).code == 0);

  what.argv = {"flotilla-agent", "dial", "localhost", "1"};
  what.in = what.out = -1;
  auto refused = *hub::spawn(what);
  wait.fd = refused.pidfd.get();
  REQUIRE(poll(&wait, 1, 10'000) == 1);
  CHECK(hub::reap(refused).code == 1);
}
