#include "pilot/job.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "pilot/launcher/launcher.hpp"
#include "pilot/process/spawn.hpp"
#include "pilot/worker/remote_channels.hpp"
#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/text.hpp"

namespace flotilla::pilot {
namespace fs = std::filesystem;
namespace {

using namespace std::chrono_literals;

constexpr auto default_kill_grace = 5s;             // as types.proto says
constexpr auto default_worker_start_timeout = 60s;  // MPI codes on a slow file system take tens of seconds to load
constexpr auto ticket_wait = 60s;                   // a client that was told of its worker and does not take it is dead
constexpr auto farewell = 200ms;                    // a worker that was told to stop ends by itself, with its own exit code
constexpr auto kill_retry = 500ms;                  // what was forked while SIGKILL went round

Result<unique_fd> open_file(const fs::path& file) {
  unique_fd fd(open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!fd) return fail(errno_error(Code::permission_denied, "write the output file " + file.string()));
  return fd;
}

int null_device() {
  static const int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  return fd;
}

std::string last_bytes(std::string text) {
  if (text.size() > tail_bytes) {
    text.erase(0, text.size() - tail_bytes);
    // Not half a line, where there are whole ones; and no half character.
    if (const auto line = text.find('\n'); line != std::string::npos && line + 1 < text.size()) text.erase(0, line + 1);
  }
  return to_utf8(text);
}

}  // namespace

// The child's ends; closed when it has been started.
struct Job::Streams {
  unique_fd in, out, err;
  std::string terminal;
  int in_fd() const { return in ? in.get() : null_device(); }
  int out_fd() const { return out ? out.get() : null_device(); }
  int err_fd() const { return err ? err.get() : out_fd(); }
};

Job::Job(JobServices& services, v1::StartAttempt start)
    : services_(services), start_(std::move(start)), limit_(services.io), kill_(services.io) {
  id_ = Attempt{JobId{start_.id().job()}, start_.id().attempt()};
  auto& spec = *start_.mutable_spec();
  if (spec.has_worker() && spec.start_timeout_ms() <= 0)
    spec.set_start_timeout_ms(std::chrono::milliseconds(default_worker_start_timeout).count());
  facts_ = describe_job(spec, services_.host);
  in_ = std::make_shared<InputPump>(services_.io);
  in_->on_taken = [this](std::uint64_t bytes) {
    v1::Frame frame;
    *frame.mutable_input_taken()->mutable_id() = start_.id();
    frame.mutable_input_taken()->set_bytes(bytes);
    services_.send(std::move(frame));
  };
  in_->add_own(spec.command().stdin_data());
  // Who takes no input: what comes in spite of that is counted as taken and dropped.
  if (!spec.command().stdin_open() && !spec.command().terminal()) in_->add_eof();
}

Job::~Job() {
  if (out_) out_->stop();
  if (err_) err_->stop();
  in_->on_taken = nullptr;
  in_->stop();
  services_.hand_over.forget(id_);
  services_.channels.forget(id_);
}

// ---- before it runs ------------------------------------------------------------------------------------

void Job::prepare() {
  step_ = Step::preparing;
  if (auto chosen = choose_folder(); !chosen) {
    fail_start(chosen.error());
    return;
  }
  for (const auto& file : start_.spec().files()) {
    if (file.sha256().size() != 32 || !is_inside_name(file.name())) {
      fail_start(Error{Code::invalid_argument, "the input file '" + file.name() + "' has no usable name or hash", {}, Retry::no, {}});
      return;
    }
    if (!services_.blobs.has(file.sha256())) missing_blobs_.push_back(file.sha256());
  }
  if (!is_worker() && start_.spec().start_timeout_ms() > 0) limit_start();  // a worker's begins with its process
  if (!missing_blobs_.empty()) {
    const auto wanted = missing_blobs_;
    for (const auto& sha256 : wanted) services_.need_blob(id_, sha256);
    return;
  }
  place_files();
}

void Job::on_blob(const std::string& sha256, const std::optional<Error>& error) {
  if (step_ != Step::preparing || std::erase(missing_blobs_, sha256) == 0) return;
  if (error) fail_start(*error);
  else if (missing_blobs_.empty()) place_files();
}

Status Job::choose_folder() {
  const auto& spec = start_.spec();
  const auto remove = services_.remove_folder;
  if (start_.has_beside() && start_.beside().job() != 0) {
    const Job* host = services_.find(Attempt{JobId{start_.beside().job()}, start_.beside().attempt()});
    if (!host || !host->folder_)
      return fail(Code::failed_precondition, "job " + std::to_string(start_.beside().job()) + " does not run here (any more)");
    folder_ = host->folder_;
    return {};
  }
  auto given = [&](const std::string& text) -> fs::path {
    if (text == "~") return services_.home;
    if (text.starts_with("~/")) return services_.home / text.substr(2);
    return text[0] == '/' ? fs::path(text) : services_.home / text;
  };
  const bool must_be_private = spec.private_folder() || spec.files_size() > 0;
  std::string wanted = spec.working_folder();
  if (wanted.empty() && services_.on_client_host) wanted = spec.client_folder();
  if (!must_be_private && !wanted.empty()) {
    const fs::path path = given(wanted);
    struct stat info {};
    if (stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
      return fail(Code::not_found, "there is no folder " + path.string() + " on " + services_.host,
                  "make it there, or give another working_folder");
    folder_ = std::make_shared<JobFolder>(path, JobFolder::Keep::stay, remove);
    return {};
  }
  const fs::path path = services_.jobs_dir / (std::to_string(id_.job.value) + "." + std::to_string(id_.number));
  if (mkdir(path.c_str(), 0700) != 0) return fail(errno_error(Code::resource_exhausted, "make the job's folder " + path.string()));
  const bool keep = spec.debug() || services_.keep_folders;
  if (keep) services_.outlive_pilot();
  folder_ = std::make_shared<JobFolder>(path, keep ? JobFolder::Keep::stay : JobFolder::Keep::remove, remove);
  return {};
}

void Job::place_files() {
  if (start_.spec().files_size() == 0) {
    start();
    return;
  }
  // Copies may be large: not on this thread. The specification is copied: we may be forgotten meanwhile.
  services_.in_background([weak = weak_from_this(), &blobs = services_.blobs, &io = services_.io,
                           files = std::vector<v1::InputFile>(start_.spec().files().begin(), start_.spec().files().end()),
                           folder = folder_] {
    Status placed;
    for (const auto& file : files)
      if (placed = blobs.place(file, folder->path()); !placed) break;
    boost::asio::post(io, [weak, placed, folder] {
      auto self = weak.lock();
      if (!self || self->step_ != Step::preparing) return;
      if (!placed) self->fail_start(placed.error());
      else self->start();
    });
  });
}

void Job::make_environment() {
  const auto& spec = start_.spec();
  environment_ = services_.environment;
  if (start_.has_beside() && start_.beside().job() != 0)
    if (const Job* host = services_.find(Attempt{JobId{start_.beside().job()}, start_.beside().attempt()}))
      environment_ = host->environment_;
  environment_.set("PWD", folder_->path().string());
  if (spec.threads() > 0) environment_.set("OMP_NUM_THREADS", std::to_string(spec.threads()));
  if (spec.has_command() && spec.command().terminal() && !environment_.get("TERM")) environment_.set("TERM", "xterm-256color");
  for (const auto& [name, value] : spec.env()) environment_.set(name, value);
  // These are how what the job leaves behind is found: they win.
  environment_.set("FLOTILLA_JOB", std::to_string(id_.job.value));
  environment_.set("FLOTILLA_ATTEMPT", std::to_string(id_.number));
}

void Job::start() {
  if (order_) {  // ended while it was being prepared
    finish(describe_not_started(facts_, *order_));
    return;
  }
  make_environment();
  Status started = start_.spec().has_worker() ? start_worker() : start_command();
  if (!started) fail_start(started.error());
}

Status Job::open_terminal(Streams& streams) {
  unique_fd master(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  char name[128];
  if (!master || grantpt(master.get()) != 0 || unlockpt(master.get()) != 0 || ptsname_r(master.get(), name, sizeof name) != 0)
    return fail(errno_error(Code::resource_exhausted, "make a terminal on " + services_.host));
  winsize size{};
  const auto& window = start_.spec().command().window();
  size.ws_row = static_cast<unsigned short>(window.rows() ? window.rows() : 24);
  size.ws_col = static_cast<unsigned short>(window.columns() ? window.columns() : 80);
  ioctl(master.get(), TIOCSWINSZ, &size);
  streams.terminal = name;
  terminal_ = std::move(master);
  return {};
}

Status Job::open_streams(Streams& streams) {
  const auto& spec = start_.spec();
  auto pump = [&](std::uint32_t number, unique_fd& child_end) -> Status {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "make a pipe for the job's output"));
    child_end.reset(ends[1]);
    auto& pump = number == 1 ? out_ : err_;
    pump = std::make_shared<OutputPump>(services_.io, number, services_.spool_dir.string(), [this](v1::OutputData data) {
      v1::Frame frame;
      *frame.mutable_output_data() = std::move(data);
      *frame.mutable_output_data()->mutable_id() = start_.id();
      services_.send(std::move(frame));
    });
    pump->open(unique_fd(ends[0]));
    return {};
  };
  auto file = [&](const std::string& name) { return open_file(name[0] == '/' ? fs::path(name) : folder_->path() / name); };

  const std::string stdout_file = spec.has_worker() ? spec.worker().stdout_file() : spec.command().stdout_file();
  const std::string stderr_file = spec.has_worker() ? spec.worker().stderr_file() : spec.command().stderr_file();
  const bool merge = spec.has_command() && spec.command().merge_stderr();
  if (!stdout_file.empty()) {
    auto fd = file(stdout_file);
    if (!fd) return fail(fd.error());
    streams.out = std::move(*fd);
    if (merge) stderr_path_ = stdout_file[0] == '/' ? fs::path(stdout_file) : folder_->path() / stdout_file;
  } else if (auto opened = pump(1, streams.out); !opened) {
    return opened;
  }
  if (merge) {
    streams.err.reset(fcntl(streams.out.get(), F_DUPFD_CLOEXEC, 3));
  } else if (!stderr_file.empty()) {
    auto fd = file(stderr_file);
    if (!fd) return fail(fd.error());
    streams.err = std::move(*fd);
    stderr_path_ = stderr_file[0] == '/' ? fs::path(stderr_file) : folder_->path() / stderr_file;
  } else if (auto opened = pump(2, streams.err); !opened) {
    return opened;
  }

  if (spec.has_command() && (spec.command().stdin_open() || !spec.command().stdin_data().empty())) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return fail(errno_error(Code::resource_exhausted, "make a pipe for the job's input"));
    streams.in.reset(ends[0]);
    in_->open(unique_fd(ends[1]), InputPump::Kind::pipe);
  }
  return {};
}

Status Job::start_command() {
  const auto& spec = start_.spec();
  Streams streams;
  SpawnRequest request;
  request.argv = build_command_launch(spec.command()).argv;
  request.environment = &environment_;
  request.folder = folder_->path().string();
  // Looked for before anything is opened: an output file must not be emptied by a command that does not exist.
  if (request.argv.empty()) return fail(Code::invalid_argument, "the job has no command");
  if (auto found = find_executable(request.argv[0], environment_, request.folder, services_.host); !found) return fail(found.error());
  auto opened = spec.command().terminal() ? open_terminal(streams) : open_streams(streams);
  if (!opened) return opened;
  request.stdin_fd = streams.in_fd();
  request.stdout_fd = streams.out_fd();
  request.stderr_fd = streams.err_fd();
  request.terminal = streams.terminal;
  request.grouping = streams.terminal.empty() ? Grouping::own_group : Grouping::own_session;
  const Moment before = BootClock::now().time_since_epoch();
  auto pid = spawn(request, services_.host);
  if (!pid) return fail(pid.error());
  if (terminal_) {
    out_ = std::make_shared<OutputPump>(services_.io, 1, services_.spool_dir.string(), [this](v1::OutputData data) {
      v1::Frame frame;
      *frame.mutable_output_data() = std::move(data);
      *frame.mutable_output_data()->mutable_id() = start_.id();
      services_.send(std::move(frame));
    });
    out_->open(unique_fd(fcntl(terminal_.get(), F_DUPFD_CLOEXEC, 3)));
    in_->open(unique_fd(fcntl(terminal_.get(), F_DUPFD_CLOEXEC, 3)), InputPump::Kind::terminal);
  }
  follow_process(*pid, before);
  return {};
}

Status Job::start_worker() {
  const auto& worker = start_.spec().worker();
  // A name of an input file, an absolute path, or something in PATH; and mpiexec says nothing clear about a missing one.
  std::string executable = worker.executable();
  const fs::path in_folder = folder_->path() / executable;
  if (!executable.empty() && executable[0] != '/' && access(in_folder.c_str(), X_OK) == 0) executable = in_folder.string();
  auto found = find_executable(executable, environment_, folder_->path().string(), services_.host);
  if (!found) return fail(found.error());

  auto gate = WorkerGate::open(services_.io);
  if (!gate) return fail(gate.error());
  auto launch = build_worker_launch(worker, start_.spec().processes(), *found, (*gate)->port(), geteuid() == 0);
  for (const auto& [name, value] : launch.environment)
    if (!environment_.get(name)) environment_.set(name, value);
  if (worker.mpi()) {
    // What Open MPI keeps in files: in /tmp it would stay when its mpiexec is killed.
    if (constexpr auto place = "OMPI_MCA_orte_tmpdir_base"; !environment_.get(place))
      environment_.set(place, fs::path(services_.hand_over_socket).parent_path().string());
    auto mpiexec = find_executable(launch.argv[0], environment_, folder_->path().string(), services_.host);
    if (!mpiexec)
      return fail(Code::not_found, mpiexec.error().message + " (worker " + worker.executable() + " is an MPI worker)",
                  "install MPI there, or load its module in the resource's setup lines");
  }
  Streams streams;
  if (auto opened = open_streams(streams); !opened) return opened;
  SpawnRequest request;
  request.argv = std::move(launch.argv);
  request.environment = &environment_;
  request.folder = folder_->path().string();
  request.stdin_fd = null_device();
  request.stdout_fd = streams.out_fd();
  request.stderr_fd = streams.err_fd();
  const Moment before = BootClock::now().time_since_epoch();
  auto pid = spawn(request, services_.host);
  if (!pid) return fail(pid.error());
  gate_ = std::move(*gate);
  gate_->members = [this] { return services_.processes.members(id_); };
  gate_->on_connected = [this](unique_fd socket) { on_connected(std::move(socket)); };
  limit_start();
  follow_process(*pid, before);
  return {};
}

void Job::limit_start() {
  kill_.expires_after(std::chrono::milliseconds(start_.spec().start_timeout_ms()));
  kill_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    auto self = weak.lock();
    if (error || !self || self->order_) return;
    const bool waiting = self->is_worker() ? self->step_ == Step::running && !self->connected_ : self->step_ == Step::preparing;
    if (waiting) self->services_.end_attempt(self->id_, EndOrder{v1::START_TIMEOUT, {}, self->start_.spec().kill_grace_ms()});
  });
}

void Job::fail_start(const Error& error, v1::ExitKind kind) {
  spdlog::info("job {}: {}", id_.job.value, error.message);
  std::string message = error.message;
  if (!error.hint.empty()) message += "; " + error.hint;
  Ending ending = describe_not_started(facts_, EndOrder{kind, message, 0});
  // As shells say it; `flotilla run` returns it.
  if (kind == v1::START_FAILED && error.code == Code::not_found) ending.reason.set_code(127);
  if (kind == v1::START_FAILED && error.code == Code::permission_denied) ending.reason.set_code(126);
  finish(std::move(ending));
}

// ---- while it runs -------------------------------------------------------------------------------------

void Job::follow_process(pid_t pid, Moment started) {
  pid_ = pid;
  step_ = Step::running;
  if (!is_worker()) kill_.cancel();
  services_.processes.add(id_, pid, started,
                          {[weak = weak_from_this()](ProcessEnd end) {
                             if (auto self = weak.lock()) self->on_exit(end);
                           },
                           [weak = weak_from_this()] {
                             if (auto self = weak.lock()) self->on_gone();
                           }});
  if (linked_) {
    for (auto& pump : {out_, err_})
      if (pump) pump->on_link_up(0);
  }
  if (start_.spec().time_limit_ms() > 0) {
    limit_.expires_after(std::chrono::milliseconds(start_.spec().time_limit_ms()));
    limit_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
      auto self = weak.lock();
      if (error || !self || self->step_ != Step::running) return;
      self->services_.end_attempt(self->id_, EndOrder{v1::TIME_LIMIT, {}, self->start_.spec().kill_grace_ms()});
    });
  }
  services_.on_started(id_);
  v1::Frame frame;
  auto& running = *frame.mutable_attempt_running();
  *running.mutable_id() = start_.id();
  running.set_pid(static_cast<std::uint32_t>(pid));
  running.set_folder(folder_->path().string());
  running.set_host(services_.host);
  services_.send(std::move(frame));
}

void Job::on_connected(unique_fd socket) {
  kill_.cancel();
  connected_ = facts_.connected = true;
  boost::asio::post(services_.io, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->gate_.reset();  // not from inside its own reaction
  });
  auto gone = [weak = weak_from_this()](const std::string& cause) {
    if (auto self = weak.lock()) self->on_client_gone(cause);
  };
  if (start_.remote_channel()) {
    services_.channels.add(id_, std::move(socket), gone);
  } else {
    services_.hand_over.offer(
        id_, start_.channel_ticket(), std::move(socket),
        [weak = weak_from_this()] {
          if (auto self = weak.lock()) self->kill_.cancel();
        },
        [gone] { gone({}); });
    kill_.expires_after(ticket_wait);
    kill_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
      auto self = weak.lock();
      if (error || !self || self->order_ || self->step_ != Step::running || self->services_.hand_over.counts(self->id_)) return;
      self->services_.end_attempt(self->id_, EndOrder{v1::CLIENT_GONE, "it never took the channel", self->start_.spec().kill_grace_ms()});
    });
  }
  v1::Frame frame;
  *frame.mutable_worker_connected()->mutable_id() = start_.id();
  frame.mutable_worker_connected()->set_hand_over_socket(start_.remote_channel() ? std::string() : services_.hand_over_socket);
  services_.send(std::move(frame));
}

void Job::on_client_gone(const std::string& cause) {
  client_gone_ = true;
  if (step_ != Step::running || order_) return;
  kill_.expires_after(farewell);
  kill_.async_wait([weak = weak_from_this(), cause](const boost::system::error_code& error) {
    auto self = weak.lock();
    if (error || !self || self->order_ || self->step_ != Step::running) return;
    self->services_.end_attempt(self->id_, EndOrder{v1::CLIENT_GONE, cause, self->start_.spec().kill_grace_ms()});
  });
}

void Job::carry_out(const EndOrder& order) {
  order_ = order;
  if (step_ == Step::created) return;  // the table ends it
  if (step_ == Step::preparing) {
    if (!missing_blobs_.empty()) {  // else start() sees the order
      missing_blobs_.clear();
      finish(describe_not_started(facts_, order));
    }
    return;
  }
  if (step_ != Step::running) return;
  gate_.reset();
  limit_.cancel();
  services_.processes.signal(id_, SIGTERM);
  if (terminal_) services_.processes.signal(id_, SIGHUP);  // interactive shells take no notice of TERM
  services_.processes.signal(id_, SIGCONT);                // what is stopped takes none of either
  const std::int64_t own = start_.spec().kill_grace_ms();
  const std::int64_t grace = order.grace_ms > 0 ? order.grace_ms : own > 0 ? own : std::chrono::milliseconds(default_kill_grace).count();
  kill_after(std::chrono::milliseconds(grace));
}

void Job::kill_after(std::chrono::milliseconds grace) {
  kill_.expires_after(grace);
  kill_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    auto self = weak.lock();
    if (error || !self || self->step_ != Step::running) return;
    self->services_.processes.signal(self->id_, SIGKILL);
    self->kill_after(kill_retry);
  });
}

void Job::hasten() {
  if (order_ && step_ == Step::running) kill_after(0ms);
}

void Job::signal(int number) {
  if (step_ != Step::running || number < 1 || number > 64) return;
  pid_t foreground = 0;
  if (terminal_ && ioctl(terminal_.get(), TIOCGPGRP, &foreground) == 0 && foreground > 0) {
    kill(-foreground, number);
    return;
  }
  kill(-pid_, number);
}

void Job::add_input(std::uint64_t offset, std::string data, bool eof) { in_->add_at(offset, std::move(data), eof); }

void Job::resize(const v1::WindowSize& window) {
  *start_.mutable_spec()->mutable_command()->mutable_window() = window;  // also for a terminal that is yet to come
  if (!terminal_) return;
  winsize size{};
  size.ws_row = static_cast<unsigned short>(window.rows());
  size.ws_col = static_cast<unsigned short>(window.columns());
  ioctl(terminal_.get(), TIOCSWINSZ, &size);
}

void Job::on_window(const v1::OutputWindow& window) {
  auto& pump = window.stream() == 2 ? err_ : out_;
  if (pump) pump->on_window(window.offset(), window.credit(), window.again());
}

void Job::on_link_up(const v1::AttemptReport* known) {
  linked_ = true;
  if (out_) out_->on_link_up(known ? known->stdout_bytes() : 0);
  if (err_) err_->on_link_up(known ? known->stderr_bytes() : 0);
  in_->on_link_up();
}

void Job::on_link_down() {
  linked_ = false;
  if (out_) out_->on_link_down();
  if (err_) err_->on_link_down();
}

// ---- its end -------------------------------------------------------------------------------------------

void Job::on_exit(ProcessEnd end) {
  step_ = Step::leaving;
  end_ = end;
  gate_.reset();
  limit_.cancel();
  kill_.cancel();
  in_->stop();
  services_.on_exited(id_);
}

void Job::on_gone() {
  // A worker that complains about its lost connection ended because of its client; one that crashed did not.
  if (client_gone_ && !order_ && end_.signal == 0 && end_.code != 0) order_ = EndOrder{v1::CLIENT_GONE, {}, 0};
  finish(describe_end(facts_, end_, order_));
}

void Job::finish(Ending ending) {
  step_ = Step::over;
  kill_.cancel();
  limit_.cancel();
  in_->stop();
  if (out_) out_->finish();
  if (err_) err_->finish();
  tail_ = stderr_tail();
  terminal_.reset();
  complete(ending.reason);
  if (is_worker()) {
    services_.hand_over.end(id_, ending.reason);
    services_.channels.end(id_, ending.reason);
  }
  folder_.reset();
  auto keep = shared_from_this();
  services_.on_ended(id_, std::move(ending));
}

std::string Job::stderr_tail() const {
  if (!stderr_path_.empty()) {
    unique_fd fd(open(stderr_path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat info {};
    if (!fd || fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) return {};
    const off_t from = std::max<off_t>(0, info.st_size - static_cast<off_t>(tail_bytes));
    std::string text(tail_bytes, '\0');
    const ssize_t n = pread(fd.get(), text.data(), text.size(), from);
    text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return last_bytes(std::move(text));
  }
  const bool merged = start_.spec().has_command() && (start_.spec().command().merge_stderr() || start_.spec().command().terminal());
  const auto& pump = merged ? out_ : err_;
  return pump ? last_bytes(pump->tail()) : std::string();
}

void Job::complete(v1::ExitReason& reason) const {
  // A job that went well has no need of it; what it wrote is kept as its output.
  if (reason.kind() == v1::EXITED && reason.code() == 0) return;
  reason.set_stderr_tail(tail_);
}

void Job::fill(v1::AttemptReport& report) const {
  *report.mutable_id() = start_.id();
  report.set_pid(static_cast<std::uint32_t>(pid_));
  if (folder_) report.set_folder(folder_->path().string());
  report.set_stdout_bytes(stdout_bytes());
  report.set_stderr_bytes(stderr_bytes());
  report.set_stdin_bytes(in_->received());
  report.set_stdin_eof(in_->eof_received());
  report.set_connected(connected_);
  if (connected_ && !start_.remote_channel()) report.set_hand_over_socket(services_.hand_over_socket);
}

std::optional<ChannelCounts> Job::channel_counts() const {
  if (!is_worker()) return std::nullopt;
  return start_.remote_channel() ? services_.channels.counts(id_) : services_.hand_over.counts(id_);
}

}  // namespace flotilla::pilot
