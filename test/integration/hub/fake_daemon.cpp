#include "test/integration/hub/fake_daemon.hpp"

#include <dirent.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "hub/hub_start.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"

namespace flotilla::test {
namespace fs = std::filesystem;
namespace {

// Stands for the site's ssh. Hosts: down* cannot be reached, silent* never answer, bare* have no agent yet, broken* cannot run
// a pilot; all others are this machine, seen as if from the network.
constexpr const char* fake_ssh = R"(#!/bin/sh
forward=
while [ $# -gt 0 ]; do case "$1" in -o) shift 2;; -L) forward=$2; shift 2;; -*) shift;; *) break;; esac; done
host=$1; shift
command="$*"
case $host in
  real*) exec /usr/bin/ssh -F @DIR@/ssh_config "$host" "$command";;
  down*) echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255;;
  silent*) exec sleep 100;;
  bare*) command=$(printf '%s' "$command" | sed 's#@AGENT@#/nonexistent/agent#g');;
  broken*) echo "motd of $host"; echo "disk is full" >&2; exit 3;;
esac
if [ -n "$forward" ]; then  # another front end: the test's own host name, and a link for the forwarded socket
  ln -sf "${forward#*:}" "${forward%%:*}"
  exec nsenter --uts=/proc/@PID@/ns/uts sh -c "$command"
fi
echo "Welcome to $host"
export SSH_CONNECTION="127.0.0.1 5555 127.0.0.1 22" HOME="@DIR@/home-$host"
mkdir -p "$HOME"
exec sh -c "$command"
)";

void replace_all(std::string& text, const std::string& what, const std::string& by) {
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size()) text.replace(at, what.size(), by);
}

}  // namespace

FakeDaemon::FakeDaemon() : instance(random_bytes(16)) {
  signal(SIGPIPE, SIG_IGN);
  char name[] = "/tmp/flotilla-hub-test-XXXXXX";
  REQUIRE(mkdtemp(name));
  dir = name;
  scratch = dir / "scratch";
  fs::create_directories(scratch);
  fs::create_directories(dir / "bin");
  std::string script = fake_ssh;
  replace_all(script, "@AGENT@", FLOTILLA_AGENT);
  replace_all(script, "@PID@", std::to_string(getpid()));
  replace_all(script, "@DIR@", dir.string());
  std::ofstream(dir / "bin" / "ssh") << script;
  chmod((dir / "bin" / "ssh").c_str(), 0755);
  ca = *tls::make_ca(instance, wall_ms());
  hub = *tls::issue_intermediate(ca, "h1", wall_ms());
  link::Handlers handlers;
  handlers.on_open = [this](const link::LinkPtr& link) { link_ = link; };
  handlers.on_frame = [this](const link::LinkPtr& link, v1::Frame frame) {
    if (link != link_) return;
    if (frame.has_hello()) {
      hello = frame.hello();
      if (!auto_welcome) return;
      v1::Frame answer;
      answer.mutable_welcome()->set_protocol(1);
      answer.mutable_welcome()->set_build(build_version());
      answer.mutable_welcome()->set_instance(instance);
      link->send(answer);
      linked = true;
      return;
    }
    if (frame.has_node_joined()) {
      v1::Frame answer;
      answer.set_peer(frame.peer());
      answer.mutable_welcome()->set_protocol(1);
      answer.mutable_welcome()->set_instance(instance);
      link->send(answer);
    }
    frames.push_back(std::move(frame));
  };
  handlers.on_closed = [this](const link::LinkPtr& link, const std::string& cause) {
    if (link != link_) return;
    link_.reset();
    linked = false;
    link_cause = cause;
  };
  server_.emplace(io, std::move(handlers), link::keepalive_remote);
}

FakeDaemon::~FakeDaemon() {
  cut();
  server_.reset();
  for (int round = 0; round < 20; ++round) {
    const auto left = processes();
    if (left.empty()) break;
    for (const pid_t pid : left) kill(pid, SIGKILL);
    usleep(20'000);
  }
  std::error_code ignored;
  if (!channel_socket.empty()) fs::remove_all(channel_socket.parent_path(), ignored);
  // A guard that has lost its pilot writes its last line and goes, without the environment that processes() looks for.
  for (int round = 0; round < 50 && fs::exists(dir, ignored); ++round) {
    fs::remove_all(dir, ignored);
    usleep(20'000);
  }
}

std::string FakeDaemon::connect(const std::function<void(v1::HubStart&)>& change) {
  begin_connect(change);
  return end_connect();
}

void FakeDaemon::begin_connect(const std::function<void(v1::HubStart&)>& change) {
  cut();
  v1::HubStart start;
  start.set_instance(instance);
  start.set_hub_id("h1");
  start.set_tls_ca(ca.chain);
  start.set_tls_chain(hub.chain);
  start.set_tls_key(hub.key);
  start.set_scratch_dir(scratch.string());
  start.set_link_token("token-" + std::to_string(++tokens_));
  start.set_resource("site");
  start.set_debug(true);
  if (change) change(start);
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  unique_fd ours(ends[0]), theirs(ends[1]);
  hub::Spawn what;
  what.program = FLOTILLA_AGENT;
  what.argv = {"flotilla-agent", "connect", "--instance", to_hex(instance)};
  if (!connector_host.empty()) {
    what.program = "unshare";
    what.argv = {"unshare", "--uts", "sh", "-c", "hostname " + connector_host + " && exec " FLOTILLA_AGENT " connect"};
  }
  what.env["PATH"] = (dir / "bin").string() + ":" + std::getenv("PATH");
  what.env["HOME"] = dir.string();
  what.in = what.out = theirs.get();
  what.err = 2;
  auto child = hub::spawn(what);
  REQUIRE(child);
  connector_ = std::move(*child);
  theirs.reset();
  REQUIRE(hub::write_all(ours.get(), hub::format_hub_start(start)));
  connecting_ = std::move(ours);
}

std::string FakeDaemon::end_connect() {
  std::string line;
  while (line.empty() || line.back() != '\n') {
    char byte;
    const auto got = hub::read_exactly(connecting_.get(), &byte, 1, std::chrono::steady_clock::now() + 20s);
    INFO(line);
    if (!got) FAIL(got.error().text());
    line += byte;
  }
  if (line.starts_with(hub::hub_line_start)) {
    channel_socket = line.substr(line.rfind(' ') + 1, line.size() - line.rfind(' ') - 2);
    server_->add_fd(std::move(connecting_));
  }
  return line;
}

void FakeDaemon::link_up() {
  hello.Clear();
  const std::string line = connect();
  INFO(line << log());
  REQUIRE(line.starts_with(hub::hub_line_start));
  REQUIRE(run_until([&] { return linked; }));
  CHECK(hello.link_token() == "token-" + std::to_string(tokens_));
}

void FakeDaemon::cut() {
  if (link_) {
    link_->detach();
    link_->abort();
    link_.reset();
  }
  linked = false;
  if (connector_.pid) {
    kill(connector_.pid, SIGKILL);
    hub::reap(connector_);
    connector_ = {};
  }
}

bool FakeDaemon::run_until(const std::function<bool()>& done, std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!done() && std::chrono::steady_clock::now() < end) {
    io.restart();
    io.run_one_for(20ms);
  }
  return done();
}
void FakeDaemon::run_for(std::chrono::milliseconds time) {
  io.restart();
  io.run_for(time);
}

void FakeDaemon::send(v1::Frame frame) {
  REQUIRE(link_);
  link_->send(std::move(frame));
}

void FakeDaemon::launch(std::uint64_t pilot, std::uint32_t nodes, std::vector<std::string> hosts,
                        const std::function<void(v1::LaunchPilot&)>& change) {
  v1::Frame frame;
  auto* order = frame.mutable_launch_pilot();
  order->set_pilot(pilot);
  order->mutable_spec()->set_resource("site");
  order->mutable_spec()->set_node_count(nodes);
  order->mutable_spec()->set_slots_per_node(2);
  order->set_scratch_dir(scratch.string());
  order->set_idle_ms(-1);
  for (const auto& host : hosts) order->add_hosts(host);
  if (change) change(*order);
  send(std::move(frame));
}

void FakeDaemon::submit_shell(const std::string& peer, std::uint64_t job, const std::string& script) {
  v1::Frame frame;
  frame.set_peer(peer);
  auto* start = frame.mutable_start_attempt();
  start->mutable_id()->set_job(job);
  start->mutable_id()->set_attempt(1);
  for (const char* word : {"sh", "-c"}) start->mutable_spec()->mutable_command()->add_argv(word);
  start->mutable_spec()->mutable_command()->add_argv(script);
  send(std::move(frame));
}

void FakeDaemon::end_hub() {
  v1::Frame frame;
  frame.mutable_end_hub()->set_stop_pilots(true);
  send(std::move(frame));
}

std::vector<pid_t> FakeDaemon::processes() const {
  std::vector<pid_t> found;
  const std::string wanted = "FLOTILLA_INSTANCE=" + to_hex(instance);
  DIR* all = opendir("/proc");
  while (const dirent* entry = readdir(all)) {
    const pid_t pid = atoi(entry->d_name);
    if (pid <= 1) continue;
    const auto environment = read_file("/proc/" + std::string(entry->d_name) + "/environ");
    if (environment && environment->find(wanted) != std::string::npos && process_exists(pid)) found.push_back(pid);
  }
  closedir(all);
  return found;
}

std::string FakeDaemon::log() const { return read_file(scratch / "flotilla" / "logs" / "hub-h1.log").value_or(""); }

bool process_exists(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(in, text);
  const auto at = text.rfind(')');
  return at != std::string::npos && at + 2 < text.size() && text[at + 2] != 'Z' && text[at + 2] != 'X';
}

}  // namespace flotilla::test
