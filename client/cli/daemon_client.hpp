// The daemon as the commands see it: one method for each call of ClientService, blocking, failures as Errors. gRPC stays in
// the .cpp file.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "flotilla/v1/client.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::cli {

// One bidirectional call. read() and write() may run on two threads at the same time; cancel() on any.
template <class Out, class In>
class DaemonStream {
 public:
  virtual ~DaemonStream() = default;
  virtual bool write(const Out& message) = 0;  // false = the stream has ended
  virtual bool read(In& message) = 0;          // false = the stream has ended; finish() says why
  virtual Status finish() = 0;
  // True when the end came from the connection (daemon gone), not from the daemon's word. After finish().
  virtual bool connection_lost() const = 0;
  virtual void cancel() = 0;
};
using AttachStream = DaemonStream<v1::AttachInput, v1::AttachOutput>;
using PromptStream = DaemonStream<v1::PromptAnswer, v1::Prompt>;

enum class StartDaemon { no, yes };
enum class AnyBuild { no, yes };  // yes = also a daemon of another build will do

class DaemonClient {
 public:
  // Connects to the daemon's socket, after starting the daemon where that is wanted. The answer is NOT_FOUND when it does not
  // run (and was not to be started).
  // `before_threads` runs when the daemon has been reached: gRPC makes threads from then on.
  static Result<std::unique_ptr<DaemonClient>> connect(StartDaemon start, AnyBuild any = AnyBuild::no, void (*before_threads)() = nullptr);
  // One try to find the daemon again that was lost at `since`; started when nobody else does, unless a user stopped it. NOT_FOUND = not
  // yet: try again in a moment. Other errors say why it does not come back.
  static Result<std::unique_ptr<DaemonClient>> connect_again(std::chrono::steady_clock::time_point since);
  virtual ~DaemonClient() = default;

  virtual int daemon_pid() const = 0;
  // The last call failed because the connection ended: not by the daemon's word.
  virtual bool lost() const = 0;

  // `limit` 0 = wait for ever.
  using Limit = std::chrono::milliseconds;
  template <class Message>
  using Sink = std::function<bool(const Message&)>;  // false = no more is wanted

  virtual Result<v1::DaemonInfo> get_info(Limit limit) = 0;
  virtual Status shutdown(const v1::ShutdownRequest&, const Sink<v1::Progress>&) = 0;
  virtual Status watch(const v1::WatchRequest&, const Sink<v1::Change>&) = 0;

  virtual Result<v1::Resource> add_resource(const v1::AddResourceRequest&) = 0;
  virtual Result<v1::ListResourcesReply> list_resources(const v1::ListResourcesRequest&, Limit limit = {}) = 0;
  virtual Result<v1::RemoveResourceReply> remove_resource(const v1::RemoveResourceRequest&) = 0;
  virtual Status connect_resource(const v1::ConnectResourceRequest&, const Sink<v1::Progress>&) = 0;
  virtual Status test_resource(const v1::TestResourceRequest&, const Sink<v1::TestStep>&) = 0;

  virtual Result<v1::Pilot> start_pilot(const v1::StartPilotRequest&) = 0;
  virtual Result<v1::ListPilotsReply> list_pilots(const v1::ListPilotsRequest&, Limit limit = {}) = 0;
  virtual Result<v1::ListPilotsReply> stop_pilots(const v1::StopPilotsRequest&) = 0;
  virtual Result<v1::ListPilotsReply> wait_pilots(const v1::WaitPilotsRequest&) = 0;

  // Chunks are asked for until one is empty.
  virtual Result<v1::BlobInfo> put_blob(const std::function<bool(v1::BlobChunk&)>& next) = 0;
  virtual Result<v1::SubmitReply> submit(const v1::SubmitRequest&) = 0;
  virtual Result<v1::ListJobsReply> list_jobs(const v1::ListJobsRequest&, Limit limit = {}) = 0;
  virtual Result<v1::ListJobsReply> cancel_jobs(const v1::CancelJobsRequest&) = 0;
  virtual Result<v1::ListJobsReply> signal_jobs(const v1::SignalJobsRequest&) = 0;
  virtual Result<v1::ListJobsReply> wait_jobs(const v1::WaitJobsRequest&) = 0;
  virtual Result<v1::WhyJobReply> why_job(const v1::WhyJobRequest&, Limit limit = {}) = 0;
  virtual std::unique_ptr<AttachStream> attach() = 0;
  virtual std::unique_ptr<PromptStream> prompts() = 0;
  virtual Status read_logs(const v1::ReadLogsRequest&, const Sink<v1::LogChunk>&) = 0;
};

// Replaces a client whose daemon was lost, as soon as another daemon answers.
Status find_again(std::unique_ptr<DaemonClient>& client);

}  // namespace flotilla::cli
