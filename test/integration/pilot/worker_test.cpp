// Workers through the real pilot: connecting back, hand-over, ends.
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <catch2/catch.hpp>
#include <fstream>

#include "pilot/worker/tls_wire.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/random.hpp"
#include "proto/channel/fd_bridge.hpp"
#include "proto/channel/hand_over.hpp"
#include "proto/tls/certificate.hpp"
#include "proto/tls/stream.hpp"
#include "test/integration/pilot/fake_daemon.hpp"

using namespace flotilla;
using namespace flotilla::test;

namespace {

struct Running : FakeDaemon {
  Running() {
    launch();
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
  }
  std::string ticket = random_bytes(32);
  std::uint64_t start_worker(const std::string& mode, const std::function<void(v1::JobSpec&)>& change = {}) {
    v1::JobSpec spec;
    spec.mutable_worker()->set_executable(FLOTILLA_TEST_WORKER);
    spec.mutable_worker()->add_args(mode);
    spec.set_working_folder(dir.string());
    if (change) change(spec);
    return submit(spec, [&](v1::StartAttempt& attempt) { attempt.set_channel_ticket(ticket); });
  }
  bool wait_connected(std::uint64_t id) {
    return run_until([&] { return job(id).connected > 0; });
  }
  channel::TakenChannel take(std::uint64_t id) {
    auto taken = channel::take_channel(job(id).hand_over_socket, ticket, 5s);
    if (!taken) FAIL(taken.error().message);
    return std::move(*taken);
  }
};

bool echoes(int fd, const std::string& text) {
  if (write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) return false;
  std::string back(text.size(), '\0');
  std::size_t done = 0;
  while (done < back.size()) {
    const ssize_t n = read(fd, back.data() + done, back.size() - done);
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return back == text;
}

}  // namespace

TEST_CASE("a worker connects back and its own socket is handed over") {
  Running daemon;
  const auto job = daemon.start_worker("echo");
  REQUIRE(daemon.wait_connected(job));
  CHECK(daemon.job(job).started == 1);
  auto taken = daemon.take(job);
  CHECK(echoes(taken.fd.get(), "hello"));
  // Good once.
  auto again = channel::take_channel(daemon.job(job).hand_over_socket, daemon.ticket, 2s);
  CHECK_FALSE(again.has_value());
  // The counters are the client's to write.
  taken.counters->calls = 3;
  REQUIRE(daemon.run_until([&] { return !daemon.statuses.empty() && daemon.statuses.back().channels_size() == 1; }, 8s));
  CHECK(daemon.statuses.back().channels(0).calls() == 3);
  // It ends well by itself.
  REQUIRE(write(taken.fd.get(), "q", 1) == 1);
  char byte;
  CHECK(read(taken.fd.get(), &byte, 1) == 0);  // nobody keeps a duplicate
  std::string partial;
  auto end = channel::read_end(taken.control.get(), partial, 5s);
  REQUIRE(end.has_value());
  REQUIRE(end->has_value());
  CHECK((*end)->kind() == v1::EXITED);
  CHECK((*end)->code() == 0);
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).end.exit().kind() == v1::EXITED);
}

TEST_CASE("a dying worker's client is told the cause") {
  Running daemon;
  for (const std::string how : {"x", "c"}) {
    daemon.ticket = random_bytes(32);
    const auto job = daemon.start_worker("echo");
    REQUIRE(daemon.wait_connected(job));
    auto taken = daemon.take(job);
    REQUIRE(write(taken.fd.get(), how.data(), 1) == 1);
    char byte;
    CHECK(read(taken.fd.get(), &byte, 1) <= 0);
    std::string partial;
    auto end = channel::read_end(taken.control.get(), partial, 5s);
    REQUIRE(end.has_value());
    REQUIRE(end->has_value());
    const auto& reason = **end;
    if (how == "x") {
      CHECK(reason.kind() == v1::EXITED);
      CHECK(reason.code() == 9);
      CHECK(reason.stderr_tail() == "the integration diverged\n");
      CHECK(reason.message().find("worker pilot_test_worker on ") == 0);
    } else {
      CHECK(reason.kind() == v1::SIGNALED);
      CHECK(reason.signal() == SIGSEGV);
      CHECK(reason.stderr_tail() == "about to crash\n");
    }
    REQUIRE(daemon.wait_end(job));
    CHECK(daemon.job(job).end.exit().message() == reason.message());
  }
}

TEST_CASE("a client that goes away ends its worker, also one that takes no notice") {
  Running daemon;
  const auto job = daemon.start_worker("spin", [](v1::JobSpec& s) { s.set_kill_grace_ms(200); });
  REQUIRE(daemon.wait_connected(job));
  const pid_t pid = static_cast<pid_t>(daemon.job(job).running.pid());
  {
    auto taken = daemon.take(job);
    CHECK(echoes(taken.fd.get(), "x1"));
  }
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).end.exit().kind() == v1::CLIENT_GONE);
  CHECK_FALSE(process_exists(pid));
}

TEST_CASE("start failures: not there, exits at once, never connects") {
  Running daemon;
  const auto absent = daemon.start_worker("echo", [](v1::JobSpec& s) { s.mutable_worker()->set_executable("no_such_worker"); });
  REQUIRE(daemon.wait_end(absent));
  CHECK(daemon.job(absent).end.exit().kind() == v1::START_FAILED);
  CHECK(daemon.job(absent).end.exit().message().find("cannot run 'no_such_worker'") == 0);
  const auto fails = daemon.start_worker("fail");
  REQUIRE(daemon.wait_end(fails));
  CHECK(daemon.job(fails).end.exit().kind() == v1::START_FAILED);
  CHECK(daemon.job(fails).end.exit().code() == 3);
  CHECK(daemon.job(fails).end.exit().stderr_tail() == "libgravity.so: cannot open\n");
  CHECK(daemon.job(fails).end.exit().message().find("exited with code 3 before it connected back") != std::string::npos);
  const auto never = daemon.start_worker("never", [](v1::JobSpec& s) { s.set_start_timeout_ms(300); });
  REQUIRE(daemon.wait_end(never));
  CHECK(daemon.job(never).end.exit().kind() == v1::START_TIMEOUT);
  CHECK(daemon.job(never).end.exit().message().find("did not connect back within 300 ms") != std::string::npos);
  CHECK(daemon.job(never).connected == 0);
}

TEST_CASE("only the process that was started may connect") {
  Running daemon;
  const auto job = daemon.start_worker("wait");
  REQUIRE(daemon.run_until([&] { return std::filesystem::exists(daemon.dir / "port"); }));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(read_whole(daemon.dir / "port"))));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  char byte;
  CHECK(read(fd, &byte, 1) <= 0);  // closed
  close(fd);
  CHECK(daemon.job(job).connected == 0);
  std::ofstream(daemon.dir / "go") << "go\n";
  REQUIRE(daemon.wait_connected(job));
  auto taken = daemon.take(job);
  CHECK(echoes(taken.fd.get(), "mine"));
  daemon.cancel(job, 200);
  REQUIRE(daemon.wait_end(job));
}

TEST_CASE("a worker that died before it was taken: the ticket tells why") {
  Running daemon;
  const auto job = daemon.start_worker("echo");
  REQUIRE(daemon.wait_connected(job));
  kill(static_cast<pid_t>(daemon.job(job).running.pid()), SIGKILL);
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).end.exit().signal() == SIGKILL);
  auto taken = channel::take_channel(daemon.job(job).hand_over_socket, daemon.ticket, 2s);
  REQUIRE_FALSE(taken.has_value());
  CHECK(taken.error().code == Code::worker_failed);
  CHECK(taken.error().message.find("SIGKILL") != std::string::npos);
}

TEST_CASE("an MPI worker runs under mpiexec with all its ranks") {
  INFO("scripts/setup installs it");
  REQUIRE(access("/usr/bin/mpiexec", X_OK) == 0);
  Running daemon;
  std::ofstream(daemon.dir / "ranks.sh") << "#!/bin/sh\necho rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE flag $4\n"
                                            "[ \"$OMPI_COMM_WORLD_RANK\" = 0 ] || exec sleep 1000\nexec "
                                         << FLOTILLA_TEST_WORKER << " \"$@\"\n";
  std::filesystem::permissions(daemon.dir / "ranks.sh", std::filesystem::perms::owner_all);
  const auto job = daemon.start_worker("echo", [](v1::JobSpec& s) {
    s.mutable_worker()->set_executable("./ranks.sh");
    s.mutable_worker()->set_mpi(true);
    s.set_processes(3);
  });
  const bool connected = daemon.run_until([&] { return daemon.job(job).connected > 0 || daemon.job(job).ends > 0; }, 30s);
  INFO(daemon.job(job).end.exit().message() << daemon.job(job).end.exit().stderr_tail());
  REQUIRE(connected);
  REQUIRE(daemon.job(job).connected == 1);
  {
    auto taken = daemon.take(job);
    CHECK(echoes(taken.fd.get(), "ranks"));
    REQUIRE(daemon.run_until([&] { return daemon.job(job).out.find("rank 2 of 3 flag true") != std::string::npos; }));
    daemon.cancel(job, 500);
    REQUIRE(daemon.wait_end(job, 20s));
  }
  CHECK(processes_of(daemon.start.instance()) == std::vector<pid_t>{daemon.outcome.pilot});
}

TEST_CASE("an MPI worker that does not start: its cause, its stderr and its exit code are told at once") {
  INFO("scripts/setup installs it");
  REQUIRE(access("/usr/bin/mpiexec", X_OK) == 0);
  Running daemon;
  const auto fails = [&](const std::string& mode, const std::function<void(v1::JobSpec&)>& change = {}) {
    const auto job = daemon.start_worker(mode, [&](v1::JobSpec& s) {
      s.mutable_worker()->set_mpi(true);
      s.set_processes(3);
      s.set_start_timeout_ms(600'000);  // not that
      if (change) change(s);
    });
    REQUIRE(daemon.wait_end(job, 30s));
    CHECK(daemon.job(job).connected == 0);
    const auto& exit = daemon.job(job).end.exit();
    CHECK(exit.kind() == v1::START_FAILED);
    CHECK(processes_of(daemon.start.instance()) == std::vector<pid_t>{daemon.outcome.pilot});
    return exit;
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  // An mpiexec of the test's own, before the real one in PATH.
  const auto pretend = [&](const std::string& script) {
    const auto folder = daemon.dir / "own";
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "mpiexec") << "#!/bin/sh\n" << script;
    std::filesystem::permissions(folder / "mpiexec", std::filesystem::perms::owner_all);
    return [path = folder.string()](v1::JobSpec& s) { (*s.mutable_env())["PATH"] = path + ":/usr/bin:/bin"; };
  };

  SECTION("no mpiexec") {
    const auto exit = fails("echo", [&](v1::JobSpec& s) { (*s.mutable_env())["PATH"] = daemon.dir.string(); });
    CHECK(exit.code() == 127);
    CHECK(has(exit.message(), "cannot run 'mpiexec': not found in PATH"));
    CHECK(has(exit.message(), "pilot_test_worker is an MPI worker"));
    CHECK(has(exit.message(), "install MPI there, or load its module"));
  }
  SECTION("an mpiexec that refuses") {
    const auto exit = fails("echo", pretend("echo 'There are not enough slots available' >&2; exit 213\n"));
    CHECK(exit.code() == 213);
    CHECK(exit.stderr_tail() == "There are not enough slots available\n");
    CHECK(has(exit.message(), "worker pilot_test_worker on "));
    CHECK(has(exit.message(), "exited with code 213 before it connected back"));
  }
  SECTION("an mpiexec that is killed") {
    const auto exit = fails("echo", pretend("echo 'out of memory' >&2; kill -9 $$\n"));
    CHECK(exit.signal() == SIGKILL);
    CHECK(exit.stderr_tail() == "out of memory\n");
    CHECK(has(exit.message(), "was killed by signal 9 (SIGKILL) before it connected back"));
  }
  SECTION("no such program") {
    const auto exit = fails("echo", [](v1::JobSpec& s) { s.mutable_worker()->set_executable("no_such_worker"); });
    CHECK(exit.code() == 127);
    CHECK(exit.message().find("cannot run 'no_such_worker'") == 0);
  }
  SECTION("a program that no system can run") {
    std::ofstream(daemon.dir / "broken") << "#!/no/such/interpreter\n";
    std::filesystem::permissions(daemon.dir / "broken", std::filesystem::perms::owner_all);
    const auto exit = fails("echo", [](v1::JobSpec& s) { s.mutable_worker()->set_executable("./broken"); });
    CHECK(exit.code() != 0);
    CHECK(has(exit.message() + exit.stderr_tail(), "broken"));
  }
  SECTION("its ranks end with an error") {
    const auto exit = fails("fail");
    CHECK(exit.code() == 3);
    CHECK(has(exit.stderr_tail(), "libgravity.so: cannot open"));
    CHECK(has(exit.message(), "exited with code 3 before it connected back"));
  }
  SECTION("one rank crashes, the others would wait") {
    std::ofstream(daemon.dir / "crash.sh") << "#!/bin/sh\n[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] || exec sleep 1000\n"
                                              "echo 'rank 1 ran out of stars' >&2\nkill -SEGV $$\n";
    std::filesystem::permissions(daemon.dir / "crash.sh", std::filesystem::perms::owner_all);
    const auto exit = fails("echo", [](v1::JobSpec& s) { s.mutable_worker()->set_executable("./crash.sh"); });
    CHECK(exit.code() == 128 + SIGSEGV);
    CHECK(has(exit.stderr_tail(), "rank 1 ran out of stars"));
  }
}

// ---- remote channels: the test is daemon and hub at once -------------------------------------------------

namespace {

struct Remote : Running {
  ~Remote() {  // the base runs the loop once more
    on_channel_ack = nullptr;
    on_channel_end = nullptr;
    on_channel_data = nullptr;
  }
  std::uint32_t epoch = 0;
  unique_fd user;                             // the client's side
  std::unique_ptr<channel::FdBridge> bridge;  // the daemon's end
  std::string failed;
  int broken = 0, connections = 0, finished = 0;
  std::uint64_t start_remote(const std::string& mode) {
    v1::JobSpec spec;
    spec.mutable_worker()->set_executable(FLOTILLA_TEST_WORKER);
    spec.mutable_worker()->add_args(mode);
    spec.set_working_folder(dir.string());
    const auto id = submit(spec, [&](v1::StartAttempt& attempt) { attempt.set_remote_channel(true); });
    if (!wait_connected(id)) return 0;
    CHECK(job(id).hand_over_socket.empty());
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    user.reset(pair[0]);
    channel::BridgeHandlers handlers;
    handlers.on_ack = [this, id](std::uint32_t e, std::uint64_t received) {
      v1::Frame frame;
      frame.mutable_channel_ack()->set_channel(id);
      frame.mutable_channel_ack()->set_epoch(e);
      frame.mutable_channel_ack()->set_received(received);
      send(std::move(frame));
    };
    handlers.on_connected = [this](std::uint32_t) { ++connections; };
    handlers.on_wire_broken = [this](std::uint32_t, const std::string&) { ++broken; };
    handlers.on_user_end = [this, id](std::uint64_t final_offset, bool) {
      v1::Frame frame;
      frame.mutable_channel_end()->set_channel(id);
      frame.mutable_channel_end()->set_final_offset(final_offset);
      send(std::move(frame));
    };
    handlers.on_finished = [this] { ++finished; };
    handlers.on_failed = [this](const Error& error) { failed = error.message; };
    bridge = std::make_unique<channel::FdBridge>(
        channel::Side::opener, id, unique_fd(pair[1]), [this](std::function<void()> work) { boost::asio::post(io, std::move(work)); },
        std::move(handlers));
    on_channel_ack = [this](const v1::ChannelAck& ack) { bridge->on_ack(ack.epoch(), ack.received()); };
    on_channel_end = [this](const v1::ChannelEnd& end) {
      ends.push_back(end);
      bridge->on_peer_end(end.final_offset());
    };
    return id;
  }
  // As the hub does it: the header is read, and goes with the socket to the pilot.
  int open_beside(std::uint64_t) {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    const int kept = fcntl(pair[0], F_DUPFD_CLOEXEC, 3);  // to cut it
    bridge->open_wire(channel::make_socket_wire(unique_fd(pair[0])), ++epoch, random_bytes(32));
    std::string header(channel::opening_bytes, '\0');
    REQUIRE(recv(pair[1], header.data(), header.size(), MSG_WAITALL) == static_cast<ssize_t>(header.size()));
    auto socket = channel::connect_unix(dir / "run" / "channel.sock");
    REQUIRE(socket.has_value());
    REQUIRE(channel::send_fds(socket->get(), header, {pair[1]}).has_value());
    close(pair[1]);
    return kept;
  }
  // Sends `size` bytes and reads them back through the worker; `meanwhile` runs between turns of the loop.
  bool round_trip(std::size_t size, const std::function<void()>& meanwhile = {}) {
    const std::string sent = random_bytes(size);
    std::string back;
    std::size_t out = 0;
    std::string buffer(1 << 18, '\0');
    return run_until(
               [&] {
                 for (int i = 0; i < 64; ++i) {
                   const ssize_t n =
                       out < size ? ::send(user.get(), sent.data() + out, std::min<std::size_t>(1 << 18, size - out), MSG_DONTWAIT) : 0;
                   if (n > 0) out += static_cast<std::size_t>(n);
                   const ssize_t m = recv(user.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
                   if (m > 0) back.append(buffer.data(), static_cast<std::size_t>(m));
                   if (n <= 0 && m <= 0) break;
                 }
                 if (meanwhile) meanwhile();
                 return back.size() >= size;
               },
               30s) &&
           back == sent;
  }
  std::vector<v1::ChannelEnd> ends;
};

}  // namespace

TEST_CASE("a remote channel, its socket handed over by the hub, survives its connections and the link") {
  Remote daemon;
  const auto job = daemon.start_remote("echo");
  REQUIRE(job > 0);
  int cut = daemon.open_beside(job);
  CHECK(daemon.round_trip(1));
  CHECK(daemon.round_trip(1 << 20));
  for (int i = 0; i < 3; ++i) {
    bool done = false;
    int turns = 0;
    CHECK(daemon.round_trip(20 << 20, [&] {
      if (!done && ++turns > 20) {  // in the middle
        done = true;
        shutdown(cut, SHUT_RDWR);
        close(cut);
        if (i == 1) {  // and the link too
          daemon.cut_link();
          REQUIRE(daemon.run_until([&] { return daemon.linked(); }));
          daemon.bridge->renew_ack();
        }
        cut = daemon.open_beside(job);
      }
    }));
    CHECK(done);
  }
  CHECK(daemon.job(job).ends == 0);
  CHECK(daemon.failed.empty());
  // It dies: the last bytes come first, then the reason.
  REQUIRE(write(daemon.user.get(), "x", 1) == 1);
  REQUIRE(daemon.wait_end(job));
  CHECK(daemon.job(job).end.exit().code() == 9);
  REQUIRE(daemon.run_until([&] { return !daemon.ends.empty() && daemon.ends.back().has_exit(); }));
  CHECK(daemon.ends.back().exit().stderr_tail() == "the integration diverged\n");
  CHECK(daemon.ends.back().final_offset() == 1 + (1 << 20) + 3 * (20 << 20));
  char byte;
  REQUIRE(daemon.run_until([&] { return recv(daemon.user.get(), &byte, 1, MSG_DONTWAIT) == 0; }));
  close(cut);
}

TEST_CASE("a remote channel over mutual TLS to the hub's data port") {
  const std::int64_t now = wall_ms();
  const std::string instance = random_bytes(16);
  auto ca = tls::make_ca(instance, now);
  REQUIRE(ca.has_value());
  auto hub = tls::issue_intermediate(*ca, "hub1", now);
  auto server = tls::issue_server(*hub, ca->chain, "hub1", now);
  auto client = tls::issue_pilot(*hub, ca->chain, PilotId{7}, 0, now);
  REQUIRE(server.has_value());
  REQUIRE(client.has_value());
  auto context = tls::make_context(tls::Role::server, *server);
  REQUIRE(context.has_value());

  FakeDaemon::prepare = [&](v1::PilotStart& start) {
    start.set_tls_ca(client->ca);
    start.set_tls_chain(client->chain);
    start.set_tls_key(client->private_key);
    start.set_tls_server_name(tls::server_name("hub1"));
  };
  Remote daemon;
  FakeDaemon::prepare = nullptr;
  const auto job = daemon.start_remote("echo");
  REQUIRE(job > 0);
  unique_fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(listener.get(), 4) == 0);
  REQUIRE(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  for (int i = 0; i < 2; ++i) {
    const std::string ticket = random_bytes(32);
    v1::Frame frame;
    auto& expect = *frame.mutable_expect_channel();
    expect.set_channel(job);
    expect.set_epoch(++daemon.epoch);
    expect.set_ticket(ticket);
    expect.set_dial("127.0.0.1:" + std::to_string(ntohs(address.sin_port)));
    daemon.send(frame);
    pollfd waits{listener.get(), POLLIN, 0};
    REQUIRE(daemon.run_until([&] { return poll(&waits, 1, 0) > 0; }));
    unique_fd fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    auto stream = tls::Stream::make(*context, tls::Role::server, std::move(fd), {});
    REQUIRE(stream.has_value());
    auto shaken = stream->handshake_within(5s);
    INFO((shaken ? std::string() : shaken.error().message));
    REQUIRE(shaken.has_value());
    CHECK(stream->peer_uri() == "flotilla:pilot/7");
    std::string got;
    REQUIRE(daemon.run_until([&] {
      char byte;
      while (got.size() < 32 && stream->read(&byte, 1).step == tls::Step::done) got.push_back(byte);
      return got.size() == 32;
    }));
    CHECK(got == ticket);
    daemon.bridge->open_wire(pilot::make_tls_wire(std::move(*stream)), daemon.epoch, ticket);
    CHECK(daemon.round_trip(8 << 20));
  }
  daemon.cancel(job, 200);
  REQUIRE(daemon.wait_end(job));
}

TEST_CASE("a data port that cannot be dialled is told of, with its cause; a new order for the channel takes the place of the old one") {
  const std::int64_t now = wall_ms();
  auto ca = tls::make_ca(random_bytes(16), now);
  REQUIRE(ca.has_value());
  auto hub = tls::issue_intermediate(*ca, "hub1", now);
  auto client = tls::issue_pilot(*hub, ca->chain, PilotId{7}, 0, now);
  REQUIRE(client.has_value());
  FakeDaemon::prepare = [&](v1::PilotStart& start) {
    start.set_tls_ca(client->ca);
    start.set_tls_chain(client->chain);
    start.set_tls_key(client->private_key);
    start.set_tls_server_name(tls::server_name("hub1"));
  };
  Running daemon;
  FakeDaemon::prepare = nullptr;
  unique_fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));  // takes connections, and says nothing on them
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(listener.get(), 64) == 0);
  REQUIRE(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  const std::string silent = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  const auto expect = [&](std::uint64_t channel, std::uint32_t epoch, const std::string& dial) {
    v1::Frame frame;
    auto& order = *frame.mutable_expect_channel();
    order.set_channel(channel);
    order.set_epoch(epoch);
    order.set_ticket(random_bytes(32));
    order.set_dial(dial);
    daemon.send(frame);
  };
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint32_t epoch = 1; epoch <= 20; ++epoch) expect(1, epoch, silent);
  expect(2, 5, "127.0.0.1:1");
  REQUIRE(daemon.run_until([&] { return !daemon.refusals.empty(); }));
  CHECK(std::chrono::steady_clock::now() - begin < 4s);  // it did not wait for what hangs
  CHECK(daemon.refusals[0].channel() == 2);
  CHECK(daemon.refusals[0].epoch() == 5);
  CHECK(daemon.refusals[0].cause().find("127.0.0.1:1") != std::string::npos);
  REQUIRE(daemon.run_until([&] { return daemon.refusals.size() == 2; }));
  CHECK(daemon.refusals[1].epoch() == 20);
}

TEST_CASE("sockets of a pilot that are removed are there again") {
  Running daemon;
  const auto run = daemon.dir / "run";
  SECTION("they alone") {
    for (const char* name : {"take.sock", "channel.sock"}) REQUIRE(std::filesystem::remove(run / name));
  }
  SECTION("with their directory") {
    std::error_code ignored;  // what is made again meanwhile may keep it
    std::filesystem::remove_all(run, ignored);
  }
  const auto there = [&] { return std::filesystem::exists(run / "take.sock") && std::filesystem::exists(run / "channel.sock"); };
  REQUIRE(daemon.run_until(there));
  const auto job = daemon.start_worker("echo");
  REQUIRE(daemon.wait_connected(job));
  auto taken = daemon.take(job);
  CHECK(echoes(taken.fd.get(), "hello"));
  std::filesystem::remove(run / "take.sock");  // a second time, too
  REQUIRE(daemon.run_until(there));
}

TEST_CASE("where forwarding is forbidden, frames of the link take the place of a channel's connection") {
  Remote daemon;
  const auto job = daemon.start_remote("echo");
  REQUIRE(job > 0);
  int pair[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
  daemon.bridge->open_wire(channel::make_socket_wire(unique_fd(pair[0])), ++daemon.epoch, random_bytes(32));
  unique_fd wire(pair[1]);
  std::uint64_t up = 0, down = 0;
  std::string waiting;
  daemon.on_channel_data = [&](const v1::ChannelData& data) {
    CHECK(data.offset() == up);
    up += data.data().size();
    waiting += data.data();
  };
  auto carry = [&] {
    std::string bytes(1 << 16, '\0');
    const ssize_t n = recv(wire.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (n > 0) {
      v1::Frame frame;
      auto& data = *frame.mutable_channel_data();
      data.set_channel(job);
      data.set_epoch(daemon.epoch);
      data.set_offset(down);
      data.set_data(bytes.substr(0, static_cast<std::size_t>(n)));
      down += static_cast<std::uint64_t>(n);
      daemon.send(frame);
    }
    const ssize_t m = waiting.empty() ? 0 : ::send(wire.get(), waiting.data(), waiting.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (m > 0) waiting.erase(0, static_cast<std::size_t>(m));
  };
  CHECK(daemon.round_trip(1, carry));
  CHECK(daemon.round_trip(4 << 20, carry));
  daemon.cancel(job, 200);
  REQUIRE(daemon.run_until([&] {
    carry();
    return daemon.job(job).ends > 0;
  }));
}
