#include <pthread.h>
#include <sys/socket.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "proto/channel/fd_bridge.hpp"

using namespace flotilla;
using namespace flotilla::channel;
using namespace std::chrono_literals;

namespace {

// The owner's thread: runs what the bridges post until a condition holds.
class Loop {
 public:
  Post post() {
    return [this](std::function<void()> what) {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(what));
      ready_.notify_one();
    };
  }
  bool run_until(const std::function<bool()>& done, std::chrono::seconds limit = 20s) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!done()) {
      std::unique_lock lock(mutex_);
      if (!ready_.wait_until(lock, deadline, [this] { return !queue_.empty(); })) return false;
      auto what = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      what();
    }
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> queue_;
};

std::pair<unique_fd, unique_fd> sockets() {
  int pair[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  return {unique_fd(pair[0]), unique_fd(pair[1])};
}

// Both ends of a channel with the link between them and a wire that can be cut; the test is daemon, hub and pilot.
struct Line {
  Loop loop;
  unique_fd client, worker;  // the users' own ends
  unique_fd wire_a, wire_b;  // the middle of the present connection: the test relays (and can stop)
  std::unique_ptr<FdBridge> daemon, pilot;
  std::uint32_t epoch = 0;
  int daemon_finished = 0, pilot_finished = 0, broken = 0, daemon_connected = 0, acks = 0;
  std::optional<std::uint64_t> client_end, worker_end;
  bool worker_hung_up = false;
  std::vector<Error> failed;
  bool reopen = true;

  Line() {
    auto [client_fd, daemon_user] = sockets();
    auto [worker_fd, pilot_user] = sockets();
    client = std::move(client_fd);
    worker = std::move(worker_fd);
    BridgeHandlers of_daemon;
    of_daemon.on_ack = [this](auto e, auto received) {
      ++acks;
      pilot->on_ack(e, received);
    };
    of_daemon.on_connected = [this](auto) { ++daemon_connected; };
    of_daemon.on_wire_broken = [this](auto, const std::string&) {
      ++broken;
      if (reopen) open();
    };
    of_daemon.on_user_end = [this](auto offset, bool) {
      client_end = offset;
      pilot->on_peer_end(offset);
    };
    of_daemon.on_finished = [this] { ++daemon_finished; };
    of_daemon.on_failed = [this](const Error& error) { failed.push_back(error); };
    BridgeHandlers of_pilot;
    of_pilot.on_ack = [this](auto e, auto received) {
      ++acks;
      daemon->on_ack(e, received);
    };
    of_pilot.on_user_end = [this](auto offset, bool hung_up) {
      worker_end = offset;
      worker_hung_up = hung_up;
      daemon->on_peer_end(offset);
    };
    of_pilot.on_finished = [this] { ++pilot_finished; };
    of_pilot.on_failed = [this](const Error& error) { failed.push_back(error); };
    daemon = std::make_unique<FdBridge>(Side::opener, 1, std::move(daemon_user), loop.post(), of_daemon);
    pilot = std::make_unique<FdBridge>(Side::accepter, 1, std::move(pilot_user), loop.post(), of_pilot);
  }

  // Opens the next connection: the daemon's header is read here, as the hub does, and handed to the pilot.
  void open() {
    auto [a, b] = sockets();
    daemon->open_wire(make_socket_wire(std::move(a)), ++epoch, std::string(ticket_bytes, 'k'));
    std::string header(opening_bytes, '\0');
    REQUIRE(::recv(b.get(), header.data(), header.size(), MSG_WAITALL) == static_cast<long>(header.size()));
    auto request = parse_opening(header);
    REQUIRE(request);
    cut_ = unique_fd(::dup(b.get()));
    pilot->accept_wire(make_socket_wire(std::move(b)), *request);
  }
  void cut() { ::shutdown(cut_.get(), SHUT_RDWR); }

 private:
  unique_fd cut_;
};

std::string noise(std::size_t size, unsigned seed) {
  std::mt19937_64 random(seed);
  std::string out(size, '\0');
  for (std::size_t i = 0; i + 8 <= size; i += 8) {
    const auto value = random();
    std::memcpy(&out[i], &value, 8);
  }
  return out;
}

void send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const auto count = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count <= 0) return;
    bytes.remove_prefix(static_cast<std::size_t>(count));
  }
}
std::string read_to_end(int fd) {
  std::string all, part(1 << 16, '\0');
  for (;;) {
    const auto count = ::recv(fd, part.data(), part.size(), 0);
    if (count <= 0) return all;
    all.append(part.data(), static_cast<std::size_t>(count));
  }
}

}  // namespace

TEST_CASE("bytes pass both ways, ends too, and nothing else happens") {
  Line line;
  line.open();
  send_all(line.client.get(), "ping");
  char buffer[8];
  REQUIRE(::recv(line.worker.get(), buffer, 4, MSG_WAITALL) == 4);
  CHECK(std::string(buffer, 4) == "ping");
  send_all(line.worker.get(), "pong!");
  REQUIRE(::recv(line.client.get(), buffer, 5, MSG_WAITALL) == 5);
  CHECK(std::string(buffer, 5) == "pong!");
  ::shutdown(line.client.get(), SHUT_WR);
  REQUIRE(line.loop.run_until([&] { return line.client_end.has_value(); }));
  CHECK(*line.client_end == 4);
  CHECK(read_to_end(line.worker.get()).empty());  // the half-close arrives
  send_all(line.worker.get(), "last");
  line.worker.reset();
  REQUIRE(line.loop.run_until([&] { return line.worker_end.has_value(); }));
  CHECK(*line.worker_end == 9);
  std::string rest;
  std::thread reader([&] { rest = read_to_end(line.client.get()); });
  CHECK(line.loop.run_until([&] { return line.daemon_finished && line.pilot_finished; }));
  reader.join();
  CHECK(rest == "last");
  CHECK(line.daemon_finished == 1);
  CHECK(line.pilot_finished == 1);
  CHECK(line.daemon_connected == 1);
  CHECK(line.failed.empty());
  CHECK(line.broken == 0);
  CHECK(line.daemon->bytes_from_user() == 4);
  CHECK(line.daemon->bytes_to_user() == 9);
}

TEST_CASE("an array survives cuts in the middle, both ways at once") {
  Line line;
  line.open();
  const std::string down = noise(50 << 20, 1), up = noise(30 << 20, 2);
  std::string got_down, got_up;
  std::thread client_writes([&] {
    send_all(line.client.get(), down);
    ::shutdown(line.client.get(), SHUT_WR);
  });
  std::thread worker_writes([&] {
    send_all(line.worker.get(), up);
    ::shutdown(line.worker.get(), SHUT_WR);
  });
  std::thread client_reads([&] { got_up = read_to_end(line.client.get()); });
  std::thread worker_reads([&] { got_down = read_to_end(line.worker.get()); });
  std::uint64_t next_cut = 3 << 20;
  const bool done = line.loop.run_until(
      [&] {
        const auto moved = line.pilot->bytes_to_user() + line.daemon->bytes_to_user();
        if (moved > next_cut) {
          next_cut = moved + (7 << 20);
          line.cut();
        }
        return line.daemon_finished && line.pilot_finished;
      },
      50s);
  if (!done) {
    ::shutdown(line.client.get(), SHUT_RDWR);
    ::shutdown(line.worker.get(), SHUT_RDWR);
  }
  for (auto* thread : {&client_writes, &worker_writes, &client_reads, &worker_reads}) thread->join();
  CHECK(done);
  CHECK(got_down == down);
  CHECK(got_up == up);
  CHECK(line.broken >= 3);
  CHECK(line.epoch == static_cast<std::uint32_t>(line.broken) + 1);
  CHECK(line.failed.empty());
}

TEST_CASE("while the wire is away a writer is held up, not lost") {
  Line line;
  line.reopen = false;
  line.open();
  line.cut();
  REQUIRE(line.loop.run_until([&] { return line.broken == 1; }));
  const std::string text = noise(4 << 20, 3);
  std::thread writer([&] {
    send_all(line.worker.get(), text);
    line.worker.reset();
  });
  line.open();
  std::string got;
  std::thread reader([&] { got = read_to_end(line.client.get()); });
  CHECK(line.loop.run_until([&] { return line.worker_end.has_value(); }));
  writer.join();
  reader.join();
  ::shutdown(line.client.get(), SHUT_WR);
  CHECK(line.loop.run_until([&] { return line.daemon_finished && line.pilot_finished; }));
  CHECK(got == text);
}

TEST_CASE("the last bytes of a burst are acknowledged in quiet, calls are not acknowledged one by one") {
  Line line;
  line.open();
  char byte;
  for (int i = 0; i < 200; ++i) {
    send_all(line.client.get(), "c");
    REQUIRE(::recv(line.worker.get(), &byte, 1, 0) == 1);
    send_all(line.worker.get(), "r");
    REQUIRE(::recv(line.client.get(), &byte, 1, 0) == 1);
  }
  CHECK(line.loop.run_until([&] { return line.acks >= 2; }));
  CHECK(line.acks < 50);
  const int before = line.acks;
  line.pilot->renew_ack();  // a new link: said again
  CHECK(line.loop.run_until([&] { return line.acks > before; }));
}

TEST_CASE("a peer that has lost the channel fails it, and the user sees the end") {
  Line line;
  auto [a, b] = sockets();
  line.daemon->open_wire(make_socket_wire(std::move(a)), 1, std::string(ticket_bytes, 'k'));
  std::string header(opening_bytes, '\0');
  REQUIRE(::recv(b.get(), header.data(), header.size(), MSG_WAITALL) == static_cast<long>(header.size()));
  const auto refusal = format_opening(refusal_of(*parse_opening(header)));
  send_all(b.get(), {refusal.data(), refusal.size()});
  REQUIRE(line.loop.run_until([&] { return !line.failed.empty(); }));
  CHECK(line.failed[0].code == Code::not_found);
  CHECK(read_to_end(line.client.get()).empty());
  CHECK(line.broken == 0);
}

TEST_CASE("an end that has lost the channel refuses every later connection: it is not made again for ever") {
  Line line;
  line.open();
  send_all(line.client.get(), "x");
  char byte;
  REQUIRE(::recv(line.worker.get(), &byte, 1, 0) == 1);
  line.reopen = false;
  line.cut();
  REQUIRE(line.loop.run_until([&] { return line.broken == 1; }));
  // A peer that claims to have what was never sent.
  for (const std::uint32_t epoch : {10u, 11u}) {
    auto [ours, theirs] = sockets();
    line.pilot->accept_wire(make_socket_wire(std::move(theirs)), Opening{0, 1, epoch, {}, 4711});
    std::string header(opening_bytes, '\0');
    REQUIRE(::recv(ours.get(), header.data(), header.size(), MSG_WAITALL) == static_cast<long>(header.size()));
    const auto answer = parse_opening(header);
    REQUIRE(answer);
    CHECK(answer->flags == (opening_answer | opening_refused));
    CHECK(::recv(ours.get(), &byte, 1, 0) == 0);
  }
  REQUIRE(line.loop.run_until([&] { return !line.failed.empty(); }));
  CHECK(line.failed.size() == 1);
}

TEST_CASE("an end that has finished tells a peer that comes again what has arrived") {
  Line line;
  line.reopen = false;
  line.open();
  send_all(line.client.get(), "hello");
  ::shutdown(line.client.get(), SHUT_WR);
  REQUIRE(line.loop.run_until([&] { return line.client_end.has_value(); }));
  CHECK(read_to_end(line.worker.get()) == "hello");
  line.worker.reset();
  REQUIRE(line.loop.run_until([&] { return line.pilot_finished == 1 && line.daemon_finished == 1; }));
  auto [ours, theirs] = sockets();
  line.pilot->accept_wire(make_socket_wire(std::move(theirs)), Opening{0, 1, 10, {}, 0});
  std::string header(opening_bytes, '\0');
  REQUIRE(::recv(ours.get(), header.data(), header.size(), MSG_WAITALL) == static_cast<long>(header.size()));
  const auto answer = parse_opening(header);
  REQUIRE(answer);
  CHECK(answer->flags == opening_answer);
  CHECK(answer->received == 5);
  CHECK(line.failed.empty());
}

TEST_CASE("a connection with an old epoch is closed and changes nothing") {
  Line line;
  line.open();
  line.open();  // displaces the first
  auto [a, b] = sockets();
  line.pilot->accept_wire(make_socket_wire(std::move(a)), Opening{0, 1, 1, {}, 0});
  char byte;
  CHECK(::recv(b.get(), &byte, 1, 0) == 0);
  send_all(line.client.get(), "x");
  CHECK(::recv(line.worker.get(), &byte, 1, 0) == 1);
  CHECK(line.failed.empty());
}

TEST_CASE("a worker that died: what it wrote arrives, its end is told") {
  Line line;
  line.open();
  const std::string words = noise(1 << 20, 4);
  std::thread writer([&] {
    send_all(line.worker.get(), words);
    line.pilot->end_user();
  });
  std::string got;
  std::thread reader([&] { got = read_to_end(line.client.get()); });
  CHECK(line.loop.run_until([&] { return line.worker_end.has_value() && line.worker_hung_up; }));
  CHECK(*line.worker_end == words.size());
  send_all(line.client.get(), "nobody takes this");
  reader.join();
  writer.join();
  CHECK(got == words);
  ::shutdown(line.client.get(), SHUT_WR);
  CHECK(line.loop.run_until([&] { return line.daemon_finished && line.pilot_finished; }));
}

TEST_CASE("no handler runs after the bridge is gone") {
  Loop loop;
  int told = 0;
  auto [user, mine] = sockets();
  {
    BridgeHandlers handlers;
    handlers.on_user_end = [&](auto, bool) { ++told; };
    FdBridge bridge(Side::accepter, 1, std::move(user), loop.post(), handlers);
    mine.reset();
    // The closure is in the queue, or on its way there, when the bridge goes.
  }
  bool marker = false;
  loop.post()([&] { marker = true; });
  CHECK(loop.run_until([&] { return marker; }));
  CHECK(told == 0);
}

TEST_CASE("a channel that gets no thread is lost, with the cause, and refuses its connections") {
  Loop loop;
  std::vector<Error> failed;
  auto [user, mine] = sockets();
  BridgeHandlers handlers;
  handlers.on_failed = [&](const Error& error) { failed.push_back(error); };
  pthread_attr_t before, huge;
  REQUIRE(pthread_getattr_default_np(&before) == 0);
  pthread_attr_init(&huge);
  pthread_attr_setstacksize(&huge, std::size_t{1} << 47);  // no room for such a stack
  REQUIRE(pthread_setattr_default_np(&huge) == 0);
  auto bridge = std::make_unique<FdBridge>(Side::accepter, 1, std::move(user), loop.post(), handlers);
  REQUIRE(pthread_setattr_default_np(&before) == 0);
  REQUIRE(loop.run_until([&] { return !failed.empty(); }));
  CHECK(failed[0].code == Code::resource_exhausted);
  CHECK(failed[0].message.find("thread") != std::string::npos);
  char byte;
  CHECK(::recv(mine.get(), &byte, 1, 0) == 0);
  auto [wire, far] = sockets();
  Opening request;
  request.channel = 1;
  request.epoch = 1;
  bridge->accept_wire(make_socket_wire(std::move(wire)), request);
  std::string answer(opening_bytes, '\0');
  REQUIRE(::recv(far.get(), answer.data(), answer.size(), MSG_WAITALL) == static_cast<ssize_t>(answer.size()));
  const auto parsed = parse_opening(answer);
  REQUIRE(parsed);
  CHECK(parsed->flags == (opening_answer | opening_refused));
  bridge->end_user();
}
