#include "proto/link/link.hpp"

#include <sys/socket.h>

#include <boost/asio/steady_timer.hpp>
#include <catch2/catch.hpp>
#include <thread>

using namespace flotilla;
using namespace std::chrono_literals;

namespace {

struct Pair {
  Pair() {
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    upper_fd.reset(fds[0]);
    lower_fd.reset(fds[1]);
  }
  unique_fd upper_fd, lower_fd;
};

v1::Frame ping(std::uint64_t id) {
  v1::Frame frame;
  frame.mutable_ping()->set_id(id);
  return frame;
}

bool run_until(boost::asio::io_context& io, const std::function<bool()>& done) {
  const auto limit = std::chrono::steady_clock::now() + 10s;
  while (!done() && std::chrono::steady_clock::now() < limit) {
    io.restart();
    io.run_one_for(100ms);
  }
  return done();
}

// A lower link needs its io_context until it is over.
void end(boost::asio::io_context& io, link::LinkPtr& lower) {
  lower->detach();
  lower->abort();
  CHECK(run_until(io, [&] { return lower.use_count() == 1; }));
}

}  // namespace

TEST_CASE("frames go both ways in order, and a close is seen once by each side") {
  boost::asio::io_context io;
  Pair pair;
  std::vector<std::uint64_t> up, down;
  int upper_closed = 0, lower_closed = 0;
  link::LinkPtr upper;
  link::Server server(io,
                      {[&](const link::LinkPtr& l) { upper = l; },
                       [&](const link::LinkPtr& l, v1::Frame f) {
                         up.push_back(f.ping().id());
                         l->send(ping(f.ping().id() + 1000));
                       },
                       [&](const link::LinkPtr&, const std::string&) { ++upper_closed; }},
                      link::keepalive_cluster);
  server.add_fd(std::move(pair.upper_fd));
  auto lower = link::connect_fd(io, std::move(pair.lower_fd),
                                {nullptr, [&](const link::LinkPtr&, v1::Frame f) { down.push_back(f.ping().id()); },
                                 [&](const link::LinkPtr&, const std::string&) { ++lower_closed; }},
                                link::keepalive_cluster);
  for (int i = 0; i < 200; ++i) lower->send(ping(i));
  REQUIRE(run_until(io, [&] { return down.size() == 200; }));
  CHECK(up.size() == 200);
  CHECK(std::is_sorted(up.begin(), up.end()));
  CHECK(std::is_sorted(down.begin(), down.end()));
  CHECK(down.front() == 1000);
  bool last_seen = false;
  SECTION("closed by the lower side") { lower->close(); }
  SECTION("closed by the upper side") { upper->close(); }
  SECTION("aborted by the lower side") { lower->abort(); }
  SECTION("aborted by the upper side") { upper->abort(); }
  SECTION("what was sent before a close arrives") {
    lower->send(ping(7));
    lower->close();
    last_seen = true;
  }
  REQUIRE(run_until(io, [&] { return upper_closed == 1 && lower_closed == 1; }));
  if (last_seen) CHECK(up.back() == 7);
  CHECK_FALSE(lower->open());
  CHECK_FALSE(upper->open());
  lower->send(ping(1));
  io.restart();
  io.run_for(20ms);
  CHECK(upper_closed == 1);
  CHECK(lower_closed == 1);
}

TEST_CASE("a connection that breaks ends the link at both sides") {
  boost::asio::io_context io;
  Pair pair;
  int upper_closed = 0, lower_closed = 0, frames = 0;
  const int raw = dup(pair.lower_fd.get());
  link::Server server(
      io, {nullptr, [&](const link::LinkPtr&, v1::Frame) { ++frames; }, [&](const link::LinkPtr&, const std::string&) { ++upper_closed; }},
      link::keepalive_cluster);
  server.add_fd(std::move(pair.upper_fd));
  auto lower =
      link::connect_fd(io, std::move(pair.lower_fd), {nullptr, nullptr, [&](const link::LinkPtr&, const std::string&) { ++lower_closed; }},
                       link::keepalive_cluster);
  lower->send(ping(1));
  REQUIRE(run_until(io, [&] { return frames == 1; }));
  shutdown(raw, SHUT_RDWR);
  close(raw);
  REQUIRE(run_until(io, [&] { return upper_closed == 1 && lower_closed == 1; }));
}

TEST_CASE("a silent peer is noticed by keepalive") {
  boost::asio::io_context io;
  Pair pair;
  std::string cause;
  auto lower = link::connect_fd(io, std::move(pair.lower_fd),
                                {nullptr, nullptr, [&](const link::LinkPtr&, const std::string& c) { cause = c; }}, {200ms, 300ms});
  REQUIRE(run_until(io, [&] { return !cause.empty(); }));
}

TEST_CASE("a slow owner does not make the memory grow") {
  boost::asio::io_context upper_io, lower_io;
  Pair pair;
  std::size_t received = 0;
  link::Server server(upper_io, {nullptr, [&](const link::LinkPtr&, v1::Frame f) { received += f.output_data().data().size(); }, nullptr},
                      link::keepalive_remote);
  server.add_fd(std::move(pair.upper_fd));
  auto lower = link::connect_fd(lower_io, std::move(pair.lower_fd), {}, link::keepalive_remote);
  v1::Frame frame;
  frame.mutable_output_data()->set_data(std::string(1 << 20, 'x'));
  for (int i = 0; i < 64; ++i) lower->send(frame);
  // Nobody runs the upper side's io_context: at most its allowance and gRPC's window have left.
  lower_io.run_for(300ms);  // gRPC's own threads move what they may
  CHECK(lower->queued_bytes() > (40u << 20));
  CHECK(run_until(upper_io, [&] { return received == (64u << 20); }));
  end(lower_io, lower);
}

TEST_CASE("who sends bulk is told when there is room again, at either side") {
  const bool down = GENERATE(false, true);
  CAPTURE(down);
  boost::asio::io_context upper_io, lower_io;
  Pair pair;
  std::size_t received = 0, sent = 0, most = 0;
  int rooms = 0;
  v1::Frame frame;
  frame.mutable_output_data()->set_data(std::string(256 << 10, 'x'));
  constexpr std::size_t total = 64u << 20;
  const auto pump = [&](const link::LinkPtr& link) {
    while (sent < total && link->queued_bytes() < link::room_bytes) {
      link->send(frame);
      sent += 256 << 10;
      most = std::max(most, link->queued_bytes());
    }
  };
  link::Handlers sender, reader;
  sender.on_room = [&](const link::LinkPtr& link) {
    ++rooms;
    pump(link);
  };
  reader.on_frame = [&](const link::LinkPtr&, v1::Frame f) { received += f.output_data().data().size(); };
  link::Handlers upper = down ? sender : reader;
  if (down) upper.on_open = pump;
  link::Server server(upper_io, std::move(upper), link::keepalive_remote);
  server.add_fd(std::move(pair.upper_fd));
  auto lower = link::connect_fd(lower_io, std::move(pair.lower_fd), down ? reader : sender, link::keepalive_remote);
  if (!down) pump(lower);
  CHECK(run_until(upper_io, [&] {
    lower_io.restart();
    lower_io.poll();
    return received == total;
  }));
  CHECK(rooms > 10);
  CHECK(most < link::room_bytes + (512 << 10));
  end(lower_io, lower);
}

TEST_CASE("links that break at any moment, with frames under way in both directions, end cleanly") {
  boost::asio::io_context io;
  int closed = 0, opened = 0;
  std::vector<link::LinkPtr> uppers;
  link::Server server(io,
                      {[&](const link::LinkPtr& l) {
                         ++opened;
                         uppers.push_back(l);
                       },
                       [&](const link::LinkPtr& l, v1::Frame f) { l->send(ping(f.ping().id())); },
                       [&](const link::LinkPtr&, const std::string&) { ++closed; }},
                      link::keepalive_cluster);
  constexpr int rounds = 300;
  for (int round = 0; round < rounds; ++round) {
    Pair pair;
    const int raw = dup(pair.lower_fd.get());
    int lower_closed = 0, answers = 0;
    server.add_fd(std::move(pair.upper_fd));
    link::LinkPtr lower;
    lower = link::connect_fd(io, std::move(pair.lower_fd),
                             {nullptr,
                              [&](const link::LinkPtr& l, v1::Frame) {
                                ++answers;
                                l->send(ping(1));
                                l->send(ping(2));
                              },
                              [&](const link::LinkPtr&, const std::string&) { ++lower_closed; }},
                             link::keepalive_cluster);
    lower->send(ping(0));
    run_until(io, [&] { return answers > round % 7; });
    // Breaks on another thread, as a dying peer does: at a moment that has nothing to do with our loop.
    std::thread breaker([raw, round] {
      for (int spin = 0; spin < round * 50; ++spin) std::atomic_signal_fence(std::memory_order_seq_cst);
      shutdown(raw, SHUT_RDWR);
    });
    while (lower_closed == 0) {
      lower->send(ping(3));
      for (auto& upper : uppers) upper->send(ping(4));
      io.restart();
      io.poll();
    }
    breaker.join();
    close(raw);
    uppers.clear();
    CHECK(lower_closed == 1);
  }
  REQUIRE(run_until(io, [&] { return closed == opened; }));
}

TEST_CASE("a server ends while links begin, and its owner runs no more") {
  boost::asio::io_context lower_io;
  for (int round = 0; round < 60; ++round) {
    boost::asio::io_context upper_io;
    Pair pair;
    link::LinkPtr lower;
    {
      link::Server server(upper_io, {}, link::keepalive_cluster);
      server.add_fd(std::move(pair.upper_fd));
      lower = link::connect_fd(lower_io, std::move(pair.lower_fd), {}, link::keepalive_cluster);
      lower->send(ping(1));
      // From before the call to after its first frame.
      if (round % 3 != 0) run_until(lower_io, [&] { return lower->queued_bytes() == 0; });
      for (int spin = 0; spin < round * 2000; ++spin) std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    end(lower_io, lower);
  }
}

TEST_CASE("frames that wait go together: all of them arrive, in order, large ones among small ones") {
  boost::asio::io_context io;
  Pair pair;
  std::vector<std::uint64_t> seen;
  std::size_t bytes = 0, sent_bytes = 0;
  link::LinkPtr upper;
  link::Server server(io,
                      {[&](const link::LinkPtr& l) { upper = l; },
                       [&](const link::LinkPtr&, v1::Frame f) {
                         seen.push_back(f.log_data().request());
                         bytes += f.log_data().data().size();
                       },
                       nullptr},
                      link::keepalive_cluster);
  server.add_fd(std::move(pair.upper_fd));
  auto lower = link::connect_fd(io, std::move(pair.lower_fd), {}, link::keepalive_cluster);
  for (std::uint64_t i = 0; i < 300; ++i) {
    v1::Frame frame;
    frame.mutable_log_data()->set_request(i);
    frame.mutable_log_data()->set_data(std::string(i % 7 == 0 ? 200'000 : i * 11 % 3000, 'x'));
    sent_bytes += frame.log_data().data().size();
    lower->send(std::move(frame));
  }
  CHECK(run_until(io, [&] { return seen.size() == 300; }));
  for (std::uint64_t i = 0; i < seen.size(); ++i) CHECK(seen[i] == i);
  CHECK(bytes == sent_bytes);
  CHECK(run_until(io, [&] { return lower->queued_bytes() == 0; }));
  end(io, lower);
}
