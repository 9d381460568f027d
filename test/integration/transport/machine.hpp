// Another machine, as far as ssh can tell: a real sshd of the test's own on loopback, with its own keys; and the daemon's side.
#pragma once

#include <boost/asio/io_context.hpp>
#include <catch2/catch.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "daemon/transport/channel_table.hpp"
#include "daemon/transport/hub_connection.hpp"
#include "daemon/transport/spawn.hpp"

namespace fs = std::filesystem;
using namespace flotilla;
using namespace flotilla::daemon;
using namespace std::chrono_literals;

// A port of loopback that is bound and not listened on: it refuses, and nobody else gets it meanwhile.
struct DeafPort {
  DeafPort();
  unique_fd fd;
  int port = 0;
};

// A folder of the test, which is $HOME while it lives (known_hosts, keys), with FLOTILLA_RUNTIME_DIR inside.
class Home {
 public:
  Home();
  ~Home();
  fs::path path;
  fs::path key() const { return path / ".ssh" / "id_ed25519"; }
  std::string known_hosts() const;
  // For the system's ssh, which does not look at $HOME.
  std::string ssh_config() const;

 private:
  std::string before_, runtime_before_;
};

class Machine {
 public:
  explicit Machine(const Home& home, const std::string& more = {});
  ~Machine();
  void stop();             // the listener and all its connections
  void new_host_key();     // as if it was set up anew
  void end_connections();  // kills the sshd of each connection, not the listener
  int port() const { return port_; }
  std::string location() const { return "root@127.0.0.1:" + std::to_string(port_); }
  fs::path scratch() const { return folder_ / "scratch"; }
  std::vector<int> connections() const;  // pids

 private:
  void start();
  fs::path folder_;
  int port_ = 0;
  std::unique_ptr<Child> sshd_;
};

class TestPrompter final : public Prompter {
 public:
  std::uint64_t ask(v1::Prompt prompt, Answer answer) override {
    asked.push_back(prompt);
    if (hold) {
      held.push_back(std::move(answer));
      return ++tokens;
    }
    auto reply = respond ? respond(prompt) : Result<std::string>(fail(Code::failed_precondition, "nobody is there to answer"));
    answer(std::move(reply));
    return ++tokens;
  }
  void withdraw(std::uint64_t token) override { withdrawn.push_back(token); }
  bool accepts_new_host_keys(const std::string&) const override { return accept_new; }

  std::function<Result<std::string>(const v1::Prompt&)> respond;
  std::vector<v1::Prompt> asked;
  std::vector<std::uint64_t> withdrawn;
  std::vector<Answer> held;
  bool hold = false, accept_new = true;
  std::uint64_t tokens = 0;
};

// The daemon's side of one resource.
class Side {
 public:
  explicit Side(const Home& home);
  ~Side();
  HubConnectionConfig config(const Machine& machine, const std::string& transport = "libssh");
  HubConnection& connect(HubConnectionConfig config);
  // Runs the io thread's work until it holds, at most 30 s.
  bool until(const std::function<bool()>& done, std::chrono::milliseconds limit = 30s);
  bool until_connected() {
    const bool over = until([&] { return hello || ended; });
    if (ended) UNSCOPED_INFO(ended->text());
    return over && hello.has_value();
  }
  HubConnectionServices services();
  void end_hub();

  const Home& home;
  boost::asio::io_context io;
  TestPrompter prompter;
  std::unique_ptr<ChannelTable> channels;
  std::function<void(const std::string&, int, std::function<void(Result<unique_fd>)>)> dial_gateway;
  std::vector<std::pair<v1::HubState, std::string>> states;
  std::vector<v1::Frame> frames;
  std::optional<v1::Hello> hello;
  std::optional<Error> ended;
  int ends = 0;
  bool starts_hubs_again = false;  // in the login that is there; `hello` is empty meanwhile
  int losses = 0;
  std::unique_ptr<HubConnection> connection;
  bool saw(v1::HubState state) const;
};

// The program with its packed form beside it, as an installation has it: packing it thoroughly for each test would take longer than the test.
fs::path packed_beside(const fs::path& program);
// The files in a folder and below; none where there is no folder.
std::vector<fs::path> files_in(const fs::path& folder);
int open_fds();
int threads();
