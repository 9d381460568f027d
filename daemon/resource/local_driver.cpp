#include "daemon/resource/local_driver.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>

#include "proto/base/open_files.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/unique_fd.hpp"

extern char** environ;

namespace flotilla::daemon {
namespace asio = boost::asio;

namespace {
constexpr std::size_t stderr_kept = 4096;  // bytes of a failed start's stderr that are shown
int open_pidfd(int pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

class Watch final : public ProcessWatch, public std::enable_shared_from_this<Watch> {
 public:
  Watch(asio::io_context& io, std::function<void()> gone) : io_(io), descriptor_(io), gone_(std::move(gone)) {}
  void begin(int pid) {
    const int fd = open_pidfd(pid);
    if (fd < 0) {
      asio::post(io_, [weak = weak_from_this()] {
        if (auto self = weak.lock()) self->gone_();
      });
      return;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    descriptor_.assign(fd);
    descriptor_.async_wait(asio::posix::stream_descriptor::wait_read, [weak = weak_from_this()](boost::system::error_code code) {
      if (auto self = weak.lock(); self && !code) self->gone_();
    });
  }

 private:
  asio::io_context& io_;
  asio::posix::stream_descriptor descriptor_;
  std::function<void()> gone_;
};
}  // namespace

unique_fd guard_of(int pilot_pid) {
  std::ifstream status("/proc/" + std::to_string(pilot_pid) + "/status");
  int parent = 0;
  for (std::string line; std::getline(status, line);)
    if (std::sscanf(line.c_str(), "PPid: %d", &parent) == 1) break;
  if (parent <= 1) return {};
  unique_fd guard(open_pidfd(parent));
  std::ifstream cmdline("/proc/" + std::to_string(parent) + "/cmdline");
  std::string program;
  std::getline(cmdline, program, '\0');
  if (program.find("flotilla-agent") == std::string::npos) return {};
  return guard;
}

bool process_ended(const unique_fd& pidfd) {
  pollfd wait{pidfd.get(), POLLIN, 0};
  return poll(&wait, 1, 0) != 0;
}

std::shared_ptr<ProcessWatch> ProcessWatch::start(asio::io_context& io, int pid, std::function<void()> gone) {
  auto watch = std::make_shared<Watch>(io, std::move(gone));
  watch->begin(pid);
  return watch;
}

struct LocalDriver::Launch {
  explicit Launch(asio::io_context& io) : in(io), out(io), err(io), exited(io) {}
  std::uint64_t pilot = 0;
  std::uint32_t node = 0;
  pid_t pid = -1;
  std::string config;
  asio::posix::stream_descriptor in, out, err, exited;
  std::string out_text, err_text;
  char out_buffer[512], err_buffer[2048];
  int open_ends = 3;  // out, err, exit
  int status = 0;
};

LocalDriver::LocalDriver(asio::io_context& io, std::filesystem::path agent, Report report)
    : io_(io), agent_(std::move(agent)), report_(std::move(report)) {}
LocalDriver::~LocalDriver() = default;

void LocalDriver::launch(const v1::PilotStart& start) {
  auto launch = std::make_shared<Launch>(io_);
  launch->pilot = start.pilot();
  launch->node = start.node();
  auto failed = [&](std::string message) {
    v1::LaunchReport report;
    report.set_pilot(start.pilot());
    report.set_node(start.node());
    report.set_host(host_name());
    report.set_stage(v1::LaunchReport::FAILED);
    report.set_message(std::move(message));
    asio::post(io_, [this, report] { report_(report); });
  };
  if (const auto made = google::protobuf::util::MessageToJsonString(start, &launch->config); !made.ok())
    return failed("its description cannot be written: " + std::string(made.message()));
  unique_fd in[2], out[2], err[2];
  for (auto* ends : {in, out, err}) {
    int made[2];
    if (pipe2(made, O_CLOEXEC) != 0) return failed("cannot make pipes for the pilot: " + std::string(std::strerror(errno)));
    ends[0].reset(made[0]);
    ends[1].reset(made[1]);
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0].get(), 0);
  posix_spawn_file_actions_adddup2(&actions, out[1].get(), 1);
  posix_spawn_file_actions_adddup2(&actions, err[1].get(), 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::string program = agent_.string(), part = "pilot";
  char* argv[] = {program.data(), part.data(), nullptr};
  const int result = posix_spawn(&launch->pid, program.c_str(), &actions, &attributes, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (result == 0) restore_open_file_limit(launch->pid);  // before it has read its configuration and starts more
  in[0].reset();
  out[1].reset();
  err[1].reset();
  if (result != 0) return failed(fmt::format("cannot start {}: {}", program, std::strerror(result)));
  launch->in.assign(in[1].release());
  launch->out.assign(out[0].release());
  launch->err.assign(err[0].release());
  launch->exited.assign(open_pidfd(launch->pid));
  launches_[start.pilot()] = launch;

  asio::async_write(launch->in, asio::buffer(launch->config), [launch](boost::system::error_code, std::size_t) {
    boost::system::error_code ignored;
    launch->in.close(ignored);
    launch->config.clear();
  });
  // Reads one stream to its end; long texts keep their last bytes.
  struct Reader {
    static void read(LocalDriver* driver, std::shared_ptr<Launch> launch, asio::posix::stream_descriptor& from, std::string& text,
                     asio::mutable_buffer buffer) {
      from.async_read_some(buffer, [=, &from, &text](boost::system::error_code code, std::size_t n) {
        text.append(static_cast<const char*>(buffer.data()), n);
        if (&text == &launch->out_text) driver->take_progress(*launch);
        if (text.size() > 2 * stderr_kept) text.erase(0, text.size() - stderr_kept);
        if (!code) return read(driver, launch, from, text, buffer);
        if (code == asio::error::operation_aborted) return;
        driver->finish(launch);
      });
    }
  };
  Reader::read(this, launch, launch->out, launch->out_text, asio::buffer(launch->out_buffer));
  Reader::read(this, launch, launch->err, launch->err_text, asio::buffer(launch->err_buffer));
  launch->exited.async_wait(asio::posix::stream_descriptor::wait_read, [this, launch](boost::system::error_code code) {
    if (code) return;
    waitpid(launch->pid, &launch->status, 0);
    launch->pid = -1;
    finish(launch);
  });
}

// "SETUP <limit in ms> <text>": what the setup lines say.
void LocalDriver::take_progress(Launch& launch) {
  for (std::size_t at = 0, end; (end = launch.out_text.find('\n', at)) != std::string::npos;) {
    const std::string line = launch.out_text.substr(at, end - at);
    if (!line.starts_with("SETUP ")) {
      at = end + 1;
      continue;
    }
    launch.out_text.erase(at, end + 1 - at);
    const std::size_t space = line.find(' ', std::strlen("SETUP "));
    v1::LaunchReport report;
    report.set_pilot(launch.pilot);
    report.set_node(launch.node);
    report.set_host(host_name());
    report.set_stage(v1::LaunchReport::STARTING);
    if (space != std::string::npos) report.set_message(line.substr(space + 1) + " on " + host_name());
    report_(std::move(report));
  }
}

void LocalDriver::finish(const std::shared_ptr<Launch>& launch) {
  if (--launch->open_ends > 0) return;
  launches_.erase(launch->pilot);
  v1::LaunchReport report;
  report.set_pilot(launch->pilot);
  report.set_node(launch->node);
  report.set_host(host_name());
  const bool ended_well = WIFEXITED(launch->status) && WEXITSTATUS(launch->status) == 0;
  const bool good = ended_well && launch->out_text.find("STARTED ") != std::string::npos;
  report.set_stage(good ? v1::LaunchReport::STARTED : v1::LaunchReport::FAILED);
  if (!good && ended_well) {
    report.set_message(fmt::format("the pilot could not start on {}: {} is no flotilla-agent", host_name(), agent_.string()));
  } else if (!good) {
    report.set_exit_code(WIFEXITED(launch->status) ? WEXITSTATUS(launch->status) : -WTERMSIG(launch->status));
    report.set_message(WIFEXITED(launch->status)
                           ? fmt::format("the pilot could not start on {}: exit code {}", host_name(), WEXITSTATUS(launch->status))
                           : fmt::format("the pilot could not start on {}: signal {}", host_name(), WTERMSIG(launch->status)));
    report.set_stderr_tail(launch->err_text.size() > stderr_kept ? launch->err_text.substr(launch->err_text.size() - stderr_kept)
                                                                 : launch->err_text);
  }
  report_(std::move(report));
}

void LocalDriver::stop(std::uint64_t pilot) {
  const auto it = launches_.find(pilot);
  if (it != launches_.end() && it->second->pid > 0) kill(it->second->pid, SIGTERM);
}

}  // namespace flotilla::daemon
