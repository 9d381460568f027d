#include "test/integration/transport/machine.hpp"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "proto/base/random.hpp"

namespace {

void run(const std::vector<std::string>& argv) {
  auto child = Child::start(argv, {}, Child::Errors::dropped);
  REQUIRE(child);
  pollfd polled{(*child)->exited_fd(), POLLIN, 0};
  REQUIRE(poll(&polled, 1, 20'000) == 1);
  REQUIRE((*child)->ended() == 0);
}

void put(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

std::string text_of(const fs::path& file) {
  std::ostringstream out;
  out << std::ifstream(file).rdbuf();
  return out.str();
}

int count_entries(const char* folder) {
  int count = 0;
  for ([[maybe_unused]] const auto& each : fs::directory_iterator(folder)) ++count;
  return count;
}

}  // namespace

DeafPort::DeafPort() : fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size);
  port = ntohs(address.sin_port);
}

Home::Home() {
  std::string pattern = "/tmp/fl-home-XXXXXX";
  REQUIRE(mkdtemp(pattern.data()));
  path = pattern;
  fs::create_directories(path / ".ssh");
  chmod((path / ".ssh").c_str(), 0700);
  run({"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key().string()});
  before_ = std::getenv("HOME") ? std::getenv("HOME") : "/root";
  setenv("HOME", path.c_str(), 1);
  setenv("FLOTILLA_RUNTIME_DIR", (path / "run").c_str(), 1);
  unsetenv("SSH_AUTH_SOCK");
}
Home::~Home() {
  setenv("HOME", before_.c_str(), 1);
  unsetenv("FLOTILLA_RUNTIME_DIR");
  std::error_code ignored;
  fs::remove_all(path, ignored);
}
std::string Home::known_hosts() const { return text_of(path / ".ssh" / "known_hosts"); }
std::string Home::ssh_config() const {
  put(path / "ssh_config", "IdentityFile " + key().string() + "\nIdentitiesOnly yes\nUserKnownHostsFile " +
                               (path / ".ssh" / "known_hosts").string() + "\nGlobalKnownHostsFile /dev/null\n");
  return (path / "ssh_config").string();
}

Machine::Machine(const Home& home, const std::string& more) {
  std::string pattern = "/tmp/fl-machine-XXXXXX";
  REQUIRE(mkdtemp(pattern.data()));
  folder_ = pattern;
  chmod(folder_.c_str(), 0755);
  port_ = DeafPort().port;
  fs::copy_file(home.key().string() + ".pub", folder_ / "authorized_keys");
  fs::create_directories(scratch());
  fs::create_directories("/run/sshd");
  put(folder_ / "sshd_config", "Port " + std::to_string(port_) + "\nListenAddress 127.0.0.1\nHostKey " + (folder_ / "host_key").string() +
                                   "\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
                                   "KbdInteractiveAuthentication no\nAuthorizedKeysFile " +
                                   (folder_ / "authorized_keys").string() + "\nLogLevel ERROR\n" + more);
  run({"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", (folder_ / "host_key").string()});
  start();
}
Machine::~Machine() {
  stop();
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

void Machine::start() {
  auto child = Child::start({"/usr/sbin/sshd", "-D", "-f", (folder_ / "sshd_config").string()}, {}, Child::Errors::dropped);
  REQUIRE(child);
  sshd_ = std::move(*child);
  // It listens when a connection is taken; each try is answered at once on loopback.
  for (int tries = 0; tries < 500; ++tries) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port_));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    unique_fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return;
    pollfd polled{sshd_->exited_fd(), POLLIN, 0};
    REQUIRE(poll(&polled, 1, 20) == 0);
  }
  FAIL("sshd does not listen");
}

std::vector<int> Machine::connections() const {
  std::vector<int> pids;
  if (!sshd_) return pids;
  std::ifstream children("/proc/" + std::to_string(sshd_->pid()) + "/task/" + std::to_string(sshd_->pid()) + "/children");
  for (int pid; children >> pid;) pids.push_back(pid);
  return pids;
}
void Machine::end_connections() {
  for (const int pid : connections()) kill(pid, SIGKILL);
}
void Machine::stop() {
  end_connections();
  sshd_.reset();
}
void Machine::new_host_key() {
  stop();
  fs::remove(folder_ / "host_key");
  fs::remove(folder_ / "host_key.pub");
  run({"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", (folder_ / "host_key").string()});
  start();
}

Side::Side(const Home& home) : home(home), channels(make_channel_table(io)) {
  channels->send_frame = [this](std::uint64_t, v1::Frame frame) {
    frame.set_peer("1.0");
    if (connection) connection->send(std::move(frame));
  };
}
Side::~Side() {
  end_hub();
  connection.reset();
}
void Side::end_hub() {
  if (!connection || !hello || ended) return;
  v1::Frame frame;
  frame.mutable_end_hub()->set_stop_pilots(true);
  connection->send(frame);
  until([&] { return ended.has_value(); }, 15s);
}

HubConnectionServices Side::services() { return {io, prompter, *channels, dial_gateway}; }

HubConnectionConfig Side::config(const Machine& machine, const std::string& transport) {
  HubConnectionConfig config;
  config.spec.set_name("hpc1");
  config.spec.set_location(machine.location());
  config.spec.set_driver("ssh");
  config.spec.set_transport(transport);
  config.spec.set_scratch_dir(machine.scratch().string());
  if (transport == "openssh") (*config.spec.mutable_options())["ssh_config"] = home.ssh_config();
  config.instance = random_bytes(16);
  config.agent = packed_beside(FLOTILLA_FAKE_AGENT);
  config.state_dir = home.path / "state";
  fs::create_directories(config.state_dir);
  config.hub_id = "hub1";
  return config;
}

HubConnection& Side::connect(HubConnectionConfig config) {
  hello.reset();
  ended.reset();
  states.clear();
  frames.clear();
  ends = losses = 0;
  HubConnectionEvents events;
  events.on_state = [this](v1::HubState state, std::string message, double) { states.emplace_back(state, std::move(message)); };
  events.on_connected = [this](const v1::Hello& from) { hello = from; };
  events.on_frame = [this](v1::Frame frame) {
    if (frame.has_channel_ack()) channels->on_ack(frame.channel_ack());
    else if (frame.has_channel_end()) channels->on_end(frame.channel_end());
    else if (frame.has_channel_data()) channels->on_data(frame.channel_data());
    else frames.push_back(std::move(frame));
  };
  events.on_ended = [this](const Error& error) {
    ended = error;
    ++ends;
  };
  if (starts_hubs_again)
    events.on_hub_lost = [this](const Error&) {
      hello.reset();
      ++losses;
    };
  connection.reset();
  connection = make_hub_connection(services(), std::move(config), std::move(events));
  connection->start();
  return *connection;
}

bool Side::until(const std::function<bool()>& done, std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  const auto work = boost::asio::make_work_guard(io);  // else it spins while nothing is under way
  while (!done() && std::chrono::steady_clock::now() < end) {
    io.restart();
    io.run_one_for(100ms);
  }
  return done();
}

bool Side::saw(v1::HubState state) const {
  for (const auto& [each, message] : states)
    if (each == state) return true;
  return false;
}

fs::path packed_beside(const fs::path& program) {
  struct Folder {
    Folder() {
      std::string pattern = "/tmp/fl-agents-XXXXXX";
      REQUIRE(mkdtemp(pattern.data()));
      path = pattern;
    }
    ~Folder() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
    fs::path path;
  };
  static const Folder folder;
  const auto copy = folder.path / program.filename();
  if (fs::exists(copy)) return copy;
  fs::copy_file(program, copy);
  const auto data = text_of(program);
  std::string packed(ZSTD_compressBound(data.size()), '\0');
  const auto size = ZSTD_compress(packed.data(), packed.size(), data.data(), data.size(), 1);
  REQUIRE_FALSE(ZSTD_isError(size));
  packed.resize(size);
  put(copy.string() + ".zst", packed);
  return copy;
}

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code ignored;
  for (const auto& each : fs::recursive_directory_iterator(folder, ignored))
    if (!each.is_directory()) files.push_back(each.path());
  return files;
}

int open_fds() { return count_entries("/proc/self/fd"); }
int threads() { return count_entries("/proc/self/task"); }
