// Flotilla for C++ programs: say where work runs, start it, and use a remote code as if it were local.
//
//   flotilla::Daemon daemon;                                              // starts the daemon when none runs
//   daemon.add_resource({.name = "hpc1", .location = "me@hpc1.example.org"});
//   flotilla::Pilot pilot = daemon.start_pilot({.resource = "hpc1", .label = "big"});
//   flotilla::Job job = daemon.submit({.argv = {"hostname"}, .label = "big"});
//   std::cout << job.result().standard_output;
//   flotilla::Worker gravity = daemon.start_worker({.executable = "./gravity_worker", .label = "big"});
//   flotilla::RemoteCode code(gravity.fd(), gravity.code_options<flotilla::CodeOptions>());  // <flotilla/code.hpp>
//
// Calls that wait for a job, a pilot, a login or a worker's start have a twin with `_async` that returns a std::future. None have
// Resource::test and Job::follow, which tell what happens as it does, Job::attach, and Worker::exit. Objects are handles: copies of Resource,
// Pilot and Job stand for the same thing, and letting go of one changes nothing; a Worker owns its channel, and ends
// with it. Methods may be called from any thread. What goes wrong is thrown as a FlotillaError.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#if defined(__GNUC__)
#define FLOTILLA_API __attribute__((visibility("default")))
#else
#define FLOTILLA_API
#endif

namespace flotilla {

using Duration = std::chrono::milliseconds;
using Moment = std::chrono::system_clock::time_point;
// For waits: as long as it takes.
inline constexpr Duration no_limit = Duration::max();

// ---- how things end --------------------------------------------------------------------------------

enum class ExitKind {
  none = 0,      // has not ended
  exited = 1,    // `code`
  signaled = 2,  // `signal`
  time_limit = 3,
  canceled = 4,
  queue_timeout = 5,
  start_timeout = 6,  // a worker did not connect in time
  start_failed = 7,   // could not be started at all
  pilot_lost = 8,
  pilot_ended = 9,   // its time was up, or it was stopped
  client_gone = 10,  // a worker's client went away
  refused = 11,
};

struct ExitReason {
  ExitKind kind = ExitKind::none;
  int code = 0;
  int signal = 0;
  std::string message;      // one sentence: "worker gravity_worker on node1 was killed by signal 11 (SIGSEGV)"
  std::string stderr_tail;  // the last lines
  std::string host;
  bool core_dumped = false;
  bool ok() const { return kind == ExitKind::exited && code == 0; }
};

// ---- errors ------------------------------------------------------------------------------------------

enum class ErrorCode {
  invalid_argument = 1,
  not_found = 2,
  already_exists = 3,
  failed_precondition = 4,
  unavailable = 5,
  permission_denied = 6,
  authentication_failed = 7,
  host_key_unknown = 8,
  host_key_changed = 9,
  timed_out = 10,
  canceled = 11,
  unsupported = 12,
  resource_exhausted = 13,
  version_mismatch = 14,
  worker_failed = 15,
  internal = 16,
  job_failed = 100,  // made here: Job::result() of a job that did not finish well
};

// What all errors derive from. what() is the message with the hint.
class FLOTILLA_API FlotillaError : public std::runtime_error {
 public:
  struct Details {
    ErrorCode code = ErrorCode::internal;
    std::string message;              // names the thing and the cause
    std::string hint;                 // the next step, often a command
    bool retry = false;               // the same call may succeed later
    std::vector<std::string> faults;  // all that is wrong with a description
    std::optional<ExitReason> exit;   // how the worker or job ended
  };
  explicit FlotillaError(Details details);
  ~FlotillaError() override;
  ErrorCode code() const { return details_->code; }
  const std::string& message() const { return details_->message; }
  const std::string& hint() const { return details_->hint; }
  bool retry() const { return details_->retry; }
  const std::vector<std::string>& faults() const { return details_->faults; }
  const std::optional<ExitReason>& exit() const { return details_->exit; }
  const Details& details() const { return *details_; }

 private:
  std::shared_ptr<const Details> details_;
};

#define FLOTILLA_ERROR(name)                       \
  class FLOTILLA_API name : public FlotillaError { \
   public:                                         \
    using FlotillaError::FlotillaError;            \
    ~name() override;                              \
  }
FLOTILLA_ERROR(InvalidArgumentError);  // what was asked for can never be right; faults() lists all
FLOTILLA_ERROR(NotFoundError);
FLOTILLA_ERROR(AlreadyExistsError);
FLOTILLA_ERROR(FailedPreconditionError);  // right in itself, not in the present state
FLOTILLA_ERROR(UnavailableError);         // a machine or process cannot be reached
FLOTILLA_ERROR(PermissionDeniedError);
FLOTILLA_ERROR(AuthenticationFailedError);
FLOTILLA_ERROR(HostKeyUnknownError);
FLOTILLA_ERROR(HostKeyChangedError);
FLOTILLA_ERROR(TimedOutError);
FLOTILLA_ERROR(CanceledError);
FLOTILLA_ERROR(UnsupportedError);
FLOTILLA_ERROR(ResourceExhaustedError);
FLOTILLA_ERROR(VersionMismatchError);
FLOTILLA_ERROR(WorkerFailedError);  // a code worker did not start, or died; exit() says how
FLOTILLA_ERROR(JobFailedError);     // exit() says how
FLOTILLA_ERROR(InternalError);      // a defect of Flotilla
#undef FLOTILLA_ERROR

// ---- descriptions ------------------------------------------------------------------------------------

struct ResourceSpec {
  std::string name;
  std::string location;  // user@host:port; empty = this machine
  std::string driver;    // "local", "ssh"; empty = local without a location, else ssh
  std::string gateway;   // name of the resource that the connection goes through
  std::string scratch_dir;
  std::map<std::string, std::string> env;
  std::vector<std::string> setup;  // shell lines, run once before each pilot
  std::string transport;           // "libssh" (default) or "openssh"
  std::vector<std::string> hosts;  // nodes that the front end reaches by its own ssh; none = the front end itself
  std::map<std::string, std::string> options;
  bool debug = false;
  Duration setup_timeout{0};  // for all lines of setup together; 0 = 10 minutes
};

struct PilotSpec {
  std::string resource;
  unsigned node_count = 1;
  unsigned slots_per_node = 0;  // 0 = the node's processors
  Duration time{0};             // the pilot ends by itself after this; 0 = no limit
  std::string label;
  std::map<std::string, std::string> options;
  Duration idle{0};    // ends after this long without a job; 0 = as configured, negative = never
  Duration cutoff{0};  // ends after this long without a link; 0 = as configured
  bool debug = false;
};

// Laid into the job's folder before it starts. Sent once, and kept by content.
struct InputFile {
  std::string path;  // here; empty: `content` is what is sent
  std::string name;  // in the job's folder; empty = the last part of `path`
  std::string content;
  unsigned mode = 0;  // permission bits; 0 = those of the file, or 0644
};

// What commands and workers have in common; descriptions below repeat it so that they can be written in one go.
struct CommandSpec {
  std::vector<std::string> argv;  // argv[0] is looked up in PATH of the job's environment
  std::string name;
  std::string label;  // empty = any pilot; else the pilot's label or its resource's name
  unsigned processes = 1;
  unsigned threads = 1;  // per process; slots = processes x threads
  std::map<std::string, std::string> env;
  std::string working_folder;    // on the node; empty = here, on this machine; elsewhere a private folder
  std::vector<InputFile> files;  // if any, or private_folder: runs in a private folder
  bool private_folder = false;
  std::string standard_input;
  bool open_input = false;  // more input comes by Attachment::write
  std::string stdout_file;  // on the node; empty = kept by the daemon
  std::string stderr_file;
  bool merge_stderr = false;
  Duration time_limit{0};
  Duration queue_timeout{0};
  Duration start_timeout{0};  // until its input files are there
  Duration kill_grace{0};     // between TERM and KILL; 0 = 5 s
  std::uint64_t pilot = 0;    // only this pilot
  bool debug = false;         // the private folder is kept
};

// A code in the AMUSE convention: it is started with port, host and a flag, and connects back.
struct WorkerSpec {
  std::string executable;         // absolute, relative to the job's folder (an input file's name), or in PATH
  std::vector<std::string> args;  // before port, host and flag
  std::string name;
  std::string label;
  unsigned processes = 1;
  unsigned threads = 1;
  bool mpi = false;  // started by mpiexec -n processes
  std::map<std::string, std::string> env;
  std::string working_folder;
  std::vector<InputFile> files;
  bool private_folder = false;
  std::string stdout_file;
  std::string stderr_file;
  Duration time_limit{0};
  Duration queue_timeout{0};
  Duration start_timeout{0};
  Duration kill_grace{0};
  std::uint64_t pilot = 0;
  bool debug = false;
};

// ---- what one sees -----------------------------------------------------------------------------------

enum class HubState { none, connecting, authenticating, uploading, starting, connected, unreachable, failed };
enum class PilotState { submitted, starting, running, unreachable, draining, finished, failed };
enum class JobState { submitted, queued, dispatched, running, finished, failed, canceled };
FLOTILLA_API std::string_view to_string(HubState state);
FLOTILLA_API std::string_view to_string(PilotState state);
FLOTILLA_API std::string_view to_string(JobState state);
FLOTILLA_API std::string_view to_string(ExitKind kind);
inline bool has_ended(PilotState state) { return state >= PilotState::finished; }
inline bool has_ended(JobState state) { return state >= JobState::finished; }

struct DaemonInfo {
  std::string build;
  int pid = 0;
  std::string host;
  std::string instance;
  Moment started;
  std::string socket, web_url, state_dir, log_file, config_file;
  std::uint64_t resources = 0, pilots_running = 0, jobs_waiting = 0, jobs_running = 0;
};

struct ResourceInfo {
  ResourceSpec spec;
  HubState hub_state = HubState::none;
  std::string hub_message;  // progress, or the reason for unreachable/failed
  std::string hub_host;
  std::string hub_build;
  Duration round_trip{0};  // 0 = unknown
};

struct TestStep {
  enum class Status { running, ok, warning, failed, skipped };
  std::string name;
  Status status = Status::running;
  std::string message;
  std::string hint;
  Duration took{0};
};

struct NodeInfo {
  unsigned index = 0;
  std::string host;
  unsigned slots = 0, slots_used = 0;
  bool connected = false;
  std::string message;  // why it is not there
};

struct PilotInfo {
  std::uint64_t id = 0;
  PilotSpec spec;
  PilotState state = PilotState::submitted;
  std::string message;  // the reason for the state
  std::vector<NodeInfo> nodes;
  unsigned slots = 0, slots_used = 0, jobs_running = 0;
  std::uint64_t jobs_done = 0;
  std::optional<Moment> submitted, running, ended, ends_at;
};

struct JobInfo {
  std::uint64_t id = 0;
  std::string name;
  std::string label;
  JobState state = JobState::submitted;
  std::string message;  // why it waits or how it ended
  ExitReason exit;
  unsigned attempt = 0;
  std::uint64_t pilot = 0;
  std::string host;
  int pid = 0;
  std::string folder;
  bool is_worker = false;
  bool pilot_unreachable = false;  // what is shown is the last that was known
  std::uint64_t stdout_bytes = 0, stderr_bytes = 0;
  std::uint64_t calls = 0, bytes_to_worker = 0, bytes_from_worker = 0;  // workers
  std::optional<Moment> submitted, queued, dispatched, running, ended;
};

struct JobResult {
  JobInfo info;
  std::string standard_output;
  std::string standard_error;
};

struct WhyJob {
  std::string sentence;
  std::vector<std::string> details;
};

// A wait that lasts, and why what it waits for does not begin.
struct WaitNotice {
  std::uint64_t job = 0;
  std::string sentence;  // "no pilot has the label 'big' ...": with the next step
};
// Called on a thread of the library, one at a time, for each reason once.
using WaitHandler = std::function<void(const WaitNotice&)>;
// One line on standard error. What is used when no handler is given.
FLOTILLA_API void tell_on_stderr(const WaitNotice& notice);

// ---- questions of the daemon: passwords, second factors, host keys ---------------------------------------

struct Prompt {
  enum class Kind { host_key, secret, text };
  Kind kind = Kind::text;
  std::string resource;
  std::string text;
  std::string fingerprint;  // host_key
};
// Returns the answer (host keys: "yes" or "no"); nullopt refuses. Called on a thread of the library, one at a time.
using PromptHandler = std::function<std::optional<std::string>(const Prompt&)>;
// Asks on the terminal, secrets without echo. What is used when no handler is given and there is a terminal.
FLOTILLA_API std::optional<std::string> ask_on_terminal(const Prompt& prompt);

// ---- the classes -------------------------------------------------------------------------------------------

class Daemon;
namespace detail {
class Session;  // the connection to the daemon, shared by all that was got from it
class WorkerState;
class AttachState;
}  // namespace detail

class FLOTILLA_API Resource {
 public:
  const std::string& name() const { return name_; }
  ResourceInfo info() const;
  // Logs in, brings the agent there, starts the hub; nothing if that is done. `on_progress`: sentences for the user.
  void connect(const std::function<void(const std::string&, double fraction)>& on_progress = {}) const;
  void disconnect() const;
  // Step by step; `on_step` as they begin and end. Returns whether all is well.
  bool test(const std::function<void(const TestStep&)>& on_step = {}) const;
  void remove(bool force = false) const;
  std::future<void> connect_async() const;

 private:
  friend class Daemon;
  Resource(std::shared_ptr<detail::Session> session, std::string name);
  std::shared_ptr<detail::Session> session_;
  std::string name_;
};

class FLOTILLA_API Pilot {
 public:
  std::uint64_t id() const { return id_; }
  PilotInfo info() const;
  // Returns when it runs; throws at once when it fails. TimedOutError after `limit`.
  PilotInfo wait(Duration limit = no_limit) const;
  PilotInfo wait_ended(Duration limit = no_limit) const;
  void stop() const;
  void drain() const;  // ends when the running jobs have
  std::future<PilotInfo> wait_async(Duration limit = no_limit) const;
  std::future<PilotInfo> wait_ended_async(Duration limit = no_limit) const;

 private:
  friend class Daemon;
  Pilot(std::shared_ptr<detail::Session> session, std::uint64_t id);
  std::shared_ptr<detail::Session> session_;
  std::uint64_t id_;
};

// A connection to a job's output and input. Letting go of it detaches, when what was written has gone to the job (for 5 s at
// most): the job goes on.
class FLOTILLA_API Attachment {
 public:
  struct Event {
    enum class Kind { state, output, end };
    Kind kind = Kind::output;
    int stream = 1;  // 1 stdout, 2 stderr
    std::uint64_t offset = 0;
    std::string data;
    JobInfo info;     // state
    ExitReason exit;  // end, the last event
  };
  Attachment(Attachment&&) noexcept;
  Attachment& operator=(Attachment&&) noexcept;
  ~Attachment();
  // Waits for the next event; nullopt after the end.
  std::optional<Event> next();
  void write(std::string_view input);
  void close_input();
  void signal(int number);
  void resize(unsigned rows, unsigned columns);

 private:
  friend class Job;
  explicit Attachment(std::unique_ptr<detail::AttachState> state);
  std::unique_ptr<detail::AttachState> state_;
};

class FLOTILLA_API Job {
 public:
  std::uint64_t id() const { return id_; }
  JobInfo info() const;
  // Returns when it has ended, however it did. TimedOutError after `limit`; the job goes on then.
  JobInfo wait(Duration limit = no_limit) const;
  JobInfo wait_running(Duration limit = no_limit) const;
  // Waits for the end and brings what it wrote; JobFailedError unless it exited with 0.
  JobResult result(Duration limit = no_limit) const;
  // What it has written up to now. stream: 1 stdout, 2 stderr.
  std::string output(int stream = 1) const;
  // Output as it comes, from the beginning, until the end. When `stop` is requested it is followed no more (CanceledError); the job goes on.
  ExitReason follow(const std::function<void(int stream, std::string_view data)>& on_output, std::stop_token stop = {}) const;
  Attachment attach(bool from_end = false) const;
  void cancel() const;  // TERM, then KILL, to the whole process group
  void signal(int number) const;
  WhyJob why() const;  // why it waits, where it runs, or how it ended
  std::future<WhyJob> why_async() const;
  std::future<JobInfo> wait_async(Duration limit = no_limit) const;
  std::future<JobInfo> wait_running_async(Duration limit = no_limit) const;
  std::future<JobResult> result_async(Duration limit = no_limit) const;

 private:
  friend class Daemon;
  friend class Worker;
  Job(std::shared_ptr<detail::Session> session, std::uint64_t id);
  std::shared_ptr<detail::Session> session_;
  std::uint64_t id_;
};

// A code that stays up and is called over a byte stream. Owns the stream: closing it (or the destructor) ends the worker.
class FLOTILLA_API Worker {
 public:
  Worker(Worker&&) noexcept;
  Worker& operator=(Worker&&) noexcept;
  ~Worker();
  std::uint64_t id() const;  // of its job
  Job job() const;
  JobInfo info() const;
  WhyJob why() const;  // where it runs, or how it ended
  std::future<WhyJob> why_async() const;
  // The connected stream socket, blocking. Stays this object's.
  int fd() const;
  // Three 64-bit numbers that the caller keeps up to date and the daemon shows: calls, bytes to the worker, bytes from it.
  std::uint64_t* counters() const;
  // How it ended; nullopt when it has not within `limit`. Waits on the channel itself, no poll.
  std::optional<ExitReason> exit(Duration limit = Duration(0)) const;
  // One sentence for an error message after the stream ended: waits shortly for the cause, up to `limit`. A pilot that is gone is noticed
  // within 5 s; without a cause the sentence says what was lost, or is empty when the worker may still be there.
  std::string explain_end(Duration limit = Duration(6'000)) const;
  // Throws WorkerFailedError with the cause when it has ended otherwise than by close().
  void check() const;
  void cancel() const;
  void close();
  bool closed() const;

  // Options for <flotilla/code.hpp>: counted, and errors say why the worker died. `Options` is flotilla::CodeOptions.
  // Valid as long as this worker is where it is (not moved from).
  template <class Options>
  Options code_options() const {
    Options options;
    options.counters = counters();
    options.explain = explainer();
    return options;
  }

 private:
  friend class Daemon;
  friend class detail::Session;
  explicit Worker(std::shared_ptr<detail::WorkerState> state);
  std::function<std::string()> explainer() const;
  std::shared_ptr<detail::WorkerState> state_;
};

struct DaemonOptions {
  std::string socket;                 // empty = this user's daemon on this machine
  bool start = true;                  // start it when it does not run
  std::string program;                // the program `flotilla`; empty = $FLOTILLA_PROGRAM, else from PATH
  PromptHandler prompts;              // none = the terminal, where there is one
  bool accept_new_host_keys = false;  // unknown ones; a changed key is never accepted
  Duration restart_limit{30'000};     // a wait goes on when the daemon was lost and answers again within this
  // Told when what is waited for (wait, result, follow, run, start_worker) has not begun after 2 s; what passes by itself, as a pilot
  // that starts, only after 8 s, and commands that queue for slots not at all. None = tell_on_stderr.
  WaitHandler on_waiting;
};

class FLOTILLA_API Daemon {
 public:
  explicit Daemon(DaemonOptions options = {});

  DaemonInfo info() const;
  // Ends the daemon; with `all` first every job, pilot and hub.
  void shutdown(bool all = false) const;

  Resource add_resource(const ResourceSpec& spec, bool replace = false) const;
  Resource resource(const std::string& name) const;  // NotFoundError names what there is
  std::vector<ResourceInfo> resources() const;

  Pilot start_pilot(const PilotSpec& spec) const;  // accepted; wait() for it to run
  Pilot pilot(std::uint64_t id) const;
  std::vector<PilotInfo> pilots(bool ended = false) const;

  Job submit(const CommandSpec& spec) const;
  std::vector<Job> submit_many(const std::vector<CommandSpec>& specs) const;                     // all or none
  std::vector<JobInfo> wait_all(const std::vector<Job>& jobs, Duration limit = no_limit) const;  // one call for all
  JobResult run(const CommandSpec& spec) const;                                                  // submit and result
  Job job(std::uint64_t id) const;
  std::vector<JobInfo> jobs(std::size_t limit = 0) const;  // oldest first; a limit leaves the newest, 0 = all

  // Returns when the worker has connected back. WorkerFailedError says why it did not; TimedOutError: not within a limit given.
  // To give up a worker that waits in a queue or starts, request `stop`, from any thread: its job is canceled, and this throws CanceledError.
  Worker start_worker(const WorkerSpec& spec, std::stop_token stop = {}) const;

  std::future<Pilot> start_pilot_async(const PilotSpec& spec) const;
  std::future<Job> submit_async(const CommandSpec& spec) const;
  std::future<std::vector<JobInfo>> wait_all_async(const std::vector<Job>& jobs, Duration limit = no_limit) const;
  std::future<JobResult> run_async(const CommandSpec& spec) const;
  std::future<Worker> start_worker_async(const WorkerSpec& spec, std::stop_token stop = {}) const;

 private:
  std::shared_ptr<detail::Session> session_;
};

}  // namespace flotilla
