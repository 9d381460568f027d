#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <catch2/catch.hpp>
#include <future>
#include <thread>

#include "hub/channels.hpp"
#include "hub/core/node_script.hpp"
#include "hub/hub_start.hpp"
#include "hub/spawn.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/random.hpp"
#include "proto/tls/certificate.hpp"

using namespace flotilla;
using namespace std::chrono_literals;

namespace {

template <class T>
T must(Result<T> result) {
  if (!result) FAIL(result.error().text());
  return std::move(*result);
}

struct Sockets {
  Sockets() {
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    a.reset(fds[0]);
    b.reset(fds[1]);
  }
  unique_fd a, b;
};

// A relay between our `plain` end and our TLS end, as the hub runs it.
struct Bench {
  Bench() : stop(eventfd(0, EFD_CLOEXEC)) {
    signal(SIGPIPE, SIG_IGN);  // as the hub does
    const auto ca = must(tls::make_ca(std::string(16, 'i'), wall_ms()));
    const auto hub = must(tls::issue_intermediate(ca, "h1", wall_ms()));
    Sockets upper, lower;
    plain = std::move(upper.a);
    auto far = must(tls::Stream::make(must(tls::make_context(tls::Role::server, must(tls::issue_server(hub, ca.chain, "h1", wall_ms())))),
                                      tls::Role::server, std::move(lower.a), ""));
    secure.emplace(
        must(tls::Stream::make(must(tls::make_context(tls::Role::client, must(tls::issue_pilot(hub, ca.chain, PilotId{7}, 0, wall_ms())))),
                               tls::Role::client, std::move(lower.b), "h1.flotilla")));
    auto shaken = std::async(std::launch::async, [&] { return secure->handshake_within(5s); });
    REQUIRE(far.handshake_within(5s));
    REQUIRE(shaken.get());
    outcome = std::async(std::launch::async,
                         [fd = std::make_shared<unique_fd>(std::move(upper.b)), stream = std::make_shared<tls::Stream>(std::move(far)),
                          raw = stop.get()] { return hub::relay(std::move(*fd), std::move(*stream), "HEAD", raw); });
  }
  ~Bench() {
    const std::uint64_t one = 1;
    (void)!write(stop.get(), &one, sizeof one);
  }
  std::string read_secure(std::size_t size) {
    std::string got(size, '\0');
    for (std::size_t at = 0; at < size;) {
      const auto in = secure->read(got.data() + at, size - at);
      if (in.step == tls::Step::done) {
        at += in.bytes;
        continue;
      }
      REQUIRE(in.step == tls::Step::want_read);
      pollfd wait{secure->fd(), POLLIN, 0};
      REQUIRE(poll(&wait, 1, 10'000) == 1);
    }
    return got;
  }
  void write_secure(std::string_view data) {
    while (!data.empty()) {
      const auto out = secure->write(data.data(), data.size());
      if (out.step == tls::Step::done) {
        data.remove_prefix(out.bytes);
        continue;
      }
      REQUIRE(out.step == tls::Step::want_write);
      pollfd wait{secure->fd(), POLLOUT, 0};
      REQUIRE(poll(&wait, 1, 10'000) == 1);
    }
  }

  unique_fd stop, plain;
  std::optional<tls::Stream> secure;
  std::future<std::string> outcome;
};

}  // namespace

TEST_CASE("the first bytes go ahead, then both directions flow, and each ends by itself") {
  Bench bench;
  CHECK(bench.read_secure(4) == "HEAD");
  const std::string up = random_bytes(5'000'000), down = random_bytes(7'000'000);
  auto writer = std::async(std::launch::async, [&] { return bool(hub::write_all(bench.plain.get(), up)); });
  CHECK(bench.read_secure(up.size()) == up);
  CHECK(writer.get());
  shutdown(bench.plain.get(), SHUT_WR);

  auto reader = std::async(std::launch::async, [&] {
    std::string got(down.size(), '\0');
    return hub::read_exactly(bench.plain.get(), got.data(), got.size(), std::chrono::steady_clock::now() + 20s) ? got : std::string();
  });
  bench.write_secure(down);
  CHECK(reader.get() == down);
  char byte;
  pollfd wait{bench.secure->fd(), POLLIN, 0};
  while (bench.secure->read(&byte, 1).step == tls::Step::want_read) REQUIRE(poll(&wait, 1, 10'000) == 1);
  CHECK(bench.secure->read(&byte, 1).step == tls::Step::ended);
  CHECK(bench.secure->finish() == tls::Step::done);
  CHECK(recv(bench.plain.get(), &byte, 1, 0) == 0);
  REQUIRE(bench.outcome.wait_for(10s) == std::future_status::ready);
  CHECK(bench.outcome.get() == "both sides have ended");
}

TEST_CASE("a slow reader stops its writer, and nothing is lost") {
  Bench bench;
  bench.read_secure(4);
  const int small = 64 << 10;
  setsockopt(bench.plain.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  // Nobody reads at the far end: after the buffers are full the writer has to wait.
  std::string chunk(1 << 20, 'x');
  std::size_t written = 0;
  for (;;) {
    pollfd wait{bench.plain.get(), POLLOUT, 0};
    if (poll(&wait, 1, 300) == 0) break;
    const ssize_t n = send(bench.plain.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    REQUIRE(n > 0);
    written += static_cast<std::size_t>(n);
    REQUIRE(written < (64u << 20));
  }
  CHECK(bench.read_secure(written) == std::string(written, 'x'));
}

TEST_CASE("a side that breaks ends the relay, and so does the hub's end") {
  Bench bench;
  bench.read_secure(4);
  SECTION("the daemon's side is closed while the pilot sends") {
    bench.plain.reset();
    std::string chunk(1 << 16, 'x');
    // It may take a few writes until the other side's reset is seen.
    while (bench.outcome.wait_for(1ms) != std::future_status::ready) {
      if (bench.secure->write(chunk.data(), chunk.size()).step == tls::Step::failed) break;
    }
    REQUIRE(bench.outcome.wait_for(10s) == std::future_status::ready);
    CHECK(bench.outcome.get() != "both sides have ended");
  }
  SECTION("the pilot is gone without a word") {
    bench.secure.reset();
    REQUIRE(bench.outcome.wait_for(10s) == std::future_status::ready);
    CHECK(bench.outcome.get().find("pilot's side broke") != std::string::npos);
  }
  SECTION("the hub ends") {
    const std::uint64_t one = 1;
    REQUIRE(write(bench.stop.get(), &one, sizeof one) == sizeof one);
    REQUIRE(bench.outcome.wait_for(10s) == std::future_status::ready);
    CHECK(bench.outcome.get() == "the hub ends");
  }
}

TEST_CASE("HubStart is framed and read alike; anything else is refused") {
  v1::HubStart start;
  start.set_hub_id("h1");
  start.set_tls_key(std::string(5000, 'k'));
  Sockets pair;
  REQUIRE(hub::write_all(pair.a.get(), hub::format_hub_start(start)));
  const auto read = must(hub::read_hub_start(pair.b.get(), 1s));
  CHECK(read.SerializeAsString() == start.SerializeAsString());
  CHECK_FALSE(hub::parse_hub_start_size(std::string("\x00\x00\x00\x00", 4)));
  CHECK_FALSE(hub::parse_hub_start_size(std::string("\x7f\x00\x00\x00", 4)));
  CHECK_FALSE(hub::parse_hub_start("\xff\xff\xff"));
  CHECK_FALSE(hub::read_hub_start(pair.b.get(), 20ms));
  pair.a.reset();
  CHECK_FALSE(hub::read_hub_start(pair.b.get(), 1s));
  Error error{Code::unavailable, "a\nb", "do this", Retry::yes, {}};
  const auto line = hub::format_error_line(error);
  CHECK(line.starts_with("ERROR {"));
  CHECK(line.find('\n') == line.size() - 1);
}

TEST_CASE("spawned programs get their three descriptors, the environment, and no more") {
  auto out = must(hub::make_pipe());
  unique_fd leak(dup(2));  // without close-on-exec
  hub::Spawn what;
  what.program = "sh";
  what.argv = {"sh", "-c", "echo $WORD; ls /proc/self/fd | wc -l; exit 3"};
  what.env["WORD"] = "hello";
  what.out = out.write.get();
  auto child = must(hub::spawn(what));
  out.write.reset();
  std::string text(64, '\0');
  std::size_t size = 0;
  for (ssize_t n; (n = read(out.read.get(), text.data() + size, text.size() - size)) > 0;) size += static_cast<std::size_t>(n);
  text.resize(size);
  CHECK(text.substr(0, 6) == "hello\n");
  CHECK(std::stoi(text.substr(6)) == 4);  // 0, 1, 2 and ls's own
  pollfd wait{child.pidfd.get(), POLLIN, 0};
  REQUIRE(poll(&wait, 1, 10'000) == 1);
  CHECK(hub::reap(child).code == 3);
  CHECK_FALSE(hub::open_pidfd(child.pid));
  what.program = "no-such-program";
  CHECK_FALSE(hub::spawn(what));
}

TEST_CASE("a data connection for which no thread can be started is closed, and the hub lives on") {
  const auto ca = must(tls::make_ca(std::string(16, 'i'), wall_ms()));
  const auto intermediate = must(tls::issue_intermediate(ca, "h1", wall_ms()));
  boost::asio::io_context io;
  hub::Channels channels(io, must(tls::make_context(tls::Role::server, must(tls::issue_server(intermediate, ca.chain, "h1", wall_ms())))),
                         [](const v1::ExpectChannel&, const std::string&) {});
  v1::ExpectChannel expect;
  expect.set_channel(5);
  expect.set_ticket(std::string(32, 't'));
  const auto address = hub::parse_address(must(channels.expect_node(expect, PilotId{7}, "127.0.0.1")));
  REQUIRE(address);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(address->second));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  unique_fd node(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(connect(node.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  pthread_attr_t before, huge;
  REQUIRE(pthread_getattr_default_np(&before) == 0);
  pthread_attr_init(&huge);
  pthread_attr_setstacksize(&huge, std::size_t{1} << 47);  // no room for such a stack
  REQUIRE(pthread_setattr_default_np(&huge) == 0);
  const auto deadline = std::chrono::steady_clock::now() + 10s;
  pollfd ended{node.get(), POLLIN, 0};
  while (poll(&ended, 1, 0) == 0 && std::chrono::steady_clock::now() < deadline) io.run_one_for(10ms);
  REQUIRE(pthread_setattr_default_np(&before) == 0);
  char byte;
  CHECK(recv(node.get(), &byte, 1, MSG_DONTWAIT) == 0);
}
