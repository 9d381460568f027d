#include "pilot/pilot.hpp"

#include <fcntl.h>
#include <spdlog/sinks/base_sink.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <sched.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/thread_pool.hpp>
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <system_error>
#include <unordered_map>

#include "flotilla/v1/link.pb.h"
#include "pilot/core/attempt_table.hpp"
#include "pilot/core/lifetime.hpp"
#include "pilot/guard.hpp"
#include "pilot/job.hpp"
#include "pilot/process/blob_store.hpp"
#include "pilot/process/leftovers.hpp"
#include "pilot/process/processes.hpp"
#include "pilot/process/scratch.hpp"
#include "pilot/process/spawn.hpp"
#include "pilot/setup.hpp"
#include "pilot/worker/hand_over.hpp"
#include "pilot/worker/remote_channels.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/log.hpp"
#include "proto/base/open_files.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"
#include "proto/link/link.hpp"

namespace flotilla::pilot {
namespace fs = std::filesystem;
namespace {

using namespace std::chrono_literals;

constexpr auto register_limit = 9s;          // the starter waits 10 s, and should hear the reason
constexpr auto default_setup_limit = 10min;  // module loads and environments on a slow file system
constexpr auto status_interval = 1s;         // load and counters, only while something runs
constexpr auto default_grace = 5s;           // between TERM and KILL at the pilot's end
constexpr auto farewell_wait = 5s;           // for the daemon to take the last ends and output; anew with each that it takes
constexpr auto ending_limit = 10s;           // beyond the grace; then the guard does the rest
constexpr std::uint64_t blob_cache_bytes = 8ull << 30;
constexpr std::uint64_t blob_taken_step = 512u << 10;  // PROTOCOL.md 3.2
constexpr std::uint64_t log_tail_bytes = 64u << 10;

Moment now() { return BootClock::now().time_since_epoch(); }

unsigned processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // What we may use, not what the machine has: batch systems and containers give less.
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<unsigned>(std::max(1, CPU_COUNT(&set)));
  return static_cast<unsigned>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
}

std::int64_t memory_available() {
  std::ifstream in("/proc/meminfo");
  std::string line;
  while (std::getline(in, line)) {
    long long kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %lld kB", &kib) == 1) return kib * 1024;
  }
  return 0;
}

LifetimeSettings lifetime_of(const v1::PilotSettings& settings) {
  LifetimeSettings lifetime;
  lifetime.idle = settings.idle_ms() > 0 ? Millis(settings.idle_ms()) : Millis(-1);
  lifetime.cutoff = settings.cutoff_ms() > 0 ? Millis(settings.cutoff_ms()) : default_cutoff;
  lifetime.time = Millis(std::max<std::int64_t>(0, settings.time_ms()));
  return lifetime;
}

// The guard's end of this pipe is read until our death: a line is never lost.
class GuardReport {
 public:
  void line(const std::string& text) {
    std::string whole = text;
    std::replace(whole.begin(), whole.end(), '\n', line_break_stand_in);
    whole += '\n';
    (void)!write(report_fd, whole.data(), whole.size());
  }
};

// Passes each line of the log on to those who follow it from afar.
class FollowSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit FollowSink(std::function<void(std::string)> on_line) : on_line_(std::move(on_line)) {}
  std::atomic<bool> wanted{false};

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    if (!wanted) return;
    spdlog::memory_buf_t text;
    formatter_->format(message, text);
    on_line_(std::string(text.data(), text.size()));
  }
  void flush_() override {}

 private:
  std::function<void(std::string)> on_line_;
};

class Pilot {
 public:
  Pilot(v1::PilotStart start, int guard_pid)
      : start_(std::move(start)), guard_pid_(guard_pid), name_(std::to_string(start_.pilot()) + "." + std::to_string(start_.node())),
        incarnation_(random_bytes(8)), io_(1), table_(0), lifetime_(lifetime_of(start_.settings()), now()), guard_(io_), files_(io_),
        signals_(io_), redial_timer_(io_), lifetime_timer_(io_), status_timer_(io_), register_timer_(io_), ending_timer_(io_) {}

  int run();

 private:
  Status prepare();
  int fail_start(const std::string& reason);
  Status listen();
  void watch_files();
  void check_files();
  void make_services();

  // link
  void dial();
  void redial(const std::string& why);
  void on_frame(v1::Frame frame);
  void on_welcome(const v1::Welcome& welcome);
  void on_link_closed(const std::string& cause);
  v1::Hello make_hello();
  void send(v1::Frame frame);

  // jobs
  void start_attempt(v1::StartAttempt start);
  void cancel_attempt(const v1::CancelAttempt& cancel);
  void retract_attempt(Attempt id);
  void give_back_waiting();
  void tell_retracted(Attempt id, bool begun);
  void order_end(Attempt id, EndOrder order);
  void report_end(Attempt id);
  void forget(Attempt id);
  void admit_soon();
  void after_change();
  Job* find(const v1::AttemptId& id);
  void need_blob(Attempt id, const std::string& sha256);
  void request_blob(const std::string& sha256);
  void on_blob_data(const v1::BlobData& data);
  void tell_blob_taken(const v1::BlobData& data);

  // life
  void wait_for_signal();
  void schedule_lifetime();
  void begin_ending(const std::string& reason, bool failed, std::chrono::milliseconds grace);
  void check_ended();
  void say_goodbye();
  void on_guard_dead();
  void report_status();
  void send_status();
  void read_log(const v1::ReadLog& request);

  v1::PilotStart start_;
  const int guard_pid_;
  const std::string name_;
  const std::string incarnation_;
  std::string host_;
  boost::asio::io_context io_;
  boost::asio::thread_pool background_{1};
  GuardReport report_;
  fs::path scratch_, pilot_dir_, runtime_dir_, log_file_;
  unsigned processors_ = 1;
  std::unique_ptr<Processes> processes_;
  std::unique_ptr<BlobStore> blobs_;
  std::unique_ptr<HandOver> hand_over_;
  std::unique_ptr<RemoteChannels> channels_;
  std::unique_ptr<JobServices> services_;
  std::shared_ptr<FollowSink> follow_;
  std::set<std::uint64_t> log_followers_;
  bool keep_pilot_dir_ = false;
  Owner owner_;

  AttemptTable table_;
  Lifetime lifetime_;
  Redial redial_;
  std::map<Attempt, std::shared_ptr<Job>> jobs_;
  std::map<std::string, std::set<Attempt>> wanted_blobs_;  // by hash: who waits for it
  bool admitting_ = false;

  link::LinkPtr link_;
  bool welcomed_ = false, registered_ = false;
  std::string last_trouble_;

  bool ending_ = false, refused_ = false, cut_off_ = false, goodbye_ = false;
  std::string end_reason_;
  int exit_code_ = 0;

  boost::asio::posix::stream_descriptor guard_, files_;
  alignas(inotify_event) std::array<char, 4096> file_events_{};
  boost::asio::signal_set signals_;
  Timer redial_timer_, lifetime_timer_, status_timer_, register_timer_, ending_timer_;
  bool status_scheduled_ = false;
};

// ---- start -------------------------------------------------------------------------------------------

int Pilot::fail_start(const std::string& reason) {
  spdlog::error("{}", reason);
  report_.line("FAILED " + reason);
  return 1;
}

Status Pilot::prepare() {
  host_ = host_name();
  processors_ = processors();
  const std::string instance8 = to_hex(start_.instance()).substr(0, 8);

  auto scratch = choose_scratch(scratch_candidates(start_.scratch_dir(), home_dir(), getuid()));
  if (!scratch) return fail(scratch.error());
  scratch_ = *scratch;
  for (const char* part : {"logs", "blobs", "pilots"})
    if (auto made = make_private_dir(scratch_ / part); !made) return made;
  log_file_ = pilot_log(scratch_, start_.instance(), NodeId{PilotId{start_.pilot()}, start_.node()});
  if (auto logging = init_log(log_file_); !logging) return logging;
  set_log_debug(start_.settings().debug());
  report_.line("LOG " + log_file_.string());
  const auto& traces = start_.settings().traces();
  if (!traces.log_links().empty()) link_log(log_file_, traces.log_links(), host_);
  if (traces.none())
    for (const auto& file : files_of_log(log_file_)) report_.line("REMOVE " + file.string());
  spdlog::info("pilot {} of {} on {}, pid {}, build {}", name_, start_.resource(), host_, getpid(), build_version());

  pilot_dir_ = scratch_ / "pilots" / (instance8 + "-" + name_ + "-" + to_hex(incarnation_).substr(0, 8));
  if (auto made = make_private_dir(pilot_dir_); !made) return made;
  report_.line("REMOVE " + pilot_dir_.string());
  for (const char* part : {"jobs", "spool", "blobs"})
    if (auto made = make_private_dir(pilot_dir_ / part); !made) return made;
  for (const char* part : {"spool", "blobs"}) report_.line("REMOVE " + (pilot_dir_ / part).string());

  runtime_dir_ = start_.runtime_dir();
  if (runtime_dir_.empty()) {
    const fs::path parent = "/tmp/fl-" + std::to_string(getuid()) + "-" + instance8;
    if (auto made = make_private_dir(parent); !made) return made;
    runtime_dir_ = parent / ("p" + name_);
  }
  if (auto made = make_private_dir(runtime_dir_); !made) return made;
  report_.line("REMOVE " + runtime_dir_.string());
  // Should the guard die together with us, the next pilot here finds it.
  owner_ = own_owner(to_hex(start_.instance()), std::to_string(start_.pilot()), std::to_string(start_.node()), guard_pid_, runtime_dir_);
  std::ofstream(pilot_dir_ / "owner") << format_owner(owner_);

  auto environment = Environment::of_this_process().cleaned();
  const std::pair<const char*, std::string> own[] = {{"FLOTILLA_INSTANCE", to_hex(start_.instance())},
                                                     {"FLOTILLA_PILOT", std::to_string(start_.pilot())},
                                                     {"FLOTILLA_NODE", std::to_string(start_.node())},
                                                     {"FLOTILLA_RESOURCE", start_.resource()}};
  for (const auto& [name, value] : own) environment.set(name, value);
  for (const auto& [name, value] : start_.env()) environment.set(name, value);
  if (start_.setup_size() > 0) {
    const auto limit = start_.setup_timeout_ms() > 0 ? std::chrono::milliseconds(start_.setup_timeout_ms()) : default_setup_limit;
    // The starter waits for as long, and shows the lines.
    report_.line("SETUP " + std::to_string(limit.count()) + " setting up");
    auto after = run_setup(
        {start_.setup().begin(), start_.setup().end()}, environment, home_dir().string(), host_, limit,
        [this, limit](const std::string& line) { report_.line("SETUP " + std::to_string(limit.count()) + " setting up: " + line); });
    report_.line("SETUP 0");
    if (!after) return fail(after.error());
    environment = std::move(*after);
    for (const auto& [name, value] : own) environment.set(name, value);
  }

  const unsigned slots = start_.spec().slots_per_node() > 0 ? start_.spec().slots_per_node() : processors_;
  table_ = AttemptTable(slots);
  blobs_ = std::make_unique<BlobStore>((traces.none() ? pilot_dir_ : scratch_) / "blobs");
  hand_over_ = std::make_unique<HandOver>(io_);
  channels_ = std::make_unique<RemoteChannels>(io_, RemoteChannels::Upper{[this](v1::Frame frame) { send(std::move(frame)); },
                                                                          [this] { return link_ ? link_->queued_bytes() : std::size_t{0}; },
                                                                          {start_.tls_ca(), start_.tls_chain(), start_.tls_key()},
                                                                          start_.tls_server_name()});
  if (auto listening = listen(); !listening) return listening;
  watch_files();
  processes_ = std::make_unique<Processes>(io_);  // what the setup lines left running is there already: it is the pilot's

  services_.reset(new JobServices{io_,
                                  host_,
                                  !start_.upper_socket().empty() && !start_.beside_hub(),
                                  start_.settings().debug(),
                                  home_dir(),
                                  pilot_dir_ / "jobs",
                                  pilot_dir_ / "spool",
                                  (runtime_dir_ / "take.sock").string(),
                                  std::move(environment),
                                  *processes_,
                                  *blobs_,
                                  *hand_over_,
                                  *channels_,
                                  {},
                                  {},
                                  {},
                                  {},
                                  {},
                                  {},
                                  {},
                                  {},
                                  {},
                                  {}});
  make_services();
  boost::asio::post(background_, [dir = scratch_ / "blobs"] { BlobStore(dir).shrink_to(blob_cache_bytes); });
  boost::asio::post(background_, [dir = scratch_ / "logs"] { remove_old_logs(dir, kept_pilot_logs, kept_log_age); });
  boost::asio::post(background_, [dir = scratch_ / "pilots", here = owner_] {
    for (const auto& folder : sweep_leftovers(dir, here)) spdlog::info("{} was left by a pilot that is dead: removed", folder.string());
  });
  return {};
}

// Binds what is not there (any more).
Status Pilot::listen() {
  struct stat info {};
  // The parent is the hub's or daemon's directory; after a cleaner's work we may be the first here.
  if (const auto parent = runtime_dir_.parent_path(); lstat(parent.c_str(), &info) != 0)
    if (auto made = make_private_dir(parent); !made) return made;
  if (auto made = make_private_dir(runtime_dir_); !made) return made;
  if (const auto take = runtime_dir_ / "take.sock"; lstat(take.c_str(), &info) != 0)
    if (auto listening = hand_over_->listen(take); !listening) return listening;
  if (const auto channel = runtime_dir_ / "channel.sock"; lstat(channel.c_str(), &info) != 0) return channels_->listen(channel);
  return {};
}

// A cleaner of /tmp may remove the sockets' files under us: they are made again at once.
void Pilot::watch_files() {
  unique_fd fd(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!fd || inotify_add_watch(fd.get(), runtime_dir_.c_str(), IN_DELETE | IN_DELETE_SELF | IN_MOVED_FROM | IN_MOVE_SELF) < 0) {
    spdlog::warn("the pilot will not notice if its sockets are removed");
    return;
  }
  files_.close();
  files_.assign(fd.release());
  check_files();
}

void Pilot::check_files() {
  files_.async_read_some(boost::asio::buffer(file_events_), [this](const boost::system::error_code& error, std::size_t) {
    if (error || goodbye_) return;
    spdlog::warn("something was removed from {}; what is missing is made again", runtime_dir_.string());
    // Who removes the directory may be in the middle of it: what is bound meanwhile goes with it, and is told by the new watch.
    if (auto listening = listen(); !listening) spdlog::error("{}", listening.error().text());
    watch_files();
    if (auto listening = listen(); !listening) spdlog::error("{}", listening.error().text());
  });
}

void Pilot::make_services() {
  auto& services = *services_;
  services.send = [this](v1::Frame frame) { send(std::move(frame)); };
  services.in_background = [this](std::function<void()> work) { boost::asio::post(background_, std::move(work)); };
  services.remove_folder = [this](fs::path folder) {
    boost::asio::post(background_, [folder = std::move(folder)] {
      std::error_code problem;
      fs::remove_all(folder, problem);
      if (problem) spdlog::warn("cannot remove {}: {}", folder.string(), problem.message());
    });
  };
  services.outlive_pilot = [this] {
    keep_pilot_dir_ = true;
    std::error_code ignored;
    fs::remove(pilot_dir_ / "owner", ignored);  // what has no owner is not swept
    report_.line("KEEP " + pilot_dir_.string());
  };
  services.need_blob = [this](Attempt id, const std::string& sha256) { need_blob(id, sha256); };
  services.find = [this](Attempt id) -> const Job* {
    auto it = jobs_.find(id);
    return it == jobs_.end() ? nullptr : it->second.get();
  };
  services.on_started = [this](Attempt id) { table_.on_started(id); };
  services.on_exited = [this](Attempt id) { table_.on_exited(id); };
  services.on_ended = [this](Attempt id, Ending ending) {
    // A worker's last counts go out before its end does.
    if (const auto job = jobs_.find(id); job != jobs_.end() && job->second->channel_counts()) report_status();
    table_.on_ended(id, std::move(ending));
    report_end(id);
    admit_soon();
    after_change();
  };
  services.end_attempt = [this](Attempt id, EndOrder order) { order_end(id, std::move(order)); };
}

int Pilot::run() {
  // The pidfd first: then the question whether it is still our parent has a lasting answer.
  const int guard = static_cast<int>(syscall(SYS_pidfd_open, guard_pid_, 0));
  if (guard < 0 || getppid() != guard_pid_) return fail_start("the guard died before the pilot ran");
  fcntl(guard, F_SETFD, FD_CLOEXEC);
  guard_.assign(guard);
  guard_.async_wait(boost::asio::posix::stream_descriptor::wait_read, [this](const boost::system::error_code& error) {
    if (!error) on_guard_dead();
  });
  // What leaves a job by forking twice comes to us and can be told apart; the guard gets it when we die.
  prctl(PR_SET_CHILD_SUBREAPER, 1);

  if (auto prepared = prepare(); !prepared) return fail_start(prepared.error().text());
  follow_ = std::make_shared<FollowSink>([this](std::string line) {
    boost::asio::post(io_, [this, line = std::move(line)] {
      for (std::uint64_t request : log_followers_) {
        v1::Frame frame;
        frame.mutable_log_data()->set_request(request);
        frame.mutable_log_data()->set_data(line);
        send(std::move(frame));
      }
    });
  });
  spdlog::default_logger()->sinks().push_back(follow_);
  follow_->set_pattern("%Y-%m-%d %H:%M:%S.%e %l %v");

  for (int number : {SIGTERM, SIGINT, SIGHUP}) signals_.add(number);
  wait_for_signal();
  register_timer_.expires_after(register_limit);
  register_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error || registered_) return;
    exit_code_ = fail_start("the pilot on " + host_ + " could not register within " + std::to_string(register_limit.count()) +
                            " s: " + (last_trouble_.empty() ? "no answer" : last_trouble_));
    io_.stop();
  });
  lifetime_.on_link_down(now());
  schedule_lifetime();
  dial();
  io_.run();

  // Everything is over: nothing below reacts any more.
  if (link_) link_->detach();
  processes_->stop();
  end_all_descendants({}, 0);
  jobs_.clear();
  channels_.reset();
  background_.join();
  spdlog::info("pilot {} ended{}", name_, end_reason_.empty() ? "" : ": " + end_reason_);
  spdlog::shutdown();
  return exit_code_;
}

void Pilot::wait_for_signal() {
  signals_.async_wait([this](const boost::system::error_code& error, int number) {
    if (error) return;
    begin_ending(std::string("it was told to end by SIG") + sigabbrev_np(number), false, default_grace);
    wait_for_signal();
  });
}

// ---- link --------------------------------------------------------------------------------------------

void Pilot::dial() {
  if (goodbye_) return;
  link::Handlers handlers;
  handlers.on_frame = [this](const link::LinkPtr& link, v1::Frame frame) {
    if (link == link_) on_frame(std::move(frame));
  };
  handlers.on_closed = [this](const link::LinkPtr& link, const std::string& cause) {
    if (link == link_) on_link_closed(cause);
  };
  unique_fd upper;
  if (!start_.upper_socket().empty()) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (start_.upper_socket().size() >= sizeof address.sun_path) {
      redial("the socket path " + start_.upper_socket() + " is too long");
      return;
    }
    std::memcpy(address.sun_path, start_.upper_socket().c_str(), start_.upper_socket().size() + 1);
    upper.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!upper || connect(upper.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      redial(errno_error(Code::unavailable, "connect to " + start_.upper_socket()).message);
      return;
    }
  }
  try {
    link_ = upper
                ? link::connect_fd(io_, std::move(upper), std::move(handlers), link::keepalive_cluster)
                : link::connect_tls(io_, start_.tls_address(), start_.tls_server_name(),
                                    {start_.tls_ca(), start_.tls_chain(), start_.tls_key()}, std::move(handlers), link::keepalive_cluster);
  } catch (const std::system_error& error) {
    return redial(std::string("no thread for the link: ") + error.what());
  }
  v1::Frame frame;
  *frame.mutable_hello() = make_hello();
  link_->send(std::move(frame));
}

void Pilot::redial(const std::string& why) {
  if (why != last_trouble_) spdlog::warn("no link: {}", why);
  last_trouble_ = why;
  redial_timer_.expires_after(redial_.next_wait());
  redial_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error && !link_) dial();
  });
}

v1::Hello Pilot::make_hello() {
  v1::Hello hello;
  hello.set_protocol(protocol_version);
  hello.set_protocol_min(protocol_minimum);
  hello.set_build(build_version());
  hello.set_instance(start_.instance());
  hello.set_host(host_);
  hello.set_boot_id(boot_id());
  hello.set_pid(static_cast<std::uint32_t>(getpid()));
  auto& pilot = *hello.mutable_pilot();
  pilot.set_pilot(start_.pilot());
  pilot.set_node(start_.node());
  pilot.set_incarnation(incarnation_);
  pilot.set_secret(start_.secret());
  pilot.set_host(host_);
  pilot.set_pid(static_cast<std::uint32_t>(getpid()));
  pilot.set_slots(table_.slots());
  pilot.set_processors(processors_);
  struct sysinfo info {};
  if (sysinfo(&info) == 0) pilot.set_memory_bytes(static_cast<std::int64_t>(info.totalram) * info.mem_unit);
  pilot.set_boot_id(boot_id());
  pilot.set_ends_in_ms(lifetime_.ends_in(now()).count());
  pilot.set_draining(table_.draining());
  pilot.set_runtime_dir(runtime_dir_.string());
  pilot.set_beside_hub(start_.beside_hub());
  for (const auto& [id, held] : table_.all()) {
    auto& report = *pilot.add_inventory();
    if (auto it = jobs_.find(id); it != jobs_.end()) it->second->fill(report);
    report.mutable_id()->set_job(id.job.value);
    report.mutable_id()->set_attempt(id.number);
    report.set_state(state_of(held));
    if (held.phase == Phase::ended) *report.mutable_exit() = held.ending.reason;
  }
  return hello;
}

void Pilot::send(v1::Frame frame) {
  if (link_) link_->send(std::move(frame));
}

void Pilot::on_link_closed(const std::string& cause) {
  link_.reset();
  const bool had = std::exchange(welcomed_, false);
  log_followers_.clear();
  follow_->wanted = false;
  if (goodbye_) {
    io_.stop();
    return;
  }
  if (had) {
    spdlog::warn("the link is lost: {}", cause);
    lifetime_.on_link_down(now());
    for (auto& [id, job] : jobs_) job->on_link_down();
    channels_->on_link_down();
    schedule_lifetime();
  }
  redial(had ? "lost: " + cause : cause);
}

void Pilot::on_welcome(const v1::Welcome& welcome) {
  if (!welcome.error().empty() || welcome.protocol() < protocol_minimum || welcome.protocol() > protocol_version) {
    const std::string error = welcome.error().empty() ? "it speaks protocol " + std::to_string(welcome.protocol()) + ", which build " +
                                                            build_version() + " does not"
                                                      : welcome.error();
    if (!registered_) {
      exit_code_ = fail_start("the pilot on " + host_ + " was refused: " + error);
      link_->detach();
      link_->abort();
      link_.reset();
      io_.stop();
      return;
    }
    begin_ending("it was refused when it came back: " + error, true, default_grace);
    return;
  }
  welcomed_ = true;
  last_trouble_.clear();
  redial_.on_link_up();
  lifetime_.on_link_up();
  if (welcome.has_pilot()) {
    lifetime_.set(lifetime_of(welcome.pilot()));
    set_log_debug(welcome.pilot().debug() || welcome.debug());
  }
  if (!registered_) {
    registered_ = true;
    register_timer_.cancel();
    report_.line("REGISTERED");
    spdlog::info("registered: {} slots", table_.slots());
  } else {
    spdlog::info("the link is back");
  }
  std::map<Attempt, const v1::AttemptReport*> known;
  for (const auto& report : welcome.known()) known[Attempt{JobId{report.id().job()}, report.id().attempt()}] = &report;
  for (auto& [id, job] : jobs_) {
    auto it = known.find(id);
    job->on_link_up(it == known.end() ? nullptr : it->second);
  }
  channels_->on_link_up();
  for (const auto& [sha256, waiting] : wanted_blobs_) request_blob(sha256);
  if (ending_) {
    v1::Frame frame;
    frame.mutable_pilot_ending()->set_reason(end_reason_);
    send(std::move(frame));
  }
  schedule_lifetime();
  after_change();
}

void Pilot::on_frame(v1::Frame frame) {
  switch (frame.body_case()) {
    case v1::Frame::kWelcome: on_welcome(frame.welcome()); break;
    case v1::Frame::kGoodbye: spdlog::info("the other side says goodbye: {}", frame.goodbye().reason()); break;
    case v1::Frame::kPing: {
      v1::Frame answer;
      answer.mutable_pong()->set_id(frame.ping().id());
      answer.mutable_pong()->set_sent_us(frame.ping().sent_us());
      send(std::move(answer));
      break;
    }
    case v1::Frame::kStartAttempt: start_attempt(std::move(*frame.mutable_start_attempt())); break;
    case v1::Frame::kCancelAttempt: cancel_attempt(frame.cancel_attempt()); break;
    case v1::Frame::kRetractAttempt: {
      const auto& id = frame.retract_attempt().id();
      retract_attempt(Attempt{JobId{id.job()}, id.attempt()});
      break;
    }
    case v1::Frame::kSignalAttempt:
      if (Job* job = find(frame.signal_attempt().id())) job->signal(frame.signal_attempt().signal());
      break;
    case v1::Frame::kInputData:
      if (Job* job = find(frame.input_data().id()))
        job->add_input(frame.input_data().offset(), std::move(*frame.mutable_input_data()->mutable_data()), frame.input_data().eof());
      break;
    case v1::Frame::kResizeTerminal:
      if (Job* job = find(frame.resize_terminal().id())) job->resize(frame.resize_terminal().window());
      break;
    case v1::Frame::kOutputWindow:
      if (Job* job = find(frame.output_window().id())) job->on_window(frame.output_window());
      if (ending_) check_ended();  // while output is taken we stay
      break;
    case v1::Frame::kForgetAttempt: {
      const auto& id = frame.forget_attempt().id();
      forget(Attempt{JobId{id.job()}, id.attempt()});
      break;
    }
    case v1::Frame::kBlobData: on_blob_data(frame.blob_data()); break;
    case v1::Frame::kExpectChannel: channels_->on_expect(frame.expect_channel()); break;
    case v1::Frame::kChannelAck: channels_->on_ack(frame.channel_ack()); break;
    case v1::Frame::kChannelData: channels_->on_data(frame.channel_data()); break;
    case v1::Frame::kChannelEnd: channels_->on_end(frame.channel_end()); break;
    case v1::Frame::kDrainPilot:
      spdlog::info("draining");
      table_.drain();
      give_back_waiting();
      after_change();
      break;
    case v1::Frame::kEndPilot:
      cut_off_ = frame.end_pilot().cut_off();
      begin_ending(frame.end_pilot().reason().empty() ? "it was told to end" : frame.end_pilot().reason(), false,
                   frame.end_pilot().grace_ms() > 0 ? std::chrono::milliseconds(frame.end_pilot().grace_ms())
                                                    : std::chrono::milliseconds(default_grace));
      break;
    case v1::Frame::kReadLog: read_log(frame.read_log()); break;
    default: spdlog::warn("a frame of kind {} is not for a pilot", static_cast<int>(frame.body_case()));
  }
}

// ---- jobs --------------------------------------------------------------------------------------------

Job* Pilot::find(const v1::AttemptId& id) {
  auto it = jobs_.find(Attempt{JobId{id.job()}, id.attempt()});
  return it == jobs_.end() ? nullptr : it->second.get();
}

void Pilot::start_attempt(v1::StartAttempt start) {
  const Attempt id{JobId{start.id().job()}, start.id().attempt()};
  std::optional<Attempt> beside;
  if (start.has_beside() && start.beside().job() != 0) beside = Attempt{JobId{start.beside().job()}, start.beside().attempt()};
  std::string why;
  switch (table_.start(id, start.spec(), beside, why)) {
    case AttemptTable::Start::already_held: return;
    case AttemptTable::Start::refused: {
      v1::Frame frame;
      auto& ended = *frame.mutable_attempt_ended();
      *ended.mutable_id() = start.id();
      ended.mutable_exit()->set_kind(v1::REFUSED);
      ended.mutable_exit()->set_message(why);
      ended.mutable_exit()->set_host(host_);
      send(std::move(frame));
      return;
    }
    case AttemptTable::Start::given_back: tell_retracted(id, false); return;
    case AttemptTable::Start::accepted: break;
  }
  auto job = std::make_shared<Job>(*services_, std::move(start));
  if (welcomed_) job->on_link_up(nullptr);
  jobs_.emplace(id, std::move(job));
  lifetime_.on_busy();
  admit_soon();
  if (!status_scheduled_) {
    status_scheduled_ = true;
    status_timer_.expires_after(status_interval);
    status_timer_.async_wait([this](const boost::system::error_code& error) {
      status_scheduled_ = false;
      if (!error) send_status();
    });
  }
}

void Pilot::cancel_attempt(const v1::CancelAttempt& cancel) {
  const Attempt id{JobId{cancel.id().job()}, cancel.id().attempt()};
  if (!table_.find(id)) {
    v1::Frame frame;
    auto& ended = *frame.mutable_attempt_ended();
    *ended.mutable_id() = cancel.id();
    ended.mutable_exit()->set_kind(cancel.kind() == v1::EXIT_NONE ? v1::CANCELED_BY_USER : cancel.kind());
    ended.mutable_exit()->set_message("the pilot does not hold this job");
    ended.mutable_exit()->set_host(host_);
    send(std::move(frame));
    return;
  }
  order_end(id, EndOrder{cancel.kind() == v1::EXIT_NONE ? v1::CANCELED_BY_USER : cancel.kind(), cancel.message(), cancel.grace_ms()});
}

void Pilot::tell_retracted(Attempt id, bool begun) {
  v1::Frame frame;
  auto& retracted = *frame.mutable_attempt_retracted();
  retracted.mutable_id()->set_job(id.job.value);
  retracted.mutable_id()->set_attempt(id.number);
  retracted.set_begun(begun);
  send(std::move(frame));
}

void Pilot::retract_attempt(Attempt id) {
  const bool held = table_.find(id) != nullptr;
  const bool waited = table_.retract(id);
  if (waited) jobs_.erase(id);
  tell_retracted(id, held && !waited);
  if (!waited) return;
  admit_soon();  // a smaller one may have stood behind it
  after_change();
}

// Somebody else can run it. Who cannot be told is not given anything back: it would be lost.
void Pilot::give_back_waiting() {
  if (!welcomed_) return;
  for (const Attempt id : table_.waiting()) {
    table_.retract(id);
    jobs_.erase(id);
    tell_retracted(id, false);
  }
}

void Pilot::order_end(Attempt id, EndOrder order) {
  switch (table_.end(id, order)) {
    case AttemptTable::EndStep::unknown:
    case AttemptTable::EndStep::order_stands: return;
    case AttemptTable::EndStep::already_ended: report_end(id); return;
    case AttemptTable::EndStep::was_waiting: {
      auto it = jobs_.find(id);
      Ending ending;
      ending = describe_not_started(it->second->facts(), order);
      table_.on_ended(id, std::move(ending));
      report_end(id);
      admit_soon();
      after_change();
      return;
    }
    case AttemptTable::EndStep::order_noted:
      if (auto it = jobs_.find(id); it != jobs_.end()) {
        auto job = it->second;
        job->carry_out(order);
      }
      return;
  }
}

void Pilot::report_end(Attempt id) {
  const auto* held = table_.find(id);
  if (!held || held->phase != Phase::ended) return;
  v1::Frame frame;
  auto& ended = *frame.mutable_attempt_ended();
  ended.mutable_id()->set_job(id.job.value);
  ended.mutable_id()->set_attempt(id.number);
  *ended.mutable_exit() = held->ending.reason;
  if (auto it = jobs_.find(id); it != jobs_.end()) {
    ended.set_stdout_bytes(it->second->stdout_bytes());
    ended.set_stderr_bytes(it->second->stderr_bytes());
  }
  send(std::move(frame));
}

void Pilot::forget(Attempt id) {
  const auto* held = table_.find(id);
  if (!held || held->phase != Phase::ended) return;
  table_.forget(id);
  jobs_.erase(id);
  after_change();
}

// Later in this turn of the loop: what starts may end at once, and must not do so inside of its caller.
void Pilot::admit_soon() {
  if (std::exchange(admitting_, true)) return;
  boost::asio::post(io_, [this] {
    admitting_ = false;
    if (ending_) return;
    for (const Attempt id : table_.admit())
      if (auto it = jobs_.find(id); it != jobs_.end()) {
        auto job = it->second;
        job->prepare();
      }
  });
}

void Pilot::after_change() {
  if (ending_) {
    check_ended();
    return;
  }
  // What ended and was not taken yet exists here only: neither idleness nor draining throws it away.
  if (!table_.all().empty()) return;
  lifetime_.on_idle(now());
  schedule_lifetime();
  if (table_.draining()) begin_ending("it was drained", false, default_grace);
}

void Pilot::need_blob(Attempt id, const std::string& sha256) {
  auto& waiting = wanted_blobs_[sha256];
  const bool first = waiting.empty();
  waiting.insert(id);
  if (first) request_blob(sha256);
}

void Pilot::request_blob(const std::string& sha256) {
  v1::Frame frame;
  frame.mutable_need_blob()->set_sha256(sha256);
  frame.mutable_need_blob()->set_offset(blobs_->begin(sha256));
  frame.mutable_need_blob()->set_tells_taken(true);
  send(std::move(frame));
}

void Pilot::tell_blob_taken(const v1::BlobData& data) {
  const std::uint64_t end = data.offset() + data.data().size();
  if (data.offset() / blob_taken_step == end / blob_taken_step) return;
  v1::Frame frame;
  frame.mutable_blob_taken()->set_sha256(data.sha256());
  frame.mutable_blob_taken()->set_offset(end);
  send(std::move(frame));
}

void Pilot::on_blob_data(const v1::BlobData& data) {
  auto it = wanted_blobs_.find(data.sha256());
  if (it == wanted_blobs_.end()) return tell_blob_taken(data);  // given up: the rest comes and goes by
  std::optional<Error> error;
  if (!data.error().empty()) {
    error = Error{Code::not_found, "an input file did not come: " + data.error(), {}, Retry::no, {}};
    blobs_->abandon(data.sha256());
  } else {
    auto progress = blobs_->add(data.sha256(), data.offset(), data.data(), data.last());
    if (!progress) error = progress.error();
    else if (*progress == BlobStore::Progress::more) return tell_blob_taken(data);
  }
  const auto waiting = std::move(it->second);
  wanted_blobs_.erase(it);
  for (const Attempt id : waiting)
    if (auto job = jobs_.find(id); job != jobs_.end()) {
      auto keep = job->second;
      keep->on_blob(data.sha256(), error);
    }
}

// ---- life --------------------------------------------------------------------------------------------

void Pilot::schedule_lifetime() {
  if (ending_) return;
  const auto next = lifetime_.next();
  if (!next) {
    lifetime_timer_.cancel();
    return;
  }
  lifetime_timer_.expires_at(BootClock::time_point(*next));
  lifetime_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error || ending_) return;
    switch (lifetime_.verdict(now())) {
      case Verdict::stay: schedule_lifetime(); return;
      case Verdict::time_up: begin_ending("its time was up", false, default_grace); return;
      case Verdict::idle: begin_ending("it had no job for as long as it may be idle", false, default_grace); return;
      case Verdict::cut_off: begin_ending("it was cut off from its daemon for too long", false, default_grace); return;
    }
  });
}

void Pilot::begin_ending(const std::string& reason, bool failed, std::chrono::milliseconds grace) {
  if (ending_) {  // told again: at once
    for (auto& [id, job] : jobs_) job->hasten();
    return;
  }
  ending_ = true;
  refused_ = failed;
  end_reason_ = reason;
  spdlog::info("ending: {}", reason);
  lifetime_timer_.cancel();
  table_.drain();
  v1::Frame frame;
  frame.mutable_pilot_ending()->set_reason(reason);
  frame.mutable_pilot_ending()->set_failed(failed);
  send(std::move(frame));
  ending_timer_.expires_after(grace + ending_limit);
  ending_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error && !goodbye_) say_goodbye();
  });
  give_back_waiting();
  std::vector<Attempt> all;
  for (const auto& [id, held] : table_.all())
    if (held.phase != Phase::ended) all.push_back(id);
  for (const Attempt id : all) order_end(id, EndOrder{v1::PILOT_ENDED, reason, grace.count()});
  check_ended();
}

void Pilot::check_ended() {
  if (goodbye_ || table_.busy()) return;
  // The daemon may still have ends and output to take, also when the link comes back in that time.
  if (table_.all().empty() || refused_ || cut_off_ || lifetime_.cut_off(now())) {
    say_goodbye();
    return;
  }
  ending_timer_.expires_after(farewell_wait);
  ending_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error && !goodbye_) say_goodbye();
  });
}

void Pilot::say_goodbye() {
  goodbye_ = true;
  redial_timer_.cancel();
  if (!link_ || !welcomed_) {
    io_.stop();
    return;
  }
  v1::Frame frame;
  frame.mutable_goodbye()->set_reason(end_reason_);
  send(std::move(frame));
  link_->close();
  ending_timer_.expires_after(farewell_wait);  // for an upper side that does not end its direction
  ending_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) io_.stop();
  });
}

void Pilot::on_guard_dead() {
  // Nobody would clean up after us any more: at once, and all of it.
  spdlog::error("the guard died: ending everything");
  if (processes_) processes_->stop();
  end_all_descendants({"FLOTILLA_INSTANCE=" + to_hex(start_.instance()), "FLOTILLA_PILOT=" + std::to_string(start_.pilot()),
                       "FLOTILLA_NODE=" + std::to_string(start_.node())});
  std::error_code ignored;
  fs::remove_all(runtime_dir_, ignored);
  fs::remove_all(keep_pilot_dir_ ? pilot_dir_ / "spool" : pilot_dir_, ignored);
  spdlog::shutdown();
  _exit(1);
}

void Pilot::report_status() {
  if (welcomed_) {
    v1::Frame frame;
    auto& status = *frame.mutable_node_status();
    double load[1] = {};
    if (getloadavg(load, 1) == 1) status.set_load(load[0]);
    status.set_memory_available_bytes(memory_available());
    for (const auto& [id, job] : jobs_)
      if (const auto counts = job->channel_counts()) {
        auto& channel = *status.add_channels();
        *channel.mutable_id() = job->wire_id();
        channel.set_calls(counts->calls);
        channel.set_bytes_to_worker(counts->to_worker);
        channel.set_bytes_from_worker(counts->from_worker);
      }
    send(std::move(frame));
  }
}

void Pilot::send_status() {
  report_status();
  if (!table_.busy()) return;  // the last one, after the end of the last job, has gone out
  status_scheduled_ = true;
  status_timer_.expires_after(status_interval);
  status_timer_.async_wait([this](const boost::system::error_code& error) {
    status_scheduled_ = false;
    if (!error) send_status();
  });
}

void Pilot::read_log(const v1::ReadLog& request) {
  if (request.stop()) {
    log_followers_.erase(request.request());
    follow_->wanted = !log_followers_.empty();
    return;
  }
  spdlog::default_logger()->flush();
  v1::Frame frame;
  auto& data = *frame.mutable_log_data();
  data.set_request(request.request());
  data.set_path(log_file_.string());
  unique_fd fd(open(log_file_.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0) {
    data.set_error(errno_error(Code::not_found, "read " + log_file_.string()).message);
  } else {
    const auto count = static_cast<std::size_t>(
        std::min<std::uint64_t>(request.tail_bytes() ? request.tail_bytes() : log_tail_bytes, static_cast<std::uint64_t>(info.st_size)));
    std::string text(count, '\0');
    const ssize_t n = pread(fd.get(), text.data(), count, info.st_size - static_cast<off_t>(count));
    text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    data.set_data(std::move(text));
  }
  data.set_eof(!request.follow() || !data.error().empty());
  if (!data.eof()) {
    log_followers_.insert(request.request());
    follow_->wanted = true;
  }
  send(std::move(frame));
}

}  // namespace

int serve_pilot(int guard_pid) {
  fcntl(config_fd, F_SETFD, FD_CLOEXEC);
  fcntl(report_fd, F_SETFD, FD_CLOEXEC);
  std::signal(SIGPIPE, SIG_IGN);
  // Before any thread: they inherit it, and SIGCHLD comes through a descriptor.
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  pthread_sigmask(SIG_BLOCK, &child, nullptr);
  v1::PilotStart start;
  if (!start.ParseFromFileDescriptor(config_fd)) {
    std::fprintf(stderr, "flotilla-agent: this mode is for the guard alone\n");
    return 2;
  }
  close(config_fd);
  raise_open_file_limit();
  // Never destroyed: the link's own thread may still post to its io_context when everything else is over.
  auto* pilot = new Pilot(std::move(start), guard_pid);
  _exit(pilot->run());
}

}  // namespace flotilla::pilot
