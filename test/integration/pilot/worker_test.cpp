// Workers through the real pilot: connecting back, hand-over, ends.
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "proto/base/random.hpp"
#include "proto/channel/hand_over.hpp"
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
  if (access("/usr/bin/mpiexec", X_OK) != 0) {
    WARN("no mpiexec here");
    return;
  }
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
