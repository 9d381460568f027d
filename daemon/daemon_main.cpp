// `flotilla daemon run`: the daemon in the foreground. `flotilla daemon start` runs it with --ready-fd.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstring>
#include <thread>

#include "daemon/api/service.hpp"
#include "daemon/coordinator/coordinator.hpp"
#include "proto/base/log.hpp"
#include "proto/base/open_files.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/programs.hpp"
#include "proto/base/version.hpp"

namespace flotilla {
namespace {
namespace fs = std::filesystem;

constexpr auto end_patience = std::chrono::seconds(3);  // for open calls to end when the daemon does

// The agent lies beside this program, or, in a build tree or an installation, near it.
Result<fs::path> find_agent(const fs::path& configured) {
  std::error_code problem;
  const char* variable = std::getenv("FLOTILLA_AGENT");
  const bool by_variable = variable && *variable;
  if (by_variable || !configured.empty()) {
    const fs::path named = by_variable ? fs::path(variable) : configured;
    if (fs::is_regular_file(named, problem) && access(named.c_str(), X_OK) == 0) return fs::weakly_canonical(named);
    const char* why = fs::is_directory(named, problem) ? "it is a folder"
                      : fs::exists(named, problem)     ? "it is not executable"
                                                       : "there is no such file";
    return fail(Code::not_found, fmt::format("{} cannot be the agent: {}", named.string(), why),
                by_variable ? "FLOTILLA_AGENT names it" : "[daemon] agent in the configuration names it");
  }
  const fs::path here = fs::read_symlink("/proc/self/exe", problem).parent_path();
  for (const char* place :
       {"flotilla-agent", "../libexec/flotilla/flotilla-agent", "../../proto/flotilla-agent", "../proto/flotilla-agent"})
    if (access((here / place).c_str(), X_OK) == 0) return fs::weakly_canonical(here / place);
  return fail(Code::not_found,
              fmt::format("there is no flotilla-agent beside {}, nor in ../libexec/flotilla from there", (here / "flotilla").string()),
              "set FLOTILLA_AGENT, or [daemon] agent in the configuration");
}

// What the starter reads: "ready", or why not.
class ReadyPipe {
 public:
  explicit ReadyPipe(int fd) : fd_(fd) {
    if (fd >= 0) fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  void say(const std::string& text) {
    if (fd_ < 0) return;
    [[maybe_unused]] const ssize_t n = write(fd_, text.data(), text.size());
    close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

int run(ReadyPipe& ready, bool foreground, bool local_pilot) {
  using namespace daemon;
  auto refuse = [&](const Error& error) {
    ready.say(error.text() + "\n");
    if (foreground) fmt::print(stderr, "flotilla: {}\n", error.text());
    spdlog::error("not started: {}", error.text());
    return 1;
  };
  Coordinator::Places places;
  places.state = state_dir();
  places.runtime = runtime_dir();
  places.config_file = config_file();
  places.log_file = places.state / "logs" / "daemon.log";
  for (const auto& dir : {places.state, places.state / "logs", places.runtime})
    if (auto status = make_private_dir(dir); !status) return refuse(status.error());
  if (auto status = init_log(places.log_file, foreground ? LogTo::file_and_stderr : LogTo::file); !status) return refuse(status.error());
  auto config = load_config(places.config_file, config_file_named() ? Missing::refused : Missing::defaults);
  if (!config) return refuse(config.error());
  config->starts_local_pilot = local_pilot;
  set_log_debug(config->debug);
  if (!config->log_links.empty()) link_log(places.log_file, config->log_links, host_name());
  auto agent = find_agent(config->agent);
  if (!agent) return refuse(agent.error());
  places.agent = *agent;
  auto journal = Journal::open(places.state, config->durability);
  if (!journal) return refuse(journal.error());

  spdlog::info("flotilla {} (pid {}), state in {}, sockets in {}", build_version(), getpid(), places.state.string(),
               places.runtime.string());
  boost::asio::io_context io(1);
  Coordinator coordinator(io, *config, places, std::move(*journal));
  ClientApi api(io, coordinator);
  coordinator.on_end = [&] { io.stop(); };
  if (auto status = coordinator.start(); !status) return refuse(status.error());
  if (auto status = api.listen(places.runtime / "daemon.sock"); !status) return refuse(status.error());
  boost::asio::signal_set signals(io, SIGTERM, SIGINT);
  signals.async_wait([&](boost::system::error_code code, int signal) {
    if (code) return;
    spdlog::info("ended by signal {}; pilots and jobs go on", signal);
    io.stop();
  });
  ready.say("ready\n");
  for (;;) {
    try {
      io.run();
      break;
    } catch (const std::exception& bug) {
      // A defect. Going on with half a decision would be worse than a restart, which the journal makes cheap.
      spdlog::critical("a defect: {}", bug.what());
      spdlog::default_logger()->flush();
      _exit(70);  // calls that are open must not keep the journal locked
    }
  }
  // Calls that are open (a client at a job's output, say) end on this thread, while another one waits for them.
  coordinator.begin_end();
  api.stop();
  io.restart();
  auto work = boost::asio::make_work_guard(io);
  boost::asio::steady_timer patience(io, end_patience);
  patience.async_wait([](boost::system::error_code code) {
    if (code) return;
    spdlog::warn("some calls did not end; the daemon ends without them");
    _exit(0);  // all that was acknowledged is in the journal
  });
  std::thread ending([&] {
    api.end();
    boost::asio::post(io, [&] { io.stop(); });
  });
  io.run();
  ending.join();
  spdlog::info("the daemon ends");
  return 0;
}

}  // namespace

int daemon_main(int argc, char** argv) {
  int ready_fd = -1;
  bool local_pilot = true;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--ready-fd") && i + 1 < argc) {
      ready_fd = std::atoi(argv[++i]);
    } else if (!std::strcmp(argv[i], "--no-local-pilot")) {  // only to stop what an earlier one has left
      local_pilot = false;
    } else if (std::strcmp(argv[i], "run") != 0) {
      fmt::print(stderr, "flotilla: daemon run does not know '{}'\n", argv[i]);
      return 2;
    }
  }
  signal(SIGPIPE, SIG_IGN);
  umask(0077);
  raise_open_file_limit();  // clients, channels and pilots hold descriptors
  ReadyPipe ready(ready_fd);
  return run(ready, ready_fd < 0, local_pilot);
}

}  // namespace flotilla
