#include "hub/core/node_script.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>

using namespace flotilla::hub;
namespace fs = std::filesystem;

namespace {

// A node's shell with a home of its own, where `id` says what the test wants.
struct NodeShell {
  NodeShell() {
    char name[] = "/tmp/flnode-XXXXXX";
    dir = mkdtemp(name);
    fs::create_directories(dir / "bin");
    be(std::to_string(getuid()));
  }
  ~NodeShell() { fs::remove_all(dir); }
  static void program(const fs::path& file, const std::string& script) {
    std::ofstream(file) << "#!/bin/sh\n" << script << "\n";
    fs::permissions(file, fs::perms::owner_all);
  }
  void be(const std::string& uid) { program(dir / "bin" / "id", "echo " + uid); }
  std::string run(const std::string& command) {
    std::ofstream(dir / "command") << command << "\n";
    const std::string line =
        "HOME=" + dir.string() + "/home PATH=" + dir.string() + "/bin:$PATH sh " + dir.string() + "/command </dev/null";
    FILE* pipe = popen(line.c_str(), "r");
    std::string out;
    char buffer[4096];
    for (std::size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
    pclose(pipe);
    return out;
  }
  fs::path dir;
};

}  // namespace

TEST_CASE("STARTED is read, and nothing that looks like it") {
  const auto started = parse_started("STARTED 12 34");
  REQUIRE(started);
  CHECK(started->guard_pid == 12);
  CHECK(started->pid == 34);
  CHECK(parse_started("STARTED 12 34\r"));
  for (const char* line : {"", "STARTED", "STARTED 1", "STARTED 1 2 3", "STARTED 0 2", "STARTED 1 0", "STARTED a b", "STARTED -1 2",
                           "started 1 2", "STARTED 1 99999999999", "NOTSTARTED 1 2"}) {
    INFO(line);
    CHECK_FALSE(parse_started(line));
  }
}

TEST_CASE("the node's line is found among what a login shell prints") {
  const auto line = parse_node_line("FLOTILLA-NODE 1 have x86_64 10.0.0.1 50222 10.0.0.7 22");
  REQUIRE(line);
  CHECK(line->have);
  CHECK(line->machine == "x86_64");
  CHECK(line->hub_address == "10.0.0.1");
  CHECK(line->node_address == "10.0.0.7");
  const auto bare = parse_node_line("FLOTILLA-NODE 1 need aarch64 ");
  REQUIRE(bare);
  CHECK_FALSE(bare->have);
  CHECK(bare->hub_address.empty());
  for (const char* other : {"", "Welcome to node1", "FLOTILLA-NODE 1 ", "FLOTILLA-NODE 1 maybe x86_64", "FLOTILLA-NODE 2 have x86_64",
                            " FLOTILLA-NODE 1 have x86_64"}) {
    INFO(other);
    CHECK_FALSE(parse_node_line(other));
  }
}

TEST_CASE("hosts that ssh or a shell could misread are refused") {
  for (const char* good : {"node1", "user@node-1.site.org", "10.0.0.1", "fd00::1", "fe80::1%eth0"}) {
    INFO(good);
    CHECK(check_host(good));
  }
  for (const char* bad : {"", "-oProxyCommand=x", "a b", "a;b", "$(x)", "a'b", "a\nb"}) {
    INFO(bad);
    CHECK_FALSE(check_host(bad));
  }
}

TEST_CASE("ssh is asked for a login that never prompts, and the host stands before the command") {
  const auto argv = ssh_argv("n1", 5, "cmd");
  CHECK(argv.front() == "ssh");
  CHECK(argv[argv.size() - 2] == "n1");
  CHECK(argv.back() == "cmd");
  CHECK(std::count(argv.begin(), argv.end(), "BatchMode=yes") == 1);
  CHECK(std::count(argv.begin(), argv.end(), "ConnectTimeout=5") == 1);
}

TEST_CASE("the commands are one line that csh takes as well as sh") {
  const Agent agent{"/home/u/.cache/flotilla/agent 1", std::string(64, 'a'), "0.1.0+abc"};
  for (const auto& command : {start_command(agent), store_command(agent)}) {
    INFO(command);
    CHECK(command.find('\n') == std::string::npos);
    CHECK(command.find("! ") == std::string::npos);
    CHECK(command.starts_with("exec sh -c '"));
  }
}

TEST_CASE("an agent is run on a node only where nobody else could have put it") {
  NodeShell node;
  const Agent agent{(node.dir / "nowhere" / "agent").string(), std::string(64, 'a'), "0.1.0+abc"};
  const std::string name = "flotilla-agent-" + agent.sha256.substr(0, 16);
  const auto has_run = node.dir / "has-run";
  const std::string program = "touch " + has_run.string() + "; echo '" + agent.build + "'";
  const auto have = [&] { return node.run(start_command(agent)).starts_with("FLOTILLA-NODE 1 have "); };
  const auto home = node.dir / "home/.cache/flotilla";
  fs::create_directories(home);
  fs::permissions(home, fs::perms::owner_all);
  NodeShell::program(home / name, program);
  SECTION("ours") {
    CHECK(have());
    CHECK(fs::exists(has_run));
  }
  SECTION("a directory that others may write, until it is stored anew") {
    fs::permissions(home, fs::perms::all);
    CHECK_FALSE(have());
    CHECK_FALSE(fs::exists(has_run));
    CHECK(node.run(store_command(agent)).find("STORED " + (home / name).string()) != std::string::npos);
    CHECK((fs::status(home).permissions() & (fs::perms::group_write | fs::perms::others_write)) == fs::perms::none);
  }
  SECTION("a file that others may write") {
    fs::permissions(home / name, fs::perms::all);
    CHECK_FALSE(have());
    CHECK_FALSE(fs::exists(has_run));
  }
  SECTION("a directory of somebody else") {
    const std::string uid = "4" + std::to_string(1'000'000'000 + getpid());
    const fs::path place = "/tmp/flotilla-" + uid;
    fs::create_directories(place);
    NodeShell::program(place / name, program);
    fs::remove_all(home);
    node.be(uid);
    CHECK_FALSE(have());
    CHECK_FALSE(fs::exists(has_run));
    // Nor is anything stored there.
    CHECK(node.run(store_command(agent)).find("STORED") == std::string::npos);
    fs::remove_all(place);
    fs::remove_all("/dev/shm/flotilla-" + uid);
  }
}

TEST_CASE("a failed start is one sentence with host, exit code and the last words") {
  CHECK(describe_failure("n1", 255, 0, "noise\nssh: connect to host n1 port 22: No route to host\n") ==
        "ssh to n1 failed (exit code 255): ssh: connect to host n1 port 22: No route to host");
  CHECK(describe_failure("n1", 3, 0, "no space\n") == "the pilot on n1 did not start (exit code 3): no space");
  CHECK(describe_failure("n1", -1, 9, "") == "the pilot on n1 did not start: killed by signal 9");
  CHECK(describe_failure("n1", 0, 0, "").find("did not say") != std::string::npos);
}

TEST_CASE("what setup lines say comes with their limit") {
  const auto line = parse_setup_line("SETUP 600000 setting up: loading modules");
  REQUIRE(line);
  CHECK(line->limit_ms == 600'000);
  CHECK(line->text == "setting up: loading modules");
  const auto over = parse_setup_line("SETUP 0");
  REQUIRE(over);
  CHECK(over->limit_ms == 0);
  CHECK(over->text.empty());
  for (const char* other : {"", "SETUP", "SETUP ", "SETUP x", "STARTED 1 2", "a SETUP 5"}) CHECK_FALSE(parse_setup_line(other));
}

TEST_CASE("tails begin at a line") {
  CHECK(tail_of("one\ntwo\nthree\n", 100) == "one\ntwo\nthree");
  CHECK(tail_of("one\ntwo\nthree\n", 9) == "three");
  CHECK(tail_of("abcdefghij", 4) == "ghij");
  CHECK(tail_of("", 4).empty());
}

TEST_CASE("addresses are written and read alike") {
  for (const auto& [address, port] : {std::pair<std::string, int>{"10.0.0.1", 80}, {"fd00::1", 65535}, {"host", 1}}) {
    const auto read = parse_address(format_address(address, port));
    REQUIRE(read);
    CHECK(read->first == address);
    CHECK(read->second == port);
  }
  for (const char* bad : {"", "host", ":80", "host:", "host:x", "host:70000", "host:-1"}) {
    INFO(bad);
    CHECK_FALSE(parse_address(bad));
  }
}
