// A daemon as a hub sees it, for tests: runs the real `flotilla-agent connect` as ssh would, speaks on its stdin and stdout.
// Everything lies in a directory of its own; a program named ssh in it stands for the site's ssh.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "flotilla/v1/link.pb.h"
#include "hub/spawn.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/link/link.hpp"
#include "proto/tls/certificate.hpp"

namespace flotilla::test {

using namespace std::chrono_literals;

class FakeDaemon {
 public:
  FakeDaemon();
  ~FakeDaemon();  // kills what is left of this instance

  // Runs a connector; returns its line. With FLOTILLA-HUB the link is taken up.
  std::string connect(const std::function<void(v1::HubStart&)>& change = {});
  // In two steps: the connector runs; it has answered.
  void begin_connect(const std::function<void(v1::HubStart&)>& change = {});
  std::string end_connect();
  // The connector runs on a host of this name (a UTS namespace of its own); empty = this host.
  std::string connector_host;
  // Connects, waits for Hello, welcomes the hub.
  void link_up();
  void cut();  // kills the connector
  bool run_until(const std::function<bool()>& done, std::chrono::milliseconds limit = 15s);
  void run_for(std::chrono::milliseconds time);
  void send(v1::Frame frame);
  void launch(std::uint64_t pilot, std::uint32_t nodes = 1, std::vector<std::string> hosts = {},
              const std::function<void(v1::LaunchPilot&)>& change = {});
  void submit_shell(const std::string& peer, std::uint64_t job, const std::string& script);
  void end_hub();

  // What came, in order.
  std::vector<v1::Frame> frames;
  template <class F>
  const v1::Frame* find(F f, std::size_t from = 0) const {
    for (std::size_t i = from; i < frames.size(); ++i)
      if (f(frames[i])) return &frames[i];
    return nullptr;
  }
  const v1::Frame* joined(const std::string& peer, std::size_t from = 0) const {
    return find([&](const v1::Frame& f) { return f.has_node_joined() && f.peer() == peer; }, from);
  }
  const v1::Frame* left(const std::string& peer, std::size_t from = 0) const {
    return find([&](const v1::Frame& f) { return f.has_node_left() && f.peer() == peer; }, from);
  }
  const v1::Frame* ended(std::uint64_t job, std::size_t from = 0) const {
    return find([&](const v1::Frame& f) { return f.has_attempt_ended() && f.attempt_ended().id().job() == job; }, from);
  }
  const v1::Frame* report(std::uint64_t pilot, std::uint32_t node, v1::LaunchReport::Stage stage, std::size_t from = 0) const {
    return find(
        [&](const v1::Frame& f) {
          return f.has_launch_report() && f.launch_report().pilot() == pilot && f.launch_report().node() == node &&
                 f.launch_report().stage() == stage;
        },
        from);
  }
  std::vector<pid_t> processes() const;  // of this instance, no zombies
  std::string log() const;

  std::filesystem::path dir, scratch;
  std::string instance;
  std::filesystem::path channel_socket;
  v1::Hello hello;
  bool linked = false, auto_welcome = true;
  std::string link_cause;  // why it ended
  boost::asio::io_context io;
  tls::Authority ca, hub;

 private:
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{io.get_executor()};
  std::optional<link::Server> server_;
  link::LinkPtr link_;
  hub::Child connector_;
  unique_fd connecting_;
  int tokens_ = 0;
};

bool process_exists(pid_t pid);

}  // namespace flotilla::test
