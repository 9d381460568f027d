#include "pilot/guard.hpp"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "flotilla/v1/link.pb.h"
#include "pilot/process/environment.hpp"
#include "pilot/process/process_tree.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {
namespace {

using namespace std::chrono_literals;

constexpr auto start_limit = 10s;  // PROTOCOL.md section 4; the pilot itself gives up a little sooner and says why
constexpr std::size_t input_limit = 4u << 20;

bool write_all(int fd, std::string_view data) {
  while (!data.empty()) {
    const ssize_t n = write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    data.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

int refuse(const std::string& reason) {
  std::fprintf(stderr, "flotilla-agent pilot: %s\n", reason.c_str());
  return 1;
}

std::string signal_name(int number) {
  const char* name = sigabbrev_np(number);
  return name ? std::string("SIG") + name : std::to_string(number);
}

// Lines from a pipe, as they become complete.
class LineReader {
 public:
  explicit LineReader(int fd) : fd_(fd) {}
  // False at the end of the pipe.
  bool read_some(std::vector<std::string>& lines) {
    char buffer[4096];
    const ssize_t n = read(fd_, buffer, sizeof buffer);
    if (n < 0) return errno == EINTR || errno == EAGAIN;
    if (n == 0) return false;
    rest_.append(buffer, static_cast<std::size_t>(n));
    for (std::size_t end; (end = rest_.find('\n')) != std::string::npos; rest_.erase(0, end + 1)) lines.push_back(rest_.substr(0, end));
    return true;
  }

 private:
  int fd_;
  std::string rest_;
};

class Guard {
 public:
  Guard(const v1::PilotStart& start, unique_fd answer) : start_(start), answer_(std::move(answer)) {}

  int run() {
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (chdir("/") != 0) return 1;
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; ++fd) dup2(null, fd);
    close(null);
    // Whatever the starter was given besides (an ssh session's pipes) must not be kept open by us.
    dup2(answer_.get(), 3);
    if (answer_.get() != 3) {
      (void)answer_.release();
      answer_.reset(3);
    }
    fcntl(3, F_SETFD, FD_CLOEXEC);
    close_range(4, ~0u, 0);

    sigset_t watched;
    sigemptyset(&watched);
    for (int number : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) sigaddset(&watched, number);
    sigprocmask(SIG_BLOCK, &watched, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
    unique_fd signals(signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK));

    if (!spawn_pilot()) return 1;
    std::string cause = watch(signals.get());
    end_all_descendants(marks(), 0, [this](pid_t pid) { note("process " + std::to_string(pid) + " cannot be killed; it is tried again"); });
    note(cause + "; no process of it is left");
    for (const auto& path : remove_) {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
      // The hub's directory of sockets, if that has gone before us.
      if (const auto parent = std::filesystem::path(path).parent_path(); parent.filename().string().starts_with("fl-"))
        rmdir(parent.c_str());
    }
    if (!answered_) answer("FAILED " + cause);
    return 0;
  }

 private:
  std::vector<std::string> marks() const {
    return {"FLOTILLA_INSTANCE=" + to_hex(start_.instance()), "FLOTILLA_PILOT=" + std::to_string(start_.pilot()),
            "FLOTILLA_NODE=" + std::to_string(start_.node())};
  }

  void answer(const std::string& line) {
    answered_ = true;
    write_all(answer_.get(), line + "\n");
    answer_.reset();
  }

  bool spawn_pilot() {
    unique_fd config(memfd_create("pilot-start", MFD_CLOEXEC));
    if (!config || !write_all(config.get(), start_.SerializeAsString()) || lseek(config.get(), 0, SEEK_SET) != 0) {
      answer("FAILED " + errno_error(Code::resource_exhausted, "pass the pilot its settings").message);
      return false;
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
      answer("FAILED " + errno_error(Code::resource_exhausted, "make a pipe to the pilot").message);
      return false;
    }
    report_.reset(ends[0]);
    unique_fd report_end(ends[1]);

    auto environment = Environment::of_this_process();
    environment.set("FLOTILLA_INSTANCE", to_hex(start_.instance()));
    environment.set("FLOTILLA_PILOT", std::to_string(start_.pilot()));
    environment.set("FLOTILLA_NODE", std::to_string(start_.node()));
    environment.set("FLOTILLA_RESOURCE", start_.resource());
    auto variables = environment.pointers();

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    // Above the two targets, so that neither overwrites the other's source.
    const int high_config = fcntl(config.get(), F_DUPFD_CLOEXEC, 10), high_report = fcntl(report_end.get(), F_DUPFD_CLOEXEC, 10);
    posix_spawn_file_actions_adddup2(&actions, high_config, config_fd);
    posix_spawn_file_actions_adddup2(&actions, high_report, report_fd);
    posix_spawn_file_actions_addclosefrom_np(&actions, std::max(config_fd, report_fd) + 1);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

    const std::string name = "pilot " + std::to_string(start_.pilot()) + "." + std::to_string(start_.node());
    std::string guard = std::to_string(getpid());
    std::string program = "flotilla-agent", part = "pilot", mode = "--serve", label = name;
    char* arguments[] = {program.data(), part.data(), mode.data(), guard.data(), label.data(), nullptr};
    const int error = posix_spawn(&pilot_, "/proc/self/exe", &actions, &attributes, arguments, variables.data());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(high_config);
    close(high_report);
    if (error != 0) {
      answer(std::string("FAILED cannot start the pilot: ") + std::strerror(error));
      return false;
    }
    return true;
  }

  void on_line(const std::string& line) {
    const auto space = line.find(' ');
    const std::string word = line.substr(0, space);
    const std::string rest = space == std::string::npos ? std::string() : line.substr(space + 1);
    if (word == "REMOVE") remove_.push_back(rest);
    else if (word == "KEEP") std::erase(remove_, rest);
    else if (word == "LOG") log_ = rest;
    else if (word == "SETUP" && !answered_) {
      setting_up_ = rest != "0";
      write_all(answer_.get(), line + "\n");
    } else if (word == "REGISTERED" && !answered_) answer("STARTED " + std::to_string(getpid()) + " " + std::to_string(pilot_));
    else if (word == "FAILED") failure_ = rest;
  }

  // Returns when the pilot is dead, with a sentence about how.
  std::string watch(int signals) {
    LineReader lines(report_.get());
    bool pipe_open = true;
    for (;;) {
      pollfd watched[3] = {{signals, POLLIN, 0}, {pipe_open ? report_.get() : -1, POLLIN, 0}, {setting_up_ ? answer_.get() : -1, 0, 0}};
      if (poll(watched, 3, -1) < 0 && errno != EINTR) return "the guard could not wait";
      if (watched[2].revents != 0) {  // who started us is gone: it was stopped, or nobody wants it any more
        setting_up_ = false;
        failure_ = "it was stopped while it was set up";
        kill(pilot_, SIGKILL);
      }
      if (watched[1].revents != 0) {
        std::vector<std::string> complete;
        pipe_open = lines.read_some(complete);
        for (const auto& line : complete) on_line(line);
        continue;  // all that the pilot said is read before its death is looked at
      }
      signalfd_siginfo info{};
      while (read(signals, &info, sizeof info) == static_cast<ssize_t>(sizeof info))
        if (info.ssi_signo != SIGCHLD && answered_) kill(pilot_, SIGTERM);
        else if (info.ssi_signo != SIGCHLD) {  // it has nothing yet that it would have to end in order
          failure_ = "it was stopped while it started";
          kill(pilot_, SIGKILL);
        }
      for (;;) {
        int status = 0;
        const pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);
        if (pid < 0 && errno == EINTR) continue;
        if (pid <= 0) break;
        if (pid != pilot_) continue;
        std::vector<std::string> complete;
        fcntl(report_.get(), F_SETFL, O_NONBLOCK);
        while (pipe_open && poll(&watched[1], 1, 0) > 0 && lines.read_some(complete)) {}
        for (const auto& line : complete) on_line(line);
        if (!failure_.empty()) return failure_;
        if (WIFSIGNALED(status)) return "the pilot was killed by " + signal_name(WTERMSIG(status));
        if (WEXITSTATUS(status) != 0) return "the pilot exited with code " + std::to_string(WEXITSTATUS(status));
        return "the pilot ended";
      }
    }
  }

  void note(const std::string& text) {
    if (log_.empty()) return;
    unique_fd log(open(log_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
    if (!log) return;
    char moment[32];
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    localtime_r(&now, &parts);
    std::strftime(moment, sizeof moment, "%Y-%m-%d %H:%M:%S", &parts);
    write_all(log.get(), std::string(moment) + ".000 info guard: " + text + "\n");
  }

  const v1::PilotStart& start_;
  unique_fd answer_, report_;
  pid_t pilot_ = -1;
  bool answered_ = false, setting_up_ = false;
  std::string failure_, log_;
  std::vector<std::string> remove_;
};

}  // namespace

int start_pilot() {
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t n = read(0, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return refuse(errno_error(Code::invalid_argument, "read the settings from stdin").message);
    if (n == 0) break;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > input_limit) return refuse("the settings on stdin are too long");
  }
  v1::PilotStart start;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // of a newer daemon
  const auto parsed = google::protobuf::util::JsonStringToMessage(text, &start, options);
  // The text is not repeated: it holds secrets.
  if (!parsed.ok()) return refuse("the settings on stdin are not the JSON of PilotStart");
  std::fill(text.begin(), text.end(), '\0');
  if (start.pilot() == 0 || start.instance().size() != 16 || (start.upper_socket().empty() && start.tls_address().empty()))
    return refuse("the settings on stdin lack the pilot's id, its instance (16 bytes), or whom to connect to");

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return refuse(errno_error(Code::resource_exhausted, "make a pipe").message);
  unique_fd from_guard(ends[0]), to_us(ends[1]);
  // Who ends us means all that we have started: it is passed on, and its outcome is waited for like any other.
  sigset_t ending;
  sigemptyset(&ending);
  sigaddset(&ending, SIGTERM);
  sigprocmask(SIG_BLOCK, &ending, nullptr);
  // One thread, no gRPC yet, a few MB: here fork is right.
  const pid_t guard = fork();
  if (guard < 0) return refuse(errno_error(Code::resource_exhausted, "start the guard").message);
  if (guard == 0) {
    from_guard.reset();
    _exit(Guard(start, std::move(to_us)).run());
  }
  to_us.reset();
  const unique_fd signals(signalfd(-1, &ending, SFD_CLOEXEC | SFD_NONBLOCK));

  auto deadline = BootClock::now() + start_limit;
  std::vector<std::string> lines;
  LineReader reader(from_guard.get());
  std::string line;
  bool setting_up = false;
  while (line.empty()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - BootClock::now()).count();
    // The second: whoever started us went away (an ssh connection, say), which it may do while setup lines take their time.
    pollfd watched[3] = {{from_guard.get(), POLLIN, 0}, {setting_up ? STDOUT_FILENO : -1, 0, 0}, {signals.get(), POLLIN, 0}};
    const int ready = left > 0 ? poll(watched, 3, static_cast<int>(left)) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (watched[1].revents & (POLLERR | POLLHUP)) return 1;  // the guard notices, and ends the pilot
    if (ready <= 0) {
      kill(guard, SIGTERM);
      return refuse("the pilot on " + host_name() + " did not register within 10 s");
    }
    if (watched[2].revents != 0) {
      signalfd_siginfo info{};
      while (read(signals.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) kill(guard, SIGTERM);
    }
    if (watched[0].revents == 0) continue;
    if (!reader.read_some(lines) && lines.empty()) return refuse("the guard ended before the pilot had registered");
    for (auto& each : std::exchange(lines, {})) {
      long long limit_ms = 0;
      if (std::sscanf(each.c_str(), "SETUP %lld", &limit_ms) != 1) {
        line = std::move(each);
        continue;
      }
      if (setting_up != (limit_ms > 0)) deadline = BootClock::now() + start_limit + std::chrono::milliseconds(limit_ms);
      setting_up = limit_ms > 0;
      std::printf("%s\n", each.c_str());
      if (std::fflush(stdout) != 0) return 1;
    }
  }
  if (line.starts_with("STARTED ")) {
    std::printf("%s\n", line.c_str());
    return std::fflush(stdout) == 0 ? 0 : 1;
  }
  while (waitpid(guard, nullptr, 0) < 0 && errno == EINTR) {}  // it ends right after its answer
  line = line.substr(line.find(' ') + 1);
  std::replace(line.begin(), line.end(), line_break_stand_in, '\n');
  return refuse(line);
}

}  // namespace flotilla::pilot
