#include "client/cli/daemon_client.hpp"

#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "client/cli/core/units.hpp"
#include "client/cli/daemon_start.hpp"
#include "flotilla/v1/client.grpc.pb.h"
#include "proto/base/error_wire.hpp"
#include "proto/base/grpc_window.hpp"
#include "proto/base/text.hpp"
#include "proto/base/version.hpp"

namespace flotilla::cli {
namespace {

constexpr std::chrono::milliseconds restart_first{1000};  // who restarts the daemon does it within this, else we start it
constexpr std::chrono::milliseconds restart_limit{20'000};
constexpr std::chrono::milliseconds reconnect_step{50};

const char restart_hint[] = "run 'flotilla daemon restart' (jobs and pilots go on)";

// The daemon's word, when it said one; else what the connection's end means.
Error error_of(const grpc::Status& status) {
  v1::Error wire;
  if (!status.error_details().empty() && wire.ParseFromString(status.error_details()) && !wire.message().empty()) return from_wire(wire);
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return Error{Code::unavailable,
                   "the connection to the daemon ended (" + status.error_message() + ")",
                   "see 'flotilla logs daemon', then try again",
                   Retry::yes,
                   {}};
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return Error{Code::timeout, "the daemon did not answer in time", "see 'flotilla logs daemon'", Retry::yes, {}};
    case grpc::StatusCode::UNIMPLEMENTED:
      return Error{
          Code::version_mismatch, "the running daemon does not know this call: " + status.error_message(), restart_hint, Retry::no, {}};
    case grpc::StatusCode::CANCELLED: return Error{Code::canceled, "canceled", "", Retry::no, {}};
    default:
      return Error{Code::internal,
                   "the daemon answered with an error without an explanation: " + status.error_message() + " (gRPC code " +
                       std::to_string(status.error_code()) + ")",
                   "see 'flotilla logs daemon'",
                   Retry::no,
                   {}};
  }
}

bool connection_ended(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty();
}

template <class Out, class In>
class Stream final : public DaemonStream<Out, In> {
 public:
  using Call = std::unique_ptr<grpc::ClientReaderWriterInterface<Out, In>>;
  template <class Start>
  explicit Stream(Start start) : call_(start(&context_)) {}
  bool write(const Out& message) override { return call_->Write(message); }
  bool read(In& message) override { return call_->Read(&message); }
  Status finish() override {
    const grpc::Status status = call_->Finish();
    lost_ = connection_ended(status);
    if (status.ok()) return {};
    return fail(error_of(status));
  }
  bool connection_lost() const override { return lost_; }
  void cancel() override { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;  // before the call that uses it
  Call call_;
  bool lost_ = false;
};

class Client final : public DaemonClient {
 public:
  Client(int fd, int pid) : pid_(pid) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);  // a listing may be long
    set_window([&](const char* name, int value) { arguments.SetInt(name, value); });
    channel_ = grpc::CreateCustomInsecureChannelFromFd("daemon", fd, arguments);
    stub_ = v1::ClientService::NewStub(channel_);
  }

  int daemon_pid() const override { return pid_; }
  bool lost() const override { return lost_; }

  Result<v1::DaemonInfo> get_info(Limit limit) override {
    return call<v1::DaemonInfo>(&v1::ClientService::Stub::GetInfo, v1::GetInfoRequest(), limit);
  }
  Status shutdown(const v1::ShutdownRequest& request, const Sink<v1::Progress>& sink) override {
    return stream<v1::Progress>(&v1::ClientService::Stub::Shutdown, request, sink);
  }
  Status watch(const v1::WatchRequest& request, const Sink<v1::Change>& sink) override {
    return stream<v1::Change>(&v1::ClientService::Stub::Watch, request, sink);
  }
  Result<v1::Resource> add_resource(const v1::AddResourceRequest& request) override {
    return call<v1::Resource>(&v1::ClientService::Stub::AddResource, request);
  }
  Result<v1::ListResourcesReply> list_resources(const v1::ListResourcesRequest& request, Limit limit) override {
    return call<v1::ListResourcesReply>(&v1::ClientService::Stub::ListResources, request, limit);
  }
  Result<v1::RemoveResourceReply> remove_resource(const v1::RemoveResourceRequest& request) override {
    return call<v1::RemoveResourceReply>(&v1::ClientService::Stub::RemoveResource, request);
  }
  Status connect_resource(const v1::ConnectResourceRequest& request, const Sink<v1::Progress>& sink) override {
    return stream<v1::Progress>(&v1::ClientService::Stub::ConnectResource, request, sink);
  }
  Status test_resource(const v1::TestResourceRequest& request, const Sink<v1::TestStep>& sink) override {
    return stream<v1::TestStep>(&v1::ClientService::Stub::TestResource, request, sink);
  }
  Result<v1::Pilot> start_pilot(const v1::StartPilotRequest& request) override {
    return call<v1::Pilot>(&v1::ClientService::Stub::StartPilot, request);
  }
  Result<v1::ListPilotsReply> list_pilots(const v1::ListPilotsRequest& request, Limit limit) override {
    return call<v1::ListPilotsReply>(&v1::ClientService::Stub::ListPilots, request, limit);
  }
  Result<v1::ListPilotsReply> stop_pilots(const v1::StopPilotsRequest& request) override {
    return call<v1::ListPilotsReply>(&v1::ClientService::Stub::StopPilots, request);
  }
  Result<v1::ListPilotsReply> wait_pilots(const v1::WaitPilotsRequest& request) override {
    return call<v1::ListPilotsReply>(&v1::ClientService::Stub::WaitPilots, request);
  }
  Result<v1::BlobInfo> put_blob(const std::function<bool(v1::BlobChunk&)>& next) override {
    grpc::ClientContext context;
    v1::BlobInfo info;
    const auto writer = stub_->PutBlob(&context, &info);
    v1::BlobChunk chunk;
    while (next(chunk) && writer->Write(chunk)) chunk.Clear();
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    if (!status.ok()) return fail(error_of(status));
    return info;
  }
  Result<v1::SubmitReply> submit(const v1::SubmitRequest& request) override {
    return call<v1::SubmitReply>(&v1::ClientService::Stub::Submit, request);
  }
  Result<v1::ListJobsReply> list_jobs(const v1::ListJobsRequest& request, Limit limit) override {
    return call<v1::ListJobsReply>(&v1::ClientService::Stub::ListJobs, request, limit);
  }
  Result<v1::ListJobsReply> cancel_jobs(const v1::CancelJobsRequest& request) override {
    return call<v1::ListJobsReply>(&v1::ClientService::Stub::CancelJobs, request);
  }
  Result<v1::ListJobsReply> signal_jobs(const v1::SignalJobsRequest& request) override {
    return call<v1::ListJobsReply>(&v1::ClientService::Stub::SignalJobs, request);
  }
  Result<v1::ListJobsReply> wait_jobs(const v1::WaitJobsRequest& request) override {
    return call<v1::ListJobsReply>(&v1::ClientService::Stub::WaitJobs, request);
  }
  Result<v1::WhyJobReply> why_job(const v1::WhyJobRequest& request, Limit limit) override {
    return call<v1::WhyJobReply>(&v1::ClientService::Stub::WhyJob, request, limit);
  }
  std::unique_ptr<AttachStream> attach() override {
    return std::make_unique<Stream<v1::AttachInput, v1::AttachOutput>>(
        [this](grpc::ClientContext* context) { return stub_->Attach(context); });
  }
  std::unique_ptr<PromptStream> prompts() override {
    return std::make_unique<Stream<v1::PromptAnswer, v1::Prompt>>([this](grpc::ClientContext* context) { return stub_->Prompts(context); });
  }
  Status read_logs(const v1::ReadLogsRequest& request, const Sink<v1::LogChunk>& sink) override {
    return stream<v1::LogChunk>(&v1::ClientService::Stub::ReadLogs, request, sink);
  }

 private:
  template <class Reply, class Request>
  using Unary = grpc::Status (v1::ClientService::Stub::*)(grpc::ClientContext*, const Request&, Reply*);
  template <class Reply, class Request>
  using Streaming = std::unique_ptr<grpc::ClientReader<Reply>> (v1::ClientService::Stub::*)(grpc::ClientContext*, const Request&);

  template <class Reply, class Request>
  Result<Reply> call(Unary<Reply, Request> method, const Request& request, Limit limit = {}) {
    constexpr std::size_t largest = 64u << 20;  // what the daemon takes
    if (const std::size_t bytes = request.ByteSizeLong(); bytes > largest)
      return fail(Code::resource_exhausted,
                  "the request has " + format_size(bytes) + ", the daemon takes " + format_size(largest) + " at once",
                  "give what is large as an input file (--file), and many jobs in several calls");
    if constexpr (!std::is_same_v<Request, v1::SubmitRequest>)  // its jobs were looked at one by one
      if (const auto good = check_text(request); !good) return fail(good.error());
    grpc::ClientContext context;
    if (limit.count() > 0) context.set_deadline(std::chrono::system_clock::now() + limit);
    Reply reply;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &reply);
    lost_ = connection_ended(status);
    if (!status.ok()) return fail(error_of(status));
    return reply;
  }

  template <class Reply, class Request>
  Status stream(Streaming<Reply, Request> method, const Request& request, const Sink<Reply>& sink) {
    if (const auto good = check_text(request); !good) return fail(good.error());
    grpc::ClientContext context;
    const auto reader = (stub_.get()->*method)(&context, request);
    Reply message;
    while (reader->Read(&message)) {
      if (sink(message)) continue;
      context.TryCancel();
      while (reader->Read(&message)) {}
      reader->Finish();
      return {};
    }
    const grpc::Status status = reader->Finish();
    lost_ = connection_ended(status);
    if (!status.ok()) return fail(error_of(status));
    return {};
  }

  int pid_;
  std::atomic<bool> lost_{false};
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::ClientService::Stub> stub_;
};

// The same file on disk is the same build; only for another one is the daemon asked.
bool same_program(int pid) {
  struct stat ours {
  }, theirs{};
  return stat("/proc/self/exe", &ours) == 0 && stat(("/proc/" + std::to_string(pid) + "/exe").c_str(), &theirs) == 0 &&
         ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

}  // namespace

Result<std::unique_ptr<DaemonClient>> DaemonClient::connect(StartDaemon start, AnyBuild any, void (*before_threads)()) {
  auto socket = connect_daemon_socket();
  if (!socket && socket.error().code == Code::not_found && start == StartDaemon::yes) {
    if (auto started = start_daemon(); !started) return fail(started.error());
    socket = connect_daemon_socket();
  }
  if (!socket) return fail(socket.error());
  const int pid = socket->pid;
  if (before_threads) before_threads();
  // gRPC takes the descriptor, and wants it non-blocking.
  fcntl(socket->fd.get(), F_SETFL, fcntl(socket->fd.get(), F_GETFL) | O_NONBLOCK);
  auto client = std::make_unique<Client>(socket->fd.release(), pid);
  if (any == AnyBuild::no && !same_program(pid)) {
    constexpr Limit answer_limit{10'000};
    const auto info = client->get_info(answer_limit);
    if (!info) return fail(info.error());
    if (info->build() != build_version())
      return fail(
          Code::version_mismatch,
          "the running daemon (process " + std::to_string(pid) + ") is build " + info->build() + ", this program is " + build_version(),
          restart_hint);
  }
  return client;
}

Result<std::unique_ptr<DaemonClient>> DaemonClient::connect_again(std::chrono::steady_clock::time_point since) {
  const bool stopped = access(stopped_marker().c_str(), F_OK) == 0;
  const auto gone = std::chrono::steady_clock::now() - since;
  const bool start = !stopped && gone > restart_first;
  auto client = connect(start ? StartDaemon::yes : StartDaemon::no);
  if (client) return client;
  const Error& error = client.error();
  const bool hopeless = error.code == Code::version_mismatch || (start && error.code != Code::not_found);
  // A socket that took the connection may be one of a daemon that ends.
  if (hopeless || gone > restart_limit || (stopped && gone > restart_limit / 4))
    return fail(Code::unavailable, stopped ? "the daemon was stopped" : "the daemon went away, and does not come back: " + error.message,
                error.hint);
  return fail(Code::not_found, error.message, error.hint);
}

Status find_again(std::unique_ptr<DaemonClient>& client) {
  const auto since = std::chrono::steady_clock::now();
  for (;;) {
    auto again = DaemonClient::connect_again(since);
    if (again) {
      client = std::move(*again);
      return {};
    }
    if (again.error().code != Code::not_found) return fail(again.error());
    std::this_thread::sleep_for(reconnect_step);
  }
}

}  // namespace flotilla::cli
