#include "daemon/api/service.hpp"

#include <fcntl.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>

#include "daemon/api/rpc.hpp"
#include "daemon/coordinator/unix_listener.hpp"
#include "flotilla/v1/client.grpc.pb.h"
#include "proto/base/grpc_window.hpp"
#include "proto/base/log.hpp"
#include "proto/base/random.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::daemon {
namespace asio = boost::asio;

namespace {
constexpr int largest_message_bytes = 64 << 20;
}  // namespace

class ClientApi::Impl final : public v1::ClientService::CallbackService {
  using Context = grpc::CallbackServerContext;

 public:
  Impl(asio::io_context& io, Coordinator& coordinator) : io_(io), c_(coordinator) {}
  ~Impl() override {
    stop();
    end();
  }
  // The server's own end, on any thread. Nothing is accepted any more: stop() came first.
  void end() {
    if (server_) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
    server_.reset();
  }
  void stop() { listener_.reset(); }

  Status listen(const std::filesystem::path& socket) {
    if (socket.native().size() > 107)
      return fail(Code::invalid_argument, "the socket's path is longer than 107 bytes: " + socket.string(),
                  "set FLOTILLA_RUNTIME_DIR to a shorter one");
    if (auto other = channel::connect_unix(socket); other)
      return fail(Code::already_exists, "a daemon listens already on " + socket.string(), "flotilla daemon status");
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(largest_message_bytes);
    builder.SetMaxSendMessageSize(-1);
    set_window([&](const char* name, int value) { builder.AddChannelArgument(name, value); });
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    if (!server_) return fail(Code::internal, "gRPC did not start");
    listener_ = std::make_unique<UnixListener>(io_, socket, [this](unique_fd fd) { take(std::move(fd)); });
    return listener_->start();
  }

  // ---- the service -------------------------------------------------------------------------------------------
  grpc::ServerUnaryReactor* GetInfo(Context*, const v1::GetInfoRequest* q, v1::DaemonInfo* a) override {
    return unary(q, a, [this](const auto&, const CallContextPtr&, Reply<v1::DaemonInfo> r) { c_.get_info(std::move(r)); });
  }
  grpc::ServerWriteReactor<v1::Progress>* Shutdown(Context*, const v1::ShutdownRequest* q) override {
    return rpc::stream<v1::ShutdownRequest, v1::Progress>(
        io_, q, [this](const v1::ShutdownRequest& request, OutStreamPtr<v1::Progress> s) { c_.shutdown(request.all(), std::move(s)); });
  }
  grpc::ServerBidiReactor<v1::PromptAnswer, v1::Prompt>* Prompts(Context*) override {
    return rpc::two_way<v1::PromptAnswer, v1::Prompt>(io_, [this](auto s) { c_.prompts(std::move(s)); });
  }
  grpc::ServerWriteReactor<v1::Change>* Watch(Context*, const v1::WatchRequest* q) override {
    return rpc::stream<v1::WatchRequest, v1::Change>(
        io_, q, [this](const v1::WatchRequest& request, OutStreamPtr<v1::Change> s) { c_.watch(request, std::move(s)); });
  }
  grpc::ServerUnaryReactor* AddResource(Context*, const v1::AddResourceRequest* q, v1::Resource* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::Resource> r) { c_.add_resource(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* ListResources(Context*, const v1::ListResourcesRequest* q, v1::ListResourcesReply* a) override {
    return unary(q, a,
                 [this](const auto& m, const CallContextPtr&, Reply<v1::ListResourcesReply> r) { c_.list_resources(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* RemoveResource(Context*, const v1::RemoveResourceRequest* q, v1::RemoveResourceReply* a) override {
    return unary(q, a,
                 [this](const auto& m, const CallContextPtr&, Reply<v1::RemoveResourceReply> r) { c_.remove_resource(m, std::move(r)); });
  }
  grpc::ServerWriteReactor<v1::Progress>* ConnectResource(Context*, const v1::ConnectResourceRequest* q) override {
    return rpc::stream<v1::ConnectResourceRequest, v1::Progress>(
        io_, q,
        [this](const v1::ConnectResourceRequest& request, OutStreamPtr<v1::Progress> s) { c_.connect_resource(request, std::move(s)); });
  }
  grpc::ServerWriteReactor<v1::TestStep>* TestResource(Context*, const v1::TestResourceRequest* q) override {
    return rpc::stream<v1::TestResourceRequest, v1::TestStep>(
        io_, q, [this](const v1::TestResourceRequest& request, OutStreamPtr<v1::TestStep> s) { c_.test_resource(request, std::move(s)); });
  }
  grpc::ServerUnaryReactor* StartPilot(Context*, const v1::StartPilotRequest* q, v1::Pilot* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::Pilot> r) { c_.start_pilot(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* ListPilots(Context*, const v1::ListPilotsRequest* q, v1::ListPilotsReply* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::ListPilotsReply> r) { c_.list_pilots(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* StopPilots(Context*, const v1::StopPilotsRequest* q, v1::ListPilotsReply* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::ListPilotsReply> r) { c_.stop_pilots(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* WaitPilots(Context*, const v1::WaitPilotsRequest* q, v1::ListPilotsReply* a) override {
    return unary(
        q, a, [this](const auto& m, const CallContextPtr& call, Reply<v1::ListPilotsReply> r) { c_.wait_pilots(m, call, std::move(r)); });
  }
  grpc::ServerReadReactor<v1::BlobChunk>* PutBlob(Context*, v1::BlobInfo* a) override {
    auto* upload = new rpc::Upload<v1::BlobChunk, v1::BlobInfo>(io_, a);
    struct State {
      std::string sha256;
      std::unique_ptr<BlobStore::Writer> writer;
      bool first = true;
    };
    auto state = std::make_shared<State>();
    upload->on_message = [this, state](v1::BlobChunk chunk) -> Status {
      if (std::exchange(state->first, false)) {
        state->sha256 = chunk.sha256();
        if (state->sha256.size() != 32) return fail(Code::invalid_argument, "the first chunk has to carry the SHA-256 (32 bytes)");
      }
      if (chunk.data().empty()) return {};
      if (!state->writer) {
        auto writer = c_.blobs().create(state->sha256);
        if (!writer) return fail(writer.error());
        state->writer = std::move(*writer);
      }
      return state->writer->write(chunk.data());
    };
    upload->on_end = [this, state]() -> Result<v1::BlobInfo> {
      v1::BlobInfo info;
      info.set_sha256(state->sha256);
      // An empty file has no chunk with data.
      if (!state->writer && state->sha256 == sha256({}) && !c_.blobs().has(state->sha256)) {
        auto writer = c_.blobs().create(state->sha256);
        if (!writer) return fail(writer.error());
        state->writer = std::move(*writer);
      }
      if (state->writer) {
        auto size = state->writer->finish();
        if (!size) return fail(size.error());
      }
      info.set_present(c_.blobs().has(state->sha256));
      info.set_size(c_.blobs().size(state->sha256));
      return info;
    };
    upload->begin();
    return upload;
  }
  grpc::ServerUnaryReactor* Submit(Context*, const v1::SubmitRequest* q, v1::SubmitReply* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::SubmitReply> r) { c_.submit(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* ListJobs(Context*, const v1::ListJobsRequest* q, v1::ListJobsReply* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::ListJobsReply> r) { c_.list_jobs(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* CancelJobs(Context*, const v1::CancelJobsRequest* q, v1::ListJobsReply* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::ListJobsReply> r) { c_.cancel_jobs(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* SignalJobs(Context*, const v1::SignalJobsRequest* q, v1::ListJobsReply* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::ListJobsReply> r) { c_.signal_jobs(m, std::move(r)); });
  }
  grpc::ServerUnaryReactor* WaitJobs(Context*, const v1::WaitJobsRequest* q, v1::ListJobsReply* a) override {
    return unary(q, a,
                 [this](const auto& m, const CallContextPtr& call, Reply<v1::ListJobsReply> r) { c_.wait_jobs(m, call, std::move(r)); });
  }
  grpc::ServerUnaryReactor* WhyJob(Context*, const v1::WhyJobRequest* q, v1::WhyJobReply* a) override {
    return unary(q, a, [this](const auto& m, const CallContextPtr&, Reply<v1::WhyJobReply> r) { c_.why_job(m, std::move(r)); });
  }
  grpc::ServerBidiReactor<v1::AttachInput, v1::AttachOutput>* Attach(Context*) override {
    return rpc::two_way<v1::AttachInput, v1::AttachOutput>(io_, [this](auto s) { c_.attach(std::move(s)); });
  }
  grpc::ServerUnaryReactor* StartWorker(Context*, const v1::StartWorkerRequest* q, v1::WorkerChannel* a) override {
    return unary(q, a,
                 [this](const auto& m, const CallContextPtr& call, Reply<v1::WorkerChannel> r) { c_.start_worker(m, call, std::move(r)); });
  }
  grpc::ServerWriteReactor<v1::LogChunk>* ReadLogs(Context*, const v1::ReadLogsRequest* q) override {
    return rpc::stream<v1::ReadLogsRequest, v1::LogChunk>(
        io_, q, [this](const v1::ReadLogsRequest& request, OutStreamPtr<v1::LogChunk> s) { c_.read_logs(request, std::move(s)); });
  }

 private:
  template <class Request, class Answer, class Handler>
  grpc::ServerUnaryReactor* unary(const Request* request, Answer* answer, Handler handler) {
    auto* reactor = new rpc::Unary<Request, Answer>(io_);
    reactor->start(request, answer, std::move(handler));
    return reactor;
  }

  void take(unique_fd fd) {
    fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
    grpc::AddInsecureChannelFromFd(server_.get(), fd.release());
  }

  asio::io_context& io_;
  Coordinator& c_;
  std::unique_ptr<UnixListener> listener_;
  std::unique_ptr<grpc::Server> server_;
};

ClientApi::ClientApi(asio::io_context& io, Coordinator& coordinator) : impl_(std::make_unique<Impl>(io, coordinator)) {}
ClientApi::~ClientApi() = default;
Status ClientApi::listen(const std::filesystem::path& socket) { return impl_->listen(socket); }
void ClientApi::stop() { impl_->stop(); }
void ClientApi::end() { impl_->end(); }

}  // namespace flotilla::daemon
