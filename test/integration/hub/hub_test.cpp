#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <thread>

#include "hub/core/record.hpp"
#include "hub/hub_start.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/channel/hand_over.hpp"
#include "test/integration/hub/fake_daemon.hpp"

using namespace flotilla;
using namespace flotilla::test;

namespace {

template <class Duration>
double ms(Duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

bool nothing_left(FakeDaemon& daemon) {
  const bool gone = daemon.run_until([&] { return daemon.processes().empty(); }, 10s);
  if (!gone) UNSCOPED_INFO(daemon.log());
  return gone;
}

// The first node of a pilot as the state file has it, once its start is over: nullopt before.
std::optional<hub::Node> recorded(FakeDaemon& daemon, std::uint64_t pilot) {
  const auto text = read_file(daemon.scratch / "flotilla" / "hubs" / "h1.json");
  const auto record = text ? hub::parse_record(*text) : Result<hub::Record>(fail(text.error()));
  if (!record || !record->launches.contains(pilot)) return std::nullopt;
  const auto& nodes = record->launches.at(pilot).nodes;
  if (!nodes.contains(0) || nodes.at(0).pid == 0) return std::nullopt;
  return nodes.at(0);
}

}  // namespace

TEST_CASE("connect starts a hub; a second connect finds the same one; EndHub leaves nothing") {
  FakeDaemon daemon;
  const auto begin = std::chrono::steady_clock::now();
  daemon.link_up();
  const auto cold = std::chrono::steady_clock::now() - begin;
  const auto pid = daemon.hello.pid();
  CHECK(daemon.hello.hub().hub_id() == "h1");
  CHECK(daemon.hello.hub().address().empty());  // nothing listens before a pilot on a node is wanted
  CHECK(daemon.hello.instance() == daemon.instance);
  CHECK(daemon.hello.hub().channel_socket() == daemon.channel_socket.string());
  struct stat info {};
  REQUIRE(stat(daemon.channel_socket.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  REQUIRE(stat((daemon.scratch / "flotilla/hubs/h1.json").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);

  daemon.cut();
  const auto again = std::chrono::steady_clock::now();
  daemon.link_up();
  const auto warm = std::chrono::steady_clock::now() - again;
  CHECK(daemon.hello.pid() == pid);
  WARN("connect to hello: cold " << ms(cold) << " ms, warm " << ms(warm) << " ms");
  daemon.end_hub();
  CHECK(daemon.run_until([&] { return !daemon.linked; }));
  CHECK(daemon.find([](const v1::Frame& f) { return f.has_goodbye(); }));
  CHECK(nothing_left(daemon));
  CHECK_FALSE(std::filesystem::exists(daemon.channel_socket.parent_path()));
  CHECK_FALSE(std::filesystem::exists(daemon.scratch / "flotilla/hubs/h1.json"));
}

TEST_CASE("two connectors at once start one hub") {
  FakeDaemon daemon;
  // The second one's connector runs while the first one's hub may be starting.
  FakeDaemon other;
  other.instance = daemon.instance;
  other.ca = daemon.ca;
  other.hub = daemon.hub;
  other.scratch = daemon.scratch;
  std::string lines[2];
  daemon.begin_connect();
  other.begin_connect();
  lines[0] = daemon.end_connect();
  lines[1] = other.end_connect();
  CHECK(lines[0].starts_with(hub::hub_line_start));
  CHECK(lines[0] == lines[1]);
  int hubs = 0;
  for (const pid_t pid : daemon.processes()) {
    const auto command = read_file("/proc/" + std::to_string(pid) + "/cmdline").value_or("");
    hubs += command.find(std::string("hub\0h1", 6)) != std::string::npos;
  }
  CHECK(hubs == 1);
}

TEST_CASE("what the connector cannot do is said in one line of JSON") {
  FakeDaemon daemon;
  SECTION("scratch_dir") {
    const auto line = daemon.connect([](v1::HubStart& start) { start.set_scratch_dir("/proc/nowhere"); });
    CHECK(line.starts_with("ERROR {"));
    CHECK(line.find("scratch_dir") != std::string::npos);
  }
  SECTION("no instance") {
    CHECK(daemon.connect([](v1::HubStart& start) { start.clear_instance(); }).starts_with("ERROR {"));
  }
  SECTION("certificates") {
    const auto line = daemon.connect([](v1::HubStart& start) { start.set_tls_key("nonsense"); });
    CHECK(line.starts_with("ERROR {"));
    CHECK(line.find("nonsense") == std::string::npos);
  }
  CHECK(nothing_left(daemon));
}

TEST_CASE("a pilot beside the hub: started, runs a command, killed: told at once, nothing left") {
  FakeDaemon daemon;
  daemon.link_up();
  const auto begin = std::chrono::steady_clock::now();
  daemon.launch(7);
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
  WARN("launch to joined: " << ms(std::chrono::steady_clock::now() - begin) << " ms");
  CHECK(daemon.report(7, 0, v1::LaunchReport::STARTING));
  const auto joined = daemon.joined("7.0")->node_joined().node();
  CHECK(joined.beside_hub());
  CHECK(joined.secret().empty());
  daemon.submit_shell("7.0", 1, "echo hello; exit 3");
  REQUIRE(daemon.run_until([&] { return daemon.ended(1); }));
  CHECK(daemon.ended(1)->attempt_ended().exit().code() == 3);
  CHECK(daemon.find([](const v1::Frame& f) { return f.has_output_data() && f.output_data().data() == "hello\n"; }));

  SECTION("killed") {
    daemon.submit_shell("7.0", 2, "setsid sleep 1000 & sleep 1000");
    REQUIRE(daemon.run_until(
        [&] { return daemon.find([](const v1::Frame& f) { return f.has_attempt_running() && f.attempt_running().id().job() == 2; }); }));
    const auto killed = std::chrono::steady_clock::now();
    kill(static_cast<pid_t>(joined.pid()), SIGKILL);
    REQUIRE(daemon.run_until([&] { return daemon.left("7.0"); }));
    CHECK(daemon.left("7.0")->node_left().process_dead());
    CHECK(std::chrono::steady_clock::now() - killed < 2s);
    CHECK(daemon.run_until([&] { return daemon.processes().size() == 1; }));  // the hub
  }
  SECTION("guard and pilot killed together") {
    daemon.submit_shell("7.0", 2, "setsid sleep 1000 & sleep 1000");
    REQUIRE(daemon.run_until(
        [&] { return daemon.find([](const v1::Frame& f) { return f.has_attempt_running() && f.attempt_running().id().job() == 2; }); }));
    pid_t guard = 0;  // as the state file says, which follows a little later
    REQUIRE(daemon.run_until([&] {
      const auto state = read_file(daemon.scratch / "flotilla/hubs/h1.json").value_or("");
      const auto at = state.find("\"guard_pid\": ");
      guard = at == std::string::npos ? 0 : atoi(state.c_str() + at + 13);
      return guard > 1;
    }));
    kill(guard, SIGSTOP);
    kill(static_cast<pid_t>(joined.pid()), SIGKILL);
    kill(guard, SIGKILL);
    REQUIRE(daemon.run_until([&] { return daemon.left("7.0"); }));
    CHECK(daemon.run_until([&] { return daemon.processes().size() == 1; }));
  }
  SECTION("ended by the daemon") {
    v1::Frame end;
    end.set_peer("7.0");
    end.mutable_end_pilot()->set_reason("enough");
    daemon.send(end);
    REQUIRE(daemon.run_until([&] { return daemon.left("7.0"); }));
    CHECK(daemon.left("7.0")->node_left().process_dead());
    CHECK(daemon.find([](const v1::Frame& f) { return f.has_pilot_ending(); }));
    CHECK(daemon.run_until([&] { return daemon.processes().size() == 1; }));
  }
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("a pilot that cannot start is reported with stderr, exit code and host") {
  FakeDaemon daemon;
  daemon.link_up();
  const auto begin = std::chrono::steady_clock::now();
  daemon.launch(7, 1, {}, [](v1::LaunchPilot& order) { order.add_setup("echo no module here >&2; exit 9"); });
  REQUIRE(daemon.run_until([&] { return daemon.report(7, 0, v1::LaunchReport::FAILED); }));
  CHECK(std::chrono::steady_clock::now() - begin < 10s);
  const auto report = daemon.report(7, 0, v1::LaunchReport::FAILED)->launch_report();
  CHECK(report.host() == host_name());
  CHECK(report.exit_code() != 0);
  INFO(report.DebugString());
  CHECK((report.stderr_tail() + report.message()).find("no module here") != std::string::npos);
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("the link is cut and comes back: the pilot's inventory tells what happened") {
  FakeDaemon daemon;
  daemon.link_up();
  daemon.launch(7);
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
  daemon.submit_shell("7.0", 1, "while [ ! -e " + (daemon.dir / "go").string() + " ]; do sleep 0.05; done; exit 5");
  REQUIRE(daemon.run_until([&] { return daemon.find([](const v1::Frame& f) { return f.has_attempt_running(); }); }));
  const auto hub_pid = daemon.hello.pid();
  daemon.cut();
  REQUIRE(write_file(daemon.dir / "go", ""));
  daemon.run_for(300ms);
  const std::size_t before = daemon.frames.size();
  const auto begin = std::chrono::steady_clock::now();
  daemon.link_up();
  CHECK(daemon.hello.pid() == hub_pid);
  REQUIRE(daemon.hello.hub().launches_size() == 1);
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0", before); }));
  WARN("connect to the pilot's inventory: " << ms(std::chrono::steady_clock::now() - begin) << " ms");
  const auto node = daemon.joined("7.0", before)->node_joined().node();
  REQUIRE(node.inventory_size() == 1);
  CHECK(node.inventory(0).exit().code() == 5);
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("the hub is killed: connect starts another, the pilot rejoins, its command goes on") {
  FakeDaemon daemon;
  daemon.link_up();
  daemon.launch(7);
  daemon.launch(8, 1, {"node1"});
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0") && daemon.joined("8.0"); }));
  const std::string go = (daemon.dir / "go").string();
  daemon.submit_shell("7.0", 1, "while [ ! -e " + go + " ]; do sleep 0.05; done; exit 5");
  daemon.submit_shell("8.0", 2, "while [ ! -e " + go + " ]; do sleep 0.05; done; exit 6");
  REQUIRE(daemon.run_until([&] {
    int running = 0;
    for (const auto& f : daemon.frames) running += f.has_attempt_running();
    return running == 2;
  }));
  REQUIRE(daemon.run_until([&] { return recorded(daemon, 7) && recorded(daemon, 8); }));
  const auto old_pid = daemon.hello.pid();
  kill(static_cast<pid_t>(old_pid), SIGKILL);
  REQUIRE(daemon.run_until([&] { return !daemon.linked; }));
  const std::size_t before = daemon.frames.size();
  daemon.link_up();
  CHECK(daemon.hello.pid() != old_pid);
  CHECK(daemon.hello.hub().launches_size() == 2);
  CHECK_FALSE(daemon.hello.hub().address().empty());  // it listens where the one before did
  INFO(daemon.log());
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0", before) && daemon.joined("8.0", before); }));
  CHECK(daemon.joined("7.0", before)->node_joined().node().inventory_size() == 1);
  CHECK_FALSE(daemon.left("7.0", before));
  REQUIRE(write_file(go, ""));
  REQUIRE(daemon.run_until([&] { return daemon.ended(1, before) && daemon.ended(2, before); }));
  CHECK(daemon.ended(1, before)->attempt_ended().exit().code() == 5);
  CHECK(daemon.ended(2, before)->attempt_ended().exit().code() == 6);
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("hub and pilot are both killed: the next hub knows that the pilot is dead") {
  FakeDaemon daemon;
  daemon.link_up();
  daemon.launch(7);
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0") && recorded(daemon, 7); }));
  kill(static_cast<pid_t>(daemon.hello.pid()), SIGKILL);
  kill(static_cast<pid_t>(daemon.joined("7.0")->node_joined().node().pid()), SIGKILL);
  REQUIRE(daemon.run_until([&] { return !daemon.linked; }));
  const std::size_t before = daemon.frames.size();
  daemon.link_up();
  REQUIRE(daemon.run_until([&] { return daemon.left("7.0", before); }));
  CHECK(daemon.left("7.0", before)->node_left().process_dead());
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("nodes over ssh and TLS: in parallel, one down, one with a spare, one without an agent") {
  FakeDaemon daemon;
  daemon.link_up();
  SECTION("one is down and there is a spare") {
    daemon.launch(7, 2, {"node1", "down2", "node3"});
    REQUIRE(daemon.run_until([&] { return daemon.joined("7.0") && daemon.joined("7.1"); }));
    CHECK_FALSE(daemon.joined("7.0")->node_joined().node().beside_hub());
    daemon.submit_shell("7.1", 1, "exit 4");
    REQUIRE(daemon.run_until([&] { return daemon.ended(1); }));
  }
  SECTION("one is down and there is none") {
    const auto begin = std::chrono::steady_clock::now();
    daemon.launch(7, 3, {"node1", "down2", "silent3"});
    REQUIRE(
        daemon.run_until([&] { return daemon.report(7, 1, v1::LaunchReport::FAILED) && daemon.report(7, 2, v1::LaunchReport::FAILED); }));
    CHECK(std::chrono::steady_clock::now() - begin < 10s);
    const auto report = daemon.report(7, 1, v1::LaunchReport::FAILED)->launch_report();
    CHECK(report.exit_code() == 255);
    CHECK(report.host() == "down2");
    CHECK(report.stderr_tail().find("No route to host") != std::string::npos);
    CHECK(daemon.report(7, 2, v1::LaunchReport::FAILED)->launch_report().host() == "silent3");
    REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
  }
  SECTION("the agent is carried there") {
    daemon.launch(7, 1, {"bare1"});
    REQUIRE(daemon.run_until([&] { return daemon.joined("7.0") || daemon.report(7, 0, v1::LaunchReport::FAILED); }, 60s));
    INFO(daemon.log());
    REQUIRE(daemon.joined("7.0"));
    CHECK(std::filesystem::exists(daemon.dir / "home-bare1/.cache/flotilla"));
    const auto node = daemon.joined("7.0")->node_joined().node();
    CHECK(std::filesystem::read_symlink("/proc/" + std::to_string(node.pid()) + "/exe").string().find("home-bare1") != std::string::npos);
  }
  SECTION("a node that fails by itself") {
    daemon.launch(7, 1, {"broken1", "node2"});
    REQUIRE(daemon.run_until([&] { return daemon.report(7, 0, v1::LaunchReport::FAILED); }));
    const auto report = daemon.report(7, 0, v1::LaunchReport::FAILED)->launch_report();
    CHECK(report.exit_code() == 3);
    CHECK(report.stderr_tail() == "disk is full");
  }
  SECTION("a name that ssh would take for an option") {
    daemon.launch(7, 1, {"-oProxyCommand=touch /tmp/x"});
    REQUIRE(daemon.run_until([&] { return daemon.report(7, 0, v1::LaunchReport::FAILED); }));
  }
  SECTION("the process of a node is killed behind a live link") {
    daemon.launch(7, 1, {"node1"});
    REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
    const auto begin = std::chrono::steady_clock::now();
    kill(static_cast<pid_t>(daemon.joined("7.0")->node_joined().node().pid()), SIGKILL);
    REQUIRE(daemon.run_until([&] { return daemon.left("7.0"); }));
    CHECK(std::chrono::steady_clock::now() - begin < 5s);
  }
  SECTION("stopped while it starts") {
    daemon.launch(7, 1, {"silent1"});
    REQUIRE(daemon.run_until([&] { return daemon.report(7, 0, v1::LaunchReport::STARTING); }));
    v1::Frame stop;
    stop.mutable_stop_launch()->set_pilot(7);
    daemon.send(stop);
    REQUIRE(daemon.run_until([&] { return daemon.report(7, 0, v1::LaunchReport::FAILED); }, 3s));
  }
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

namespace {

// A real sshd on loopback with keys of its own, for the host name "real1".
struct RealSshd {
  explicit RealSshd(const FakeDaemon& daemon) {
    const std::string dir = daemon.dir.string();
    unique_fd probe(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in own{};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof own;
    REQUIRE(bind(probe.get(), reinterpret_cast<sockaddr*>(&own), size) == 0);
    REQUIRE(getsockname(probe.get(), reinterpret_cast<sockaddr*>(&own), &size) == 0);
    const std::string port = std::to_string(ntohs(own.sin_port));
    probe.reset();
    for (const char* key : {"host_key", "user_key"}) REQUIRE(system(("ssh-keygen -q -t ed25519 -N '' -f " + dir + "/" + key).c_str()) == 0);
    std::filesystem::copy_file(dir + "/user_key.pub", dir + "/authorized_keys");
    std::filesystem::create_directories("/run/sshd");
    REQUIRE(write_file(dir + "/sshd_config", "Port " + port + "\nListenAddress 127.0.0.1\nHostKey " + dir +
                                                 "/host_key\nAuthorizedKeysFile " + dir +
                                                 "/authorized_keys\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"));
    REQUIRE(
        write_file(dir + "/ssh_config", "Host real*\n  HostName 127.0.0.1\n  Port " + port + "\n  IdentityFile " + dir +
                                            "/user_key\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
                                            "  LogLevel ERROR\n  BatchMode yes\n  ConnectTimeout 5\n"));
    hub::Spawn what;
    what.program = "/usr/sbin/sshd";
    what.argv = {"/usr/sbin/sshd", "-D", "-e", "-f", dir + "/sshd_config"};
    auto started = hub::spawn(what);
    REQUIRE(started);
    child = std::move(*started);
    // It is there when it answers.
    const auto end = std::chrono::steady_clock::now() + 10s;
    for (bool there = false; !there;) {
      REQUIRE(std::chrono::steady_clock::now() < end);
      unique_fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      there = connect(fd.get(), reinterpret_cast<sockaddr*>(&own), sizeof own) == 0;
      if (!there) usleep(10'000);
    }
  }
  ~RealSshd() {
    if (!child.pid) return;
    kill(child.pid, SIGKILL);
    hub::reap(child);
  }
  hub::Child child;
};

}  // namespace

TEST_CASE("a node behind a real sshd: the pilot starts there, and outlives the session that started it") {
  if (getuid() != 0 || access("/usr/sbin/sshd", X_OK) != 0) {
    FAIL("needs root and sshd; scripts/setup installs it");
  }
  FakeDaemon daemon;
  RealSshd sshd(daemon);
  daemon.link_up();
  const auto begin = std::chrono::steady_clock::now();
  daemon.launch(7, 2, {"real1", "real2"});
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0") && daemon.joined("7.1"); }));
  WARN("launch to both nodes joined over a real sshd: " << ms(std::chrono::steady_clock::now() - begin) << " ms");
  CHECK_FALSE(daemon.joined("7.0")->node_joined().node().beside_hub());
  daemon.submit_shell("7.1", 1, "exit 4");
  REQUIRE(daemon.run_until([&] { return daemon.ended(1); }));
  CHECK(daemon.ended(1)->attempt_ended().exit().code() == 4);

  // Another one, whose start is refused by its own setup.
  daemon.launch(8, 1, {"real1"}, [](v1::LaunchPilot& order) { order.add_setup("echo no module here >&2; exit 9"); });
  REQUIRE(daemon.run_until([&] { return daemon.report(8, 0, v1::LaunchReport::FAILED); }));
  CHECK(daemon.report(8, 0, v1::LaunchReport::FAILED)->launch_report().host() == "real1");
  CHECK(daemon.report(8, 0, v1::LaunchReport::FAILED)->launch_report().stderr_tail().find("no module here") != std::string::npos);

  // The sshd is gone: new nodes cannot be reached, those that run go on.
  kill(sshd.child.pid, SIGKILL);
  daemon.launch(9, 1, {"real1"});
  REQUIRE(daemon.run_until([&] { return daemon.report(9, 0, v1::LaunchReport::FAILED); }));
  CHECK(daemon.report(9, 0, v1::LaunchReport::FAILED)->launch_report().exit_code() == 255);
  daemon.submit_shell("7.0", 2, "exit 5");
  REQUIRE(daemon.run_until([&] { return daemon.ended(2); }));
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("a lost socket is bound again, and a lost directory is made again") {
  FakeDaemon daemon;
  daemon.link_up();
  const auto pid = daemon.hello.pid();
  const auto runtime = daemon.channel_socket.parent_path();
  SECTION("a socket") { std::filesystem::remove(runtime / "link.sock"); }
  SECTION("all of it") {
    std::error_code busy;  // the hub may be making it again already
    std::filesystem::remove_all(runtime, busy);
  }
  REQUIRE(daemon.run_until([&] { return std::filesystem::exists(runtime / "link.sock"); }));
  daemon.link_up();
  CHECK(daemon.hello.pid() == pid);
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("a connector of another build replaces a hub without pilots, and keeps one that has some") {
  FakeDaemon daemon;
  daemon.link_up();
  const auto pid = daemon.hello.pid();
  // What a connector of another build would write; our own fills in its own build.
  auto start_as_another_build = [&] {
    v1::HubStart start;
    start.set_instance(daemon.instance);
    start.set_hub_id("h1");
    start.set_tls_ca(daemon.ca.chain);
    start.set_tls_chain(daemon.hub.chain);
    start.set_tls_key(daemon.hub.key);
    start.set_connector_build("another");
    unique_fd socket(*channel::connect_unix(daemon.channel_socket.parent_path() / "link.sock"));
    REQUIRE(hub::write_all(socket.get(), hub::format_hub_start(start)));
    std::string line;
    while (line.empty() || line.back() != '\n') {
      char byte;
      REQUIRE(hub::read_exactly(socket.get(), &byte, 1, std::chrono::steady_clock::now() + 10s));
      line += byte;
    }
    return line;
  };
  SECTION("without pilots") {
    CHECK(start_as_another_build() == hub::replaced_line);
    CHECK(daemon.run_until([&] { return !process_exists(static_cast<pid_t>(pid)); }));
  }
  SECTION("with a pilot") {
    daemon.launch(7);
    REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
    CHECK(start_as_another_build().starts_with(hub::hub_line_start));
    daemon.link_up();
    CHECK(daemon.hello.pid() == pid);
  }
  daemon.link_up();
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("a login on another front end goes on to the hub where it runs; where none runs one is started") {
  if (getuid() != 0 || system("unshare --uts true 2>/dev/null") != 0) {
    FAIL("another host name needs a UTS namespace, and that root");
  }
  FakeDaemon daemon;
  daemon.link_up();
  const auto pid = daemon.hello.pid();
  const auto here = daemon.channel_socket;
  daemon.launch(7);
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
  daemon.connector_host = "other-front-end";
  daemon.link_up();
  CHECK(daemon.hello.pid() == pid);
  CHECK(daemon.hello.host() == host_name());
  CHECK(daemon.channel_socket != here);
  CHECK(channel::connect_unix(daemon.channel_socket));
  const auto there = daemon.channel_socket.parent_path();
  daemon.end_hub();
  CHECK(nothing_left(daemon));
  daemon.link_up();
  CHECK(daemon.hello.host() == "other-front-end");
  daemon.end_hub();
  CHECK(nothing_left(daemon));
  std::filesystem::remove_all(there);
}

TEST_CASE("the hub's log is read and followed, and holds no secret") {
  FakeDaemon daemon;
  daemon.link_up();
  v1::Frame read;
  read.mutable_read_log()->set_request(5);
  read.mutable_read_log()->set_tail_bytes(1 << 20);
  read.mutable_read_log()->set_follow(true);
  daemon.send(read);
  auto text = [&] {
    std::string all;
    for (const auto& f : daemon.frames)
      if (f.has_log_data() && f.log_data().request() == 5) all += f.log_data().data();
    return all;
  };
  REQUIRE(daemon.run_until([&] { return text().find("hub h1 of 'site'") != std::string::npos; }));
  daemon.launch(7);
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
  REQUIRE(daemon.run_until([&] { return recorded(daemon, 7).has_value(); }));
  const std::string secret = recorded(daemon, 7)->secret;
  REQUIRE_FALSE(secret.empty());
  v1::Frame end;
  end.set_peer("7.0");
  end.mutable_end_pilot()->set_reason("enough");
  daemon.send(end);
  REQUIRE(daemon.run_until([&] { return text().find("has left") != std::string::npos; }));
  CHECK(text().find("PRIVATE") == std::string::npos);
  CHECK(text().find("token-") == std::string::npos);
  CHECK(text().find(secret) == std::string::npos);
  read.mutable_read_log()->set_follow(false);
  read.mutable_read_log()->set_request(6);
  read.mutable_read_log()->set_tail_bytes(10);
  daemon.send(read);
  REQUIRE(daemon.run_until([&] {
    return daemon.find([](const v1::Frame& f) { return f.has_log_data() && f.log_data().request() == 6 && f.log_data().eof(); });
  }));
  daemon.end_hub();
  CHECK(nothing_left(daemon));
}

TEST_CASE("cut off for longer than the cut-off, hub and pilots end by themselves") {
  FakeDaemon daemon;
  daemon.connect([](v1::HubStart& start) { start.set_cutoff_ms(3000); });
  REQUIRE(daemon.run_until([&] { return daemon.linked; }));
  daemon.launch(7, 1, {}, [](v1::LaunchPilot& order) { order.set_cutoff_ms(3000); });
  REQUIRE(daemon.run_until([&] { return daemon.joined("7.0"); }));
  daemon.submit_shell("7.0", 1, "trap '' TERM; setsid sleep 1000 & sleep 1000");
  REQUIRE(daemon.run_until([&] { return daemon.find([](const v1::Frame& f) { return f.has_attempt_running(); }); }));
  daemon.cut();
  CHECK(daemon.run_until([&] { return daemon.processes().empty(); }, 15s));

  SECTION("and the next hub there tells what became of them") {
    daemon.connect();
    REQUIRE(daemon.run_until([&] { return daemon.linked; }));
    CHECK(daemon.run_until([&] { return daemon.find([](const v1::Frame& f) { return f.node_left().process_dead(); }); }));
    daemon.end_hub();
    CHECK(nothing_left(daemon));
    CHECK_FALSE(std::filesystem::exists(daemon.scratch / "flotilla/hubs/h1.json"));
  }
}
