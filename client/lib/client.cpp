// The classes of <flotilla/client.hpp> over the daemon's gRPC service.
#include <flotilla/client.hpp>

#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "client/lib/convert.hpp"
#include "client/lib/errors.hpp"
#include "client/lib/questions.hpp"
#include "client/lib/start.hpp"
#include "client/lib/terminal.hpp"
#include "client/lib/waits.hpp"
#include "flotilla/v1/client.grpc.pb.h"
#include "proto/base/grpc_window.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/text.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/base/version.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla {
namespace {

using Clock = std::chrono::steady_clock;

// The giver of a channel answers at once; it may be busy.
constexpr auto take_limit = std::chrono::seconds(10);
// After a stream's end its cause follows at once; a pilot that is gone is noticed within 5 s (Worker::explain_end has the same default).
constexpr auto cause_limit = std::chrono::seconds(6);
constexpr auto dead_limit = std::chrono::milliseconds(1500);  // for an error message: longer is not waited for a daemon that is dead
constexpr auto why_limit = std::chrono::seconds(5);           // for the daemon's answer why something waits
constexpr auto leave_limit = std::chrono::seconds(5);         // for what was written to a job that does not read
constexpr std::size_t start_key_bytes = 16;
constexpr std::size_t blob_chunk_bytes = 1u << 20;  // PROTOCOL.md 3.2
constexpr std::size_t input_chunk_bytes = 1u << 20;
constexpr std::size_t largest_request_bytes = 64u << 20;  // what the daemon takes

Clock::time_point deadline_of(Duration limit) {
  const auto now = Clock::now();
  // Beyond a year is for ever; the sum must not overflow.
  return limit > std::chrono::hours(24 * 365) ? Clock::time_point::max() : now + limit;
}
Duration left_until(Clock::time_point deadline) {
  if (deadline == Clock::time_point::max()) return no_limit;
  return std::max(Duration(0), std::chrono::ceil<Duration>(deadline - Clock::now()));
}

bool connection_lost(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty();
}

FlotillaError::Details details_of(const grpc::Status& status) {
  v1::Error wire;
  if (!status.error_details().empty() && wire.ParseFromString(status.error_details()) && !wire.message().empty())
    return detail::from_wire(wire);
  FlotillaError::Details details;
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      details = {ErrorCode::unavailable,
                 "the connection to the daemon ended (" + status.error_message() + ")",
                 "see 'flotilla logs daemon'",
                 true,
                 {},
                 {}};
      break;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      details = {ErrorCode::timed_out, "the daemon did not answer in time", "see 'flotilla logs daemon'", true, {}, {}};
      break;
    case grpc::StatusCode::CANCELLED: details = {ErrorCode::canceled, "canceled", "", false, {}, {}}; break;
    case grpc::StatusCode::UNIMPLEMENTED:
      details = {ErrorCode::version_mismatch,
                 "the running daemon does not know this call: " + status.error_message(),
                 "run 'flotilla daemon restart'",
                 false,
                 {},
                 {}};
      break;
    default:
      details.message = "the daemon answered with an error without an explanation: " + status.error_message() + " (gRPC code " +
                        std::to_string(status.error_code()) + ")";
      details.hint = "see 'flotilla logs daemon'";
  }
  return details;
}
[[noreturn]] void raise(const grpc::Status& status) { detail::raise(details_of(status)); }

// For a promise: the exception of a class that belongs to the status.
std::exception_ptr exception_of(const grpc::Status& status) {
  try {
    raise(status);
  } catch (...) {
    return std::current_exception();
  }
}

void check_size(const google::protobuf::Message& request) {
  if (const std::size_t bytes = request.ByteSizeLong(); bytes > largest_request_bytes)
    detail::raise({ErrorCode::resource_exhausted,
                   "the request has " + std::to_string(bytes >> 20) + " MiB, the daemon takes " +
                       std::to_string(largest_request_bytes >> 20) + " MiB at once",
                   "give what is large as an input file, and many jobs in several calls",
                   false,
                   {},
                   {}});
}

std::string current_folder() {
  std::error_code failed;
  const auto folder = std::filesystem::current_path(failed);
  return failed ? std::string() : folder.native();
}

// A file's bytes, mapped; the file may be far larger than what one wants in memory.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) {
    const unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
    if (!fd || fstat(fd.get(), &info) != 0) detail::raise(errno_error(Code::not_found, "cannot read the input file " + path));
    if (!S_ISREG(info.st_mode))
      detail::raise({ErrorCode::invalid_argument, "the input file " + path + " is not a regular file", "", false, {}, {}});
    mode_ = info.st_mode & 0777;
    size_ = static_cast<std::size_t>(info.st_size);
    version_ = path + '\0' + std::to_string(info.st_dev) + ' ' + std::to_string(info.st_ino) + ' ' + std::to_string(info.st_size) + ' ' +
               std::to_string(info.st_mtim.tv_sec) + ' ' + std::to_string(info.st_mtim.tv_nsec);
    if (size_ == 0) return;
    void* at = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (at == MAP_FAILED) detail::raise(errno_error(Code::resource_exhausted, "cannot read the input file " + path));
    at_ = static_cast<const char*>(at);
  }
  ~MappedFile() {
    if (at_) munmap(const_cast<char*>(at_), size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::string_view bytes() const { return {at_, size_}; }
  unsigned mode() const { return mode_; }
  // The same for a file that has not changed.
  const std::string& version() const { return version_; }

 private:
  const char* at_ = nullptr;
  std::size_t size_ = 0;
  unsigned mode_ = 0;
  std::string version_;
};

}  // namespace

// ---- session -----------------------------------------------------------------------------------

namespace detail {

class WorkerState {
 public:
  std::shared_ptr<Session> session;
  std::uint64_t id = 0;
  unique_fd fd;
  channel::CountersMap counters;

  std::mutex mutex;                   // guards all below; not held while anything is waited for
  std::condition_variable read_over;  // `reading` has become false
  bool reading = false;               // one thread waits on `control`, and has `partial`; the others wait for it
  unique_fd control;
  std::string partial;
  std::optional<ExitReason> ended;

  std::atomic<bool> closed{false};
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  explicit Session(DaemonOptions options)
      : options_(std::move(options)), watch_([this](const auto& request) { return why(request); },
                                             options_.on_waiting ? options_.on_waiting : WaitHandler(tell_on_stderr)) {
    socket_ = options_.socket.empty() ? daemon_socket() : std::filesystem::path(options_.socket);
    // A socket that was named is another's daemon: it is not ours to start.
    const bool may_start = options_.start && options_.socket.empty();
    // gRPC would wait a second after one refused connect, so the way is tried before.
    value_or_raise(reach_daemon(socket_, may_start, options_.program));
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);  // a listing may be long
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    set_window([&](const char* name, int value) { arguments.SetInt(name, value); });
    channel_ = grpc::CreateCustomChannel("unix:" + socket_.native(), grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::ClientService::NewStub(channel_);
    const auto info = call(&Stub::GetInfo, v1::GetInfoRequest());
    if (info.protocol() < protocol_minimum || info.protocol() > protocol_version)
      raise({ErrorCode::version_mismatch,
             "the running daemon (" + info.build() + ") speaks protocol " + std::to_string(info.protocol()) + ", this library (" +
                 build_version() + ") " + std::to_string(protocol_version),
             "run 'flotilla daemon restart', or install a library of the same version",
             false,
             {},
             {}});
  }

  ~Session() {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
      if (why_context_) why_context_->TryCancel();
      work_.notify_all();
    }
    questions_.reset();
    for (auto& thread : pool_) join(thread);
  }

  using Stub = v1::ClientService::Stub;
  template <class Request, class Reply>
  using Unary = grpc::Status (Stub::*)(grpc::ClientContext*, const Request&, Reply*);
  template <class Request, class Reply>
  using Streaming = std::unique_ptr<grpc::ClientReader<Reply>> (Stub::*)(grpc::ClientContext*, const Request&);

  Stub& stub() { return *stub_; }
  Duration restart_limit() const { return options_.restart_limit; }

  template <class Request, class Reply>
  Reply call(Unary<Request, Reply> method, const Request& request, const std::stop_token& stop = {}) {
    check_size(request);
    if constexpr (!std::is_same_v<Request, v1::SubmitRequest>)  // its jobs were looked at one by one
      if (const auto good = check_text(request); !good) detail::raise(good.error());
    grpc::ClientContext context;
    const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
    Reply reply;
    const auto status = (stub_.get()->*method)(&context, request, &reply);
    if (!status.ok()) flotilla::raise(status);
    return reply;
  }
  template <class Request, class Reply, class Sink>
  void stream(Streaming<Request, Reply> method, const Request& request, Sink sink) {
    if (const auto good = check_text(request); !good) detail::raise(good.error());
    grpc::ClientContext context;
    const auto reader = (stub_.get()->*method)(&context, request);
    Reply message;
    while (reader->Read(&message)) sink(message);
    const auto status = reader->Finish();
    if (!status.ok()) flotilla::raise(status);
  }
  // `done` runs on a thread of gRPC: it must not block.
  template <class Request, class Reply>
  void call_async(void (Stub::async::*method)(grpc::ClientContext*, const Request*, Reply*, std::function<void(grpc::Status)>),
                  Request request, std::function<void(grpc::Status, Reply&)> done, std::stop_token stop = {}) {
    struct Call {
      grpc::ClientContext context;
      Request request;
      Reply reply;
      std::optional<std::stop_callback<std::function<void()>>> cancel;
    };
    auto owned = std::make_shared<Call>();
    owned->request = std::move(request);
    owned->cancel.emplace(std::move(stop), [call = owned.get()] { call->context.TryCancel(); });
    (stub_->async()->*method)(&owned->context, &owned->request, &owned->reply,
                              [owned, self = shared_from_this(), done = std::move(done)](grpc::Status status) mutable {
                                owned->cancel.reset();
                                done(std::move(status), owned->reply);
                                // With the last channel gRPC joins the thread that runs its callbacks. This is that thread: all
                                // that may hold the session is let go on another one.
                                auto* session = self.get();
                                session->post([self = std::move(self), done = std::move(done)] {});
                              });
  }

  // Runs `what` on a thread of the pool; its result or exception goes into the future. The pool has as many threads as
  // things were waited for at once: a bound could let waits stand in the way of what they wait for.
  template <class F>
  auto async(F what) -> std::future<decltype(what())> {
    auto task = std::make_shared<std::packaged_task<decltype(what())()>>(std::move(what));
    auto future = task->get_future();
    post([task] { (*task)(); });
    return future;
  }
  void post(std::function<void()> what) {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(what));
    if (idle_ >= queue_.size()) work_.notify_one();
    else pool_.emplace_back([this] { run_pool(); });
  }
  // From now on questions are answered here. Does nothing the second time, or when there is nobody to ask.
  void answer_prompts() {
    std::lock_guard lock(mutex_);
    if (questions_ || ending_) return;
    const bool somebody = options_.prompts || ::access("/dev/tty", R_OK | W_OK) == 0;
    if (!(somebody && (options_.prompts || ::isatty(STDERR_FILENO))) && !options_.accept_new_host_keys) return;
    Questions::Handler handler = ask_on_terminal;
    if (options_.prompts) handler = [said = options_.prompts](const Prompt& prompt, int) { return said(prompt); };
    questions_ = std::make_unique<Questions>(*stub_, std::move(handler), options_.accept_new_host_keys);
  }

  // ---- input files

  static std::string name_of(const InputFile& file) {
    return file.name.empty() ? std::filesystem::path(file.path).filename().native() : file.name;
  }
  // What was sent in one call: a file that many jobs have is read and asked for once.
  struct SentFiles {
    std::map<std::string, std::string> hashes;  // by MappedFile::version()
    std::set<std::string> sent;                 // hashes
  };
  void add_files(const std::vector<InputFile>& files, v1::JobSpec& spec, SentFiles& sent) {
    for (const auto& file : files) {
      std::optional<MappedFile> mapped;
      if (!file.path.empty()) mapped.emplace(file.path);
      const std::string_view bytes = mapped ? mapped->bytes() : std::string_view(file.content);
      std::string fresh;
      std::string& hash = mapped ? sent.hashes[mapped->version()] : fresh;
      if (hash.empty()) hash = sha256(bytes);
      auto& wire = *spec.add_files();
      wire.set_name(name_of(file));
      wire.set_sha256(hash);
      wire.set_size(bytes.size());
      wire.set_mode(file.mode ? file.mode : mapped ? mapped->mode() : 0);
      if (sent.sent.contains(hash)) continue;
      put_blob(hash, bytes);
      sent.sent.insert(hash);
    }
  }

  // ---- waits that outlive the daemon

  // Calls until it has an answer: a daemon that is being restarted is waited for, for `patience`. `make` makes the request anew each
  // time, with what is left of its limit.
  template <class Request, class Reply, class Make>
  Reply call_through_restart(Unary<Request, Reply> method, Make make, Clock::time_point deadline, Duration patience) {
    for (;;) {
      grpc::ClientContext context;
      Reply reply;
      const auto status = (stub_.get()->*method)(&context, make(), &reply);
      if (status.ok()) return reply;
      if (!connection_lost(status)) flotilla::raise(status);
      await_daemon(status, deadline, patience);
    }
  }

  // Until a daemon answers; throws what `lost` says when none does. A connection that is not known to be broken yet may fail the first
  // try, or the second.
  void await_daemon(const grpc::Status& lost, Clock::time_point deadline, Duration patience, const std::stop_token& stop = {}) {
    const auto until = deadline_of(patience);
    for (;;) {
      const auto left = left_until(std::min(until, deadline));
      grpc::ClientContext probe;
      const std::stop_callback cancel(stop, [&probe] { probe.TryCancel(); });
      probe.set_wait_for_ready(true);  // the channel looks for the new daemon by itself
      if (left != no_limit) probe.set_deadline(std::chrono::system_clock::now() + left);
      v1::DaemonInfo info;
      const auto status = stub_->GetInfo(&probe, v1::GetInfoRequest(), &info);
      if (status.ok()) return;
      if (stop.stop_requested()) flotilla::raise(status);
      if (Clock::now() >= deadline)
        raise({ErrorCode::timed_out,
               "the daemon went away, and is not back within the time given",
               "see 'flotilla logs daemon'",
               true,
               {},
               {}});
      if (!connection_lost(status) || Clock::now() >= until) flotilla::raise(lost);
    }
  }

  v1::WaitJobsRequest wait_request(std::uint64_t id, bool running, Clock::time_point deadline) {
    return wait_request(std::vector<std::uint64_t>{id}, running, deadline);
  }
  v1::WaitJobsRequest wait_request(const std::vector<std::uint64_t>& ids, bool running, Clock::time_point deadline) {
    v1::WaitJobsRequest request;
    for (const auto id : ids) request.add_ids(id);
    request.set_running(running);
    if (const auto left = left_until(deadline); left != no_limit) request.set_timeout_ms(std::max<std::int64_t>(1, left.count()));
    return request;
  }
  static bool wait_over(const JobInfo& info, bool running) { return has_ended(info.state) || (running && info.state == JobState::running); }
  JobInfo wait_job(std::uint64_t id, bool running, Clock::time_point deadline) {
    return wait_job(id, running, deadline, options_.restart_limit);
  }
  JobInfo wait_job(std::uint64_t id, bool running, Clock::time_point deadline, Duration patience) {
    const Watch::Wait watched(watch_, why_of(id), false);
    for (;;) {
      const auto reply = call_through_restart(
          &Stub::WaitJobs, [&] { return wait_request(id, running, deadline); }, deadline, patience);
      if (reply.jobs_size() == 0)
        raise({ErrorCode::not_found, "there is no job " + std::to_string(id), "see 'flotilla job list'", false, {}, {}});
      JobInfo info = from_wire(reply.jobs(0));
      if (wait_over(info, running)) return info;
      if (left_until(deadline).count() == 0)
        raise({ErrorCode::timed_out,
               "job " + std::to_string(id) + " is still " + std::string(to_string(info.state)) +
                   (info.message.empty() ? "" : ": " + info.message),
               "",
               true,
               {},
               {}});
    }
  }
  std::vector<JobInfo> wait_jobs(const std::vector<std::uint64_t>& ids, Clock::time_point deadline) {
    if (ids.empty()) return {};
    const Watch::Wait watched(watch_, why_of(ids.back()), false);
    const auto reply = call_through_restart(
        &Stub::WaitJobs, [&] { return wait_request(ids, false, deadline); }, deadline, options_.restart_limit);
    std::vector<JobInfo> infos;
    for (const auto& job : reply.jobs()) infos.push_back(from_wire(job));
    return infos;
  }
  PilotInfo wait_pilot(std::uint64_t id, bool ended, Clock::time_point deadline) {
    const auto make = [&] {
      v1::WaitPilotsRequest request;
      request.add_ids(id);
      request.set_ended(ended);
      if (const auto left = left_until(deadline); left != no_limit) request.set_timeout_ms(std::max<std::int64_t>(1, left.count()));
      return request;
    };
    for (;;) {
      const auto reply = call_through_restart(&Stub::WaitPilots, make, deadline, options_.restart_limit);
      if (reply.pilots_size() == 0)
        raise({ErrorCode::not_found, "there is no pilot " + std::to_string(id), "see 'flotilla pilot list'", false, {}, {}});
      PilotInfo info = from_wire(reply.pilots(0));
      if (has_ended(info.state)) {
        if (ended) return info;
        raise({ErrorCode::failed_precondition,
               "pilot " + std::to_string(id) + " has ended" + (info.message.empty() ? "" : ": " + info.message),
               "",
               false,
               {},
               {}});
      }
      if (!ended && (info.state == PilotState::running || info.state == PilotState::draining)) return info;
      if (left_until(deadline).count() == 0)
        raise({ErrorCode::timed_out,
               "pilot " + std::to_string(id) + " is still " + std::string(to_string(info.state)) +
                   (info.message.empty() ? "" : ": " + info.message),
               "",
               true,
               {},
               {}});
    }
  }

  Watch& watch() { return watch_; }

  // ---- jobs

  JobInfo job_info(std::uint64_t id) {
    v1::ListJobsRequest request;
    request.add_ids(id);
    const auto reply = call(&Stub::ListJobs, request);
    if (reply.jobs_size() == 0)
      raise({ErrorCode::not_found, "there is no job " + std::to_string(id), "see 'flotilla job list'", false, {}, {}});
    return from_wire(reply.jobs(0));
  }

  // Follows a job's output to its end, over restarts of the daemon. `open` says which job, or submits it.
  struct Followed {
    JobInfo info;
    ExitReason exit;
    std::uint64_t offsets[2]{};
  };
  template <class Sink>
  Followed follow(v1::AttachOpen open, Clock::time_point deadline, Sink sink, const std::stop_token& stop = {}) {
    Followed followed;
    // Its job is known when it was submitted.
    const auto job = std::make_shared<std::atomic<std::uint64_t>>(open.job());
    const auto ask = [job]() -> std::optional<v1::WhyJobRequest> {
      v1::WhyJobRequest request;
      request.set_id(*job);
      return *job ? std::optional(request) : std::nullopt;
    };
    const Watch::Wait watched(watch_, ask, false);
    bool over = false;
    v1::AttachInput first;
    *first.mutable_open() = open;
    check_size(first);
    for (;;) {
      grpc::ClientContext context;
      const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
      if (const auto left = left_until(deadline); left != no_limit) context.set_deadline(std::chrono::system_clock::now() + left);
      const auto call = stub_->Attach(&context);
      *first.mutable_open() = open;
      call->Write(first);
      v1::AttachOutput output;
      while (call->Read(&output)) {
        if (output.has_job()) {
          followed.info = from_wire(output.job());
          // From now on it is joined, not submitted again.
          open.clear_submit();
          open.set_job(followed.info.id);
          *job = followed.info.id;
        } else if (output.has_output()) {
          const auto& chunk = output.output();
          auto& offset = followed.offsets[chunk.stream() == 2];
          // What came before a restart may come again.
          const std::uint64_t known = offset > chunk.offset() ? offset - chunk.offset() : 0;
          if (known < chunk.data().size()) {
            sink(chunk.stream() == 2 ? 2 : 1, std::string_view(chunk.data()).substr(known));
            offset = chunk.offset() + chunk.data().size();
          }
        } else if (output.has_end()) {
          followed.exit = from_wire(output.end());
          over = true;
        }
      }
      const auto status = call->Finish();
      if (over) return followed;
      if (status.ok()) raise({ErrorCode::internal, "the daemon ended the output of a job without its end", "", true, {}, {}});
      if (!connection_lost(status) || open.has_submit()) flotilla::raise(status);
      await_daemon(status, deadline, options_.restart_limit, stop);
      open.set_stdout_offset(followed.offsets[0]);
      open.set_stderr_offset(followed.offsets[1]);
    }
  }

  JobResult result(v1::AttachOpen open, Clock::time_point deadline) {
    open.set_output_only(true);
    JobResult result;
    Followed followed;
    try {
      followed = follow(std::move(open), deadline, [&](int stream, std::string_view data) {
        (stream == 2 ? result.standard_error : result.standard_output).append(data);
      });
    } catch (const TimedOutError&) {
      raise({ErrorCode::timed_out, "the job has not ended within the time given", "", true, {}, {}});
    }
    // The end may overtake the last change of state.
    result.info = has_ended(followed.info.state) ? std::move(followed.info) : job_info(followed.info.id);
    result.info.exit = followed.exit;
    if (!followed.exit.ok()) {
      FlotillaError::Details details;
      details.code = ErrorCode::job_failed;
      details.message = !followed.exit.message.empty() ? followed.exit.message : "job " + std::to_string(result.info.id) + " failed";
      details.hint = "see 'flotilla job logs " + std::to_string(result.info.id) + "'";
      details.exit = std::move(followed.exit);
      raise(std::move(details));
    }
    return result;
  }

  template <class Spec>
  v1::JobSpec prepare(const Spec& spec, SentFiles& sent) {
    v1::JobSpec wire = to_wire(spec, current_folder());
    for (const auto& file : spec.files)  // names are looked at before anything is sent
      wire.add_files()->set_name(name_of(file));
    if (const auto good = check_text(wire); !good) raise(good.error());
    wire.clear_files();
    add_files(spec.files, wire, sent);
    return wire;
  }
  template <class Spec>
  v1::JobSpec prepare(const Spec& spec) {
    SentFiles sent;
    return prepare(spec, sent);
  }

  Worker take(const v1::WorkerChannel& where) {
    v1::Error refusal;
    auto result = channel::take_channel(where.socket(), where.ticket(), take_limit, &refusal);
    if (!result && refusal.has_exit()) raise(from_wire(refusal));
    auto taken = value_or_raise(std::move(result));
    auto state = std::make_shared<WorkerState>();
    state->session = shared_from_this();
    state->id = where.job();
    state->fd = std::move(taken.fd);
    state->counters = std::move(taken.counters);
    state->control = std::move(taken.control);
    return Worker(std::move(state));
  }

 private:
  void put_blob(const std::string& hash, std::string_view bytes) {
    if (v1::BlobInfo info; put_chunks(hash, {}, info) && info.present()) return;
    v1::BlobInfo info;
    if (!put_chunks(hash, bytes, info))
      raise({ErrorCode::unavailable, "the connection to the daemon ended while a file was sent", "", true, {}, {}});
  }
  bool put_chunks(const std::string& hash, std::string_view bytes, v1::BlobInfo& info) {
    grpc::ClientContext context;
    const auto writer = stub_->PutBlob(&context, &info);
    v1::BlobChunk chunk;
    chunk.set_sha256(hash);
    do {
      const auto part = bytes.substr(0, blob_chunk_bytes);
      chunk.set_data(part.data(), part.size());
      bytes.remove_prefix(part.size());
      if (!writer->Write(chunk)) break;  // the status says why
      chunk.clear_sha256();
    } while (!bytes.empty());
    writer->WritesDone();
    const auto status = writer->Finish();
    if (!status.ok()) flotilla::raise(status);
    return true;
  }

  std::optional<v1::WhyJobReply> why(const v1::WhyJobRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + why_limit);
    {
      std::lock_guard lock(mutex_);
      if (ending_) return std::nullopt;
      why_context_ = &context;
    }
    v1::WhyJobReply reply;
    const auto status = stub_->WhyJob(&context, request, &reply);
    std::lock_guard lock(mutex_);
    why_context_ = nullptr;
    return status.ok() ? std::optional(std::move(reply)) : std::nullopt;
  }

  void run_pool() {
    std::unique_lock lock(mutex_);
    for (;;) {
      while (queue_.empty()) {
        if (ending_) return;
        ++idle_;
        work_.wait(lock);
        --idle_;
      }
      auto what = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      what();
      // May hold the last reference to this session: then it ends here, on its own thread.
      auto alive = weak_from_this();
      what = nullptr;
      if (alive.expired()) return;
      lock.lock();
    }
  }
  static void join(std::thread& thread) {
    if (!thread.joinable()) return;
    if (thread.get_id() == std::this_thread::get_id()) thread.detach();
    else thread.join();
  }

  DaemonOptions options_;
  std::filesystem::path socket_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Stub> stub_;

  std::mutex mutex_;  // guards all below
  bool ending_ = false;
  std::unique_ptr<Questions> questions_;
  grpc::ClientContext* why_context_ = nullptr;
  std::condition_variable work_;
  std::deque<std::function<void()>> queue_;
  std::size_t idle_ = 0;
  std::vector<std::thread> pool_;

  Watch watch_;  // its thread uses all the others
};

class AttachState {
 public:
  AttachState(std::shared_ptr<Session> session, std::uint64_t job, bool from_end)
      : session_(std::move(session)), call_(session_->stub().Attach(&context_)) {
    v1::AttachInput input;
    input.mutable_open()->set_job(job);
    input.mutable_open()->set_from_end(from_end);
    send(input);
  }
  ~AttachState() {
    if (finished_) return;
    // A call that is canceled at once takes what was just written with it.
    const auto left = session_->async([this] {
      v1::AttachInput input;
      input.set_detach(true);
      call_->Write(input);
      call_->WritesDone();
      v1::AttachOutput rest;
      while (call_->Read(&rest)) {}
      call_->Finish();
    });
    if (left.wait_for(leave_limit) == std::future_status::timeout) context_.TryCancel();
    left.wait();
  }
  void send(const v1::AttachInput& input) {
    std::lock_guard lock(writing_);  // reading and writing may be on two threads, two writers may not
    if (!call_->Write(input))
      raise(FlotillaError::Details{
          ErrorCode::failed_precondition, "the job has ended, or the connection to the daemon: no input can be sent", "", false, {}, {}});
  }
  std::optional<Attachment::Event> next() {
    if (finished_) return std::nullopt;
    v1::AttachOutput output;
    if (!call_->Read(&output)) {
      finished_ = true;
      const auto status = call_->Finish();
      if (!status.ok()) flotilla::raise(status);
      return std::nullopt;
    }
    Attachment::Event event;
    if (output.has_job()) {
      event.kind = Attachment::Event::Kind::state;
      event.info = from_wire(output.job());
    } else if (output.has_output()) {
      event.stream = static_cast<int>(output.output().stream());
      event.offset = output.output().offset();
      event.data = std::move(*output.mutable_output()->mutable_data());
    } else {
      event.kind = Attachment::Event::Kind::end;
      event.exit = from_wire(output.end());
    }
    return event;
  }

 private:
  std::shared_ptr<Session> session_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::AttachInput, v1::AttachOutput>> call_;
  std::mutex writing_;
  bool finished_ = false;
};

}  // namespace detail

using detail::Session;
using Stub = Session::Stub;

// ---- Resource ------------------------------------------------------------------------------------

Resource::Resource(std::shared_ptr<Session> session, std::string name) : session_(std::move(session)), name_(std::move(name)) {}

ResourceInfo Resource::info() const {
  v1::ListResourcesRequest request;
  request.set_name(name_);
  const auto reply = session_->call(&Stub::ListResources, request);
  if (reply.resources_size() == 0)
    detail::raise({ErrorCode::not_found, "there is no resource '" + name_ + "'", "see 'flotilla resource list'", false, {}, {}});
  return detail::from_wire(reply.resources(0));
}

void Resource::connect(const std::function<void(const std::string&, double)>& on_progress) const {
  session_->answer_prompts();
  v1::ConnectResourceRequest request;
  request.set_name(name_);
  std::optional<v1::Error> error;
  session_->stream(&Stub::ConnectResource, request, [&](const v1::Progress& progress) {
    if (progress.has_error()) error = progress.error();
    else if (on_progress) on_progress(progress.message(), progress.fraction());
  });
  if (error) detail::raise(detail::from_wire(*error));
}
void Resource::disconnect() const {
  v1::ConnectResourceRequest request;
  request.set_name(name_);
  request.set_disconnect(true);
  std::optional<v1::Error> error;
  session_->stream(&Stub::ConnectResource, request, [&](const v1::Progress& progress) {
    if (progress.has_error()) error = progress.error();
  });
  if (error) detail::raise(detail::from_wire(*error));
}
bool Resource::test(const std::function<void(const TestStep&)>& on_step) const {
  session_->answer_prompts();
  v1::TestResourceRequest request;
  request.set_name(name_);
  bool well = true;
  session_->stream(&Stub::TestResource, request, [&](const v1::TestStep& step) {
    if (step.status() == v1::TestStep::FAILED) well = false;
    if (on_step) on_step(detail::from_wire(step));
  });
  return well;
}
void Resource::remove(bool force) const {
  v1::RemoveResourceRequest request;
  request.set_name(name_);
  request.set_force(force);
  session_->call(&Stub::RemoveResource, request);
}
std::future<void> Resource::connect_async() const {
  return session_->async([self = *this] { self.connect(); });
}

// ---- Pilot -----------------------------------------------------------------------------------------

Pilot::Pilot(std::shared_ptr<Session> session, std::uint64_t id) : session_(std::move(session)), id_(id) {}

PilotInfo Pilot::info() const {
  v1::ListPilotsRequest request;
  request.add_ids(id_);
  request.set_ended(true);
  const auto reply = session_->call(&Stub::ListPilots, request);
  if (reply.pilots_size() == 0)
    detail::raise({ErrorCode::not_found, "there is no pilot " + std::to_string(id_), "see 'flotilla pilot list'", false, {}, {}});
  return detail::from_wire(reply.pilots(0));
}
PilotInfo Pilot::wait(Duration limit) const { return session_->wait_pilot(id_, false, deadline_of(limit)); }
PilotInfo Pilot::wait_ended(Duration limit) const { return session_->wait_pilot(id_, true, deadline_of(limit)); }
void Pilot::stop() const {
  v1::StopPilotsRequest request;
  request.add_ids(id_);
  session_->call(&Stub::StopPilots, request);
}
void Pilot::drain() const {
  v1::StopPilotsRequest request;
  request.add_ids(id_);
  request.set_drain(true);
  session_->call(&Stub::StopPilots, request);
}
std::future<PilotInfo> Pilot::wait_async(Duration limit) const {
  return session_->async([self = *this, limit] { return self.wait(limit); });
}
std::future<PilotInfo> Pilot::wait_ended_async(Duration limit) const {
  return session_->async([self = *this, limit] { return self.wait_ended(limit); });
}

// ---- Job and Attachment ------------------------------------------------------------------------------

Job::Job(std::shared_ptr<Session> session, std::uint64_t id) : session_(std::move(session)), id_(id) {}

JobInfo Job::info() const { return session_->job_info(id_); }
JobInfo Job::wait(Duration limit) const { return session_->wait_job(id_, false, deadline_of(limit)); }
JobInfo Job::wait_running(Duration limit) const { return session_->wait_job(id_, true, deadline_of(limit)); }
JobResult Job::result(Duration limit) const {
  v1::AttachOpen open;
  open.set_job(id_);
  return session_->result(std::move(open), deadline_of(limit));
}
std::string Job::output(int stream) const {
  v1::AttachOpen open;
  open.set_job(id_);
  open.set_no_follow(true);
  open.set_output_only(true);
  std::string text;
  session_->follow(std::move(open), Clock::time_point::max(), [&](int from, std::string_view data) {
    if (from == stream) text.append(data);
  });
  return text;
}
ExitReason Job::follow(const std::function<void(int, std::string_view)>& on_output, std::stop_token stop) const {
  v1::AttachOpen open;
  open.set_job(id_);
  open.set_output_only(true);
  return session_->follow(std::move(open), Clock::time_point::max(), on_output, stop).exit;
}
Attachment Job::attach(bool from_end) const { return Attachment(std::make_unique<detail::AttachState>(session_, id_, from_end)); }
void Job::cancel() const {
  v1::CancelJobsRequest request;
  request.add_ids(id_);
  session_->call(&Stub::CancelJobs, request);
}
void Job::signal(int number) const {
  v1::SignalJobsRequest request;
  request.add_ids(id_);
  request.set_signal(number);
  session_->call(&Stub::SignalJobs, request);
}
WhyJob Job::why() const {
  v1::WhyJobRequest request;
  request.set_id(id_);
  const auto reply = session_->call(&Stub::WhyJob, request);
  return {reply.sentence(), {reply.details().begin(), reply.details().end()}};
}
std::future<WhyJob> Job::why_async() const {
  return session_->async([self = *this] { return self.why(); });
}
std::future<JobInfo> Job::wait_async(Duration limit) const {
  auto promise = std::make_shared<std::promise<JobInfo>>();
  auto future = promise->get_future();
  const auto deadline = deadline_of(limit);
  auto watched = std::make_shared<detail::Watch::Wait>(session_->watch(), detail::why_of(id_), false);
  session_->call_async<v1::WaitJobsRequest, v1::ListJobsReply>(
      &Stub::async::WaitJobs, session_->wait_request(id_, false, deadline),
      [self = *this, watched, promise, deadline](grpc::Status status, v1::ListJobsReply& reply) {
        if (status.ok() && reply.jobs_size() == 1 && has_ended(static_cast<JobState>(reply.jobs(0).state()))) {
          promise->set_value(detail::from_wire(reply.jobs(0)));
        } else if (!status.ok() && !connection_lost(status)) {
          promise->set_exception(exception_of(status));
        } else {
          // A daemon that restarts, a time that ran out: what takes longer does so on the pool.
          self.session_->post([self, promise, deadline] {
            try {
              promise->set_value(self.session_->wait_job(self.id_, false, deadline));
            } catch (...) {
              promise->set_exception(std::current_exception());
            }
          });
        }
      });
  return future;
}
std::future<JobInfo> Job::wait_running_async(Duration limit) const {
  return session_->async([self = *this, limit] { return self.wait_running(limit); });
}
std::future<JobResult> Job::result_async(Duration limit) const {
  return session_->async([self = *this, limit] { return self.result(limit); });
}

Attachment::Attachment(std::unique_ptr<detail::AttachState> state) : state_(std::move(state)) {}
Attachment::Attachment(Attachment&&) noexcept = default;
Attachment& Attachment::operator=(Attachment&&) noexcept = default;
Attachment::~Attachment() = default;
std::optional<Attachment::Event> Attachment::next() { return state_->next(); }
void Attachment::write(std::string_view text) {
  v1::AttachInput input;
  for (; !text.empty(); text.remove_prefix(input.stdin().size())) {
    const auto part = text.substr(0, input_chunk_bytes);
    input.set_stdin(part.data(), part.size());
    state_->send(input);
  }
}
void Attachment::close_input() {
  v1::AttachInput input;
  input.set_stdin_eof(true);
  state_->send(input);
}
void Attachment::signal(int number) {
  v1::AttachInput input;
  input.set_signal(number);
  state_->send(input);
}
void Attachment::resize(unsigned rows, unsigned columns) {
  v1::AttachInput input;
  input.mutable_window()->set_rows(rows);
  input.mutable_window()->set_columns(columns);
  state_->send(input);
}

// ---- Worker --------------------------------------------------------------------------------------------

namespace {

// The END line; nullopt when it has not come in time, or after close(); an error when the giver has gone without a word.
Result<std::optional<ExitReason>> read_end(detail::WorkerState& state, Clock::time_point deadline) {
  std::unique_lock lock(state.mutex);
  const auto free = [&] { return !state.reading; };
  if (deadline == Clock::time_point::max()) state.read_over.wait(lock, free);
  else if (!state.read_over.wait_until(lock, deadline, free)) return std::nullopt;
  if (state.ended || state.closed) return state.ended;
  state.reading = true;
  lock.unlock();
  auto end = channel::read_end(state.control.get(), state.partial, std::min<Duration>(left_until(deadline), std::chrono::hours(24 * 365)));
  lock.lock();
  state.reading = false;
  state.read_over.notify_all();
  if (state.closed || (end && !*end)) return state.ended;
  if (!end) return fail(end.error());
  state.ended = detail::from_wire(**end);
  return state.ended;
}

// The giver of the channel has gone (the pilot, or for remote workers the daemon): the journal knows why, at the latest when the loss
// was noticed.
ExitReason journalled_exit(detail::WorkerState& state, Clock::time_point deadline, Duration patience) {
  const auto info = state.session->wait_job(state.id, false, deadline, patience);
  ExitReason reason = info.exit;
  if (reason.message.empty()) reason.message = info.message;
  return reason;
}
ExitReason lost_worker(const detail::WorkerState& state, const Error& gone) {
  ExitReason reason;
  reason.kind = ExitKind::pilot_lost;
  reason.message = "the channel to worker " + std::to_string(state.id) + " was lost: " + gone.message;
  return reason;
}
// What was found out first stays.
ExitReason settle(detail::WorkerState& state, ExitReason reason) {
  std::lock_guard lock(state.mutex);
  if (!state.ended) state.ended = std::move(reason);
  return *state.ended;
}

std::optional<ExitReason> exit_of(detail::WorkerState& state, Duration limit) {
  const auto deadline = deadline_of(limit);
  const auto end = read_end(state, deadline);
  if (end) return *end;
  try {
    return settle(state, journalled_exit(state, std::max(deadline, Clock::now() + cause_limit), state.session->restart_limit()));
  } catch (const FlotillaError&) {
    return settle(state, lost_worker(state, end.error()));
  }
}

// Waits shortly for the cause, and hardly for a daemon that is dead.
std::string explain(detail::WorkerState& state, Duration limit = cause_limit) {
  const auto deadline = deadline_of(limit);
  const auto end = read_end(state, deadline);
  std::optional<ExitReason> reason;
  std::string silent;
  if (end) {
    reason = *end;
  } else {
    try {
      reason = settle(state, journalled_exit(state, deadline, dead_limit));
    } catch (const FlotillaError& error) {
      // A daemon that is started later may know more: exit() asks it.
      reason = lost_worker(state, end.error());
      silent = "; " + error.message();
    }
  }
  if (!reason) return {};
  std::string text = reason->message + silent;
  if (!reason->stderr_tail.empty()) text += "\nlast lines of its stderr:\n" + reason->stderr_tail;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace

Worker::Worker(std::shared_ptr<detail::WorkerState> state) : state_(std::move(state)) {}
Worker::Worker(Worker&&) noexcept = default;
Worker& Worker::operator=(Worker&& other) noexcept {
  if (this != &other) {
    close();
    state_ = std::move(other.state_);
  }
  return *this;
}
Worker::~Worker() { close(); }
std::uint64_t Worker::id() const { return state_->id; }
Job Worker::job() const { return Job(state_->session, state_->id); }
JobInfo Worker::info() const { return state_->session->job_info(state_->id); }
WhyJob Worker::why() const { return job().why(); }
std::future<WhyJob> Worker::why_async() const { return job().why_async(); }
int Worker::fd() const { return state_->fd.get(); }
std::uint64_t* Worker::counters() const {
  // The three atomics lie one behind the other and have no other content.
  return reinterpret_cast<std::uint64_t*>(&*state_->counters);
}
std::optional<ExitReason> Worker::exit(Duration limit) const { return exit_of(*state_, limit); }
std::string Worker::explain_end(Duration limit) const { return explain(*state_, limit); }
std::function<std::string()> Worker::explainer() const {
  return [state = state_] { return explain(*state); };
}
void Worker::check() const {
  auto reason = exit(Duration(0));
  if (!reason || closed()) return;
  FlotillaError::Details details;
  details.code = ErrorCode::worker_failed;
  details.message = reason->message;
  details.exit = std::move(reason);
  detail::raise(std::move(details));
}
void Worker::cancel() const { job().cancel(); }
void Worker::close() {
  if (!state_) return;
  if (state_->closed.exchange(true)) return;
  // Wakes whoever waits in exit() of this worker, on whatever thread.
  if (state_->fd) ::shutdown(state_->fd.get(), SHUT_RDWR);
  if (state_->control) ::shutdown(state_->control.get(), SHUT_RDWR);
  std::unique_lock lock(state_->mutex);
  state_->read_over.wait(lock, [&] { return !state_->reading; });
  state_->fd.reset();
  state_->control.reset();
}
bool Worker::closed() const { return !state_ || state_->closed; }

// ---- Daemon --------------------------------------------------------------------------------------------

Daemon::Daemon(DaemonOptions options) : session_(std::make_shared<Session>(std::move(options))) {}

DaemonInfo Daemon::info() const { return detail::from_wire(session_->call(&Stub::GetInfo, v1::GetInfoRequest())); }
void Daemon::shutdown(bool all) const {
  v1::ShutdownRequest request;
  request.set_all(all);
  std::optional<v1::Error> error;
  session_->stream(&Stub::Shutdown, request, [&](const v1::Progress& progress) {
    if (progress.has_error()) error = progress.error();
  });
  if (error) detail::raise(detail::from_wire(*error));
}

Resource Daemon::add_resource(const ResourceSpec& spec, bool replace) const {
  v1::AddResourceRequest request;
  *request.mutable_spec() = detail::to_wire(spec);
  request.set_replace(replace);
  session_->call(&Stub::AddResource, request);
  return Resource(session_, spec.name);
}
Resource Daemon::resource(const std::string& name) const {
  Resource resource(session_, name);
  (void)resource.info();
  return resource;
}
std::vector<ResourceInfo> Daemon::resources() const {
  std::vector<ResourceInfo> all;
  const auto reply = session_->call(&Stub::ListResources, v1::ListResourcesRequest());
  for (const auto& each : reply.resources()) all.push_back(detail::from_wire(each));
  return all;
}

Pilot Daemon::start_pilot(const PilotSpec& spec) const {
  session_->answer_prompts();
  v1::StartPilotRequest request;
  *request.mutable_spec() = detail::to_wire(spec);
  request.set_count(1);
  return Pilot(session_, session_->call(&Stub::StartPilot, request).id());
}
Pilot Daemon::pilot(std::uint64_t id) const {
  Pilot pilot(session_, id);
  (void)pilot.info();
  return pilot;
}
std::vector<PilotInfo> Daemon::pilots(bool ended) const {
  v1::ListPilotsRequest request;
  request.set_ended(ended);
  std::vector<PilotInfo> all;
  const auto reply = session_->call(&Stub::ListPilots, request);
  for (const auto& each : reply.pilots()) all.push_back(detail::from_wire(each));
  return all;
}

Job Daemon::submit(const CommandSpec& spec) const { return submit_many({spec}).front(); }
std::vector<Job> Daemon::submit_many(const std::vector<CommandSpec>& specs) const {
  v1::SubmitRequest request;
  Session::SentFiles sent;
  for (const auto& spec : specs) *request.add_specs() = session_->prepare(spec, sent);
  std::vector<Job> jobs;
  const auto reply = session_->call(&Stub::Submit, request);
  for (const auto id : reply.ids()) jobs.push_back(Job(session_, id));
  if (jobs.size() != specs.size())
    detail::raise({ErrorCode::internal,
                   "the daemon took " + std::to_string(jobs.size()) + " of " + std::to_string(specs.size()) + " jobs",
                   "",
                   false,
                   {},
                   {}});
  return jobs;
}
std::vector<JobInfo> Daemon::wait_all(const std::vector<Job>& jobs, Duration limit) const {
  std::vector<std::uint64_t> ids;
  for (const Job& job : jobs) ids.push_back(job.id());
  return session_->wait_jobs(ids, deadline_of(limit));
}
JobResult Daemon::run(const CommandSpec& spec) const {
  v1::AttachOpen open;
  *open.mutable_submit() = session_->prepare(spec);
  return session_->result(std::move(open), Clock::time_point::max());
}
Job Daemon::job(std::uint64_t id) const {
  Job job(session_, id);
  (void)job.info();
  return job;
}
std::vector<JobInfo> Daemon::jobs(std::size_t limit) const {
  v1::ListJobsRequest request;
  request.set_limit(static_cast<std::uint32_t>(limit));
  std::vector<JobInfo> all;
  const auto reply = session_->call(&Stub::ListJobs, request);
  for (const auto& each : reply.jobs()) all.push_back(detail::from_wire(each));
  return all;
}

Worker Daemon::start_worker(const WorkerSpec& spec, std::stop_token stop) const {
  session_->answer_prompts();
  v1::StartWorkerRequest request;
  *request.mutable_spec() = session_->prepare(spec);
  request.set_start_key(random_bytes(start_key_bytes));
  const detail::Watch::Wait watched(session_->watch(), detail::why_of_start(request.start_key()), true);
  return session_->take(session_->call(&Stub::StartWorker, request, stop));
}

std::future<Pilot> Daemon::start_pilot_async(const PilotSpec& spec) const {
  return session_->async([self = *this, spec] { return self.start_pilot(spec); });
}
std::future<Job> Daemon::submit_async(const CommandSpec& spec) const {
  return session_->async([self = *this, spec] { return self.submit(spec); });
}
std::future<std::vector<JobInfo>> Daemon::wait_all_async(const std::vector<Job>& jobs, Duration limit) const {
  return session_->async([self = *this, jobs, limit] { return self.wait_all(jobs, limit); });
}
std::future<JobResult> Daemon::run_async(const CommandSpec& spec) const {
  return session_->async([self = *this, spec] { return self.run(spec); });
}
std::future<Worker> Daemon::start_worker_async(const WorkerSpec& spec, std::stop_token stop) const {
  session_->answer_prompts();
  auto promise = std::make_shared<std::promise<Worker>>();
  auto future = promise->get_future();
  v1::StartWorkerRequest request;
  *request.mutable_spec() = session_->prepare(spec);  // files are sent before this returns: they may change afterwards
  request.set_start_key(random_bytes(start_key_bytes));
  auto watched = std::make_shared<detail::Watch::Wait>(session_->watch(), detail::why_of_start(request.start_key()), true);
  session_->call_async<v1::StartWorkerRequest, v1::WorkerChannel>(
      &Stub::async::StartWorker, std::move(request),
      [session = session_, watched, promise](grpc::Status status, v1::WorkerChannel& where) {
        if (!status.ok()) {
          promise->set_exception(exception_of(status));
          return;
        }
        session->post([session, promise, where] {
          try {
            promise->set_value(session->take(where));
          } catch (...) {
            promise->set_exception(std::current_exception());
          }
        });
      },
      std::move(stop));
  return future;
}

}  // namespace flotilla
