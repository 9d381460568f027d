// The shell around the core: one thread, one io_context. What comes in (clients, hubs, pilots, time) is given to the core;
// all that came in together is journalled in one commit; only then are frames sent, calls answered and watchers told.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <filesystem>
#include <list>
#include <map>
#include <memory>
#include <unordered_map>

#include "daemon/api/stream.hpp"
#include "daemon/coordinator/config.hpp"
#include "daemon/coordinator/prompts.hpp"
#include "daemon/coordinator/unix_listener.hpp"
#include "daemon/core/blob_flow.hpp"
#include "daemon/core/core.hpp"
#include "daemon/core/input_flow.hpp"
#include "daemon/core/output_retry.hpp"
#include "daemon/journal/journal.hpp"
#include "daemon/monitor/monitor.hpp"
#include "daemon/resource/local_driver.hpp"
#include "daemon/store/blob_store.hpp"
#include "daemon/store/output_store.hpp"
#include "flotilla/v1/client.pb.h"
#include "proto/link/link.hpp"

namespace flotilla::daemon {

class Hubs;
class ChannelGiver;

class Coordinator final : public MonitorSource {
 public:
  struct Places {
    std::filesystem::path state, runtime, config_file, agent, log_file;
  };
  Coordinator(boost::asio::io_context& io, Config config, Places places, std::unique_ptr<Journal> journal);
  ~Coordinator() override;

  // Replays the journal, binds the sockets of pilots, starts the web page and the local pilot.
  Status start();
  // From now on clients that go away do so because the daemon ends: their jobs go on.
  void begin_end();
  // Called when the daemon is to end (signal, or the end of a Shutdown call).
  std::function<void()> on_end;

  // ---- calls of clients (api/service.cpp); each answers once, after the commit -----------------------
  void get_info(Reply<v1::DaemonInfo> reply);
  void shutdown(bool all, OutStreamPtr<v1::Progress> stream);
  void prompts(TwoWayStreamPtr<v1::PromptAnswer, v1::Prompt> stream) { prompts_.add(std::move(stream)); }
  void watch(v1::WatchRequest request, OutStreamPtr<v1::Change> stream);

  void add_resource(const v1::AddResourceRequest& request, Reply<v1::Resource> reply);
  void list_resources(const v1::ListResourcesRequest& request, Reply<v1::ListResourcesReply> reply);
  void remove_resource(const v1::RemoveResourceRequest& request, Reply<v1::RemoveResourceReply> reply);
  void connect_resource(const v1::ConnectResourceRequest& request, OutStreamPtr<v1::Progress> stream);
  void test_resource(const v1::TestResourceRequest& request, OutStreamPtr<v1::TestStep> stream);

  void start_pilot(const v1::StartPilotRequest& request, Reply<v1::Pilot> reply);
  void list_pilots(const v1::ListPilotsRequest& request, Reply<v1::ListPilotsReply> reply);
  void stop_pilots(const v1::StopPilotsRequest& request, Reply<v1::ListPilotsReply> reply);
  void wait_pilots(const v1::WaitPilotsRequest& request, CallContextPtr call, Reply<v1::ListPilotsReply> reply);

  BlobStore& blobs() { return blobs_; }
  void submit(const v1::SubmitRequest& request, Reply<v1::SubmitReply> reply);
  void list_jobs(const v1::ListJobsRequest& request, Reply<v1::ListJobsReply> reply);
  void cancel_jobs(const v1::CancelJobsRequest& request, Reply<v1::ListJobsReply> reply);
  void signal_jobs(const v1::SignalJobsRequest& request, Reply<v1::ListJobsReply> reply);
  void wait_jobs(const v1::WaitJobsRequest& request, CallContextPtr call, Reply<v1::ListJobsReply> reply);
  void why_job(const v1::WhyJobRequest& request, Reply<v1::WhyJobReply> reply);
  void attach(TwoWayStreamPtr<v1::AttachInput, v1::AttachOutput> stream);
  void start_worker(const v1::StartWorkerRequest& request, CallContextPtr call, Reply<v1::WorkerChannel> reply);
  void read_logs(const v1::ReadLogsRequest& request, OutStreamPtr<v1::LogChunk> stream);

  // ---- MonitorSource -----------------------------------------------------------------------------------
  v1::DaemonInfo info() override;
  void for_each(const std::function<void(const v1::Change&)>& tell) override;
  std::optional<v1::Job> job(std::uint64_t id) override;
  Result<std::string> output(std::uint64_t id, std::uint32_t stream, std::uint64_t tail_bytes) override;

  // ---- for the parts (Hubs, ChannelGiver) ---------------------------------------------------------------
  boost::asio::io_context& io() { return io_; }
  const State& state() const { return core_.state(); }
  const Places& places() const { return places_; }
  const Config& config() const { return config_; }
  Journal& journal() { return *journal_; }
  Prompts& prompter() { return prompts_; }
  static Now now();
  // The core is called with `outbox()`; then touch(): the commit and all that follows happens in the same turn of the loop.
  Core& core() { return core_; }
  Outbox& outbox() { return out_; }
  void touch();
  // `failed`: instead, when a try to commit fails (a full disk; it is tried again). Without it `then` waits for as long.
  void after_commit(std::function<void()> then, std::function<void(const Error&)> failed = nullptr);
  void on_node_frame(NodeId from, v1::Frame frame);
  void on_log_data(const std::string& resource, const v1::LogData& data);
  // Who reads logs over a link that has ended is told so. Without a node: all of the resource.
  void end_logs(const std::string& resource, NodeId node, const std::string& cause);
  // A node registered: the welcome is ready to be sent.
  v1::Welcome join(const v1::PilotHello& hello, bool trusted);
  void send(NodeId to, v1::Frame frame);
  // A link has room again: input files go on.
  void pump_blobs();
  v1::LaunchPilot launch_order(const Pilot& pilot) const;
  // The end of a remote worker's channel: its client went away.
  void end_worker(JobId id, const std::string& why);
  v1::Job show(const Job& job);

 private:
  struct Waiter {
    std::uint64_t id;
    std::function<bool()> done;  // true: answered, to be removed
  };
  struct Watcher {
    v1::WatchRequest request;
    OutStreamPtr<v1::Change> stream;
  };
  struct AttachSession;
  struct LogSession;
  // An input file on its way; what waits for a line has been read from its file when there is room, not before.
  struct BlobSend {
    NodeId to;
    std::string sha256;
    BlobFlow flow;
  };
  struct LocalNode {
    link::LinkPtr link;
    std::shared_ptr<ProcessWatch> process;
  };

  void flush();
  void carry_out(Outbox out);
  void tell(const Outbox& out);
  void arm_ticks();
  void wait_until(CallContextPtr call, std::int64_t timeout_ms, std::function<bool()> done, std::function<void()> timed_out,
                  std::function<void()> canceled);
  void check_waiters();

  void accept_pilots();
  void on_local_frame(const link::LinkPtr& link, v1::Frame frame);
  void on_local_closed(const link::LinkPtr& link, const std::string& cause);
  bool has_local_pilot() const;
  void ensure_local_pilot();
  void replace_local_pilot(const Pilot& lost);
  void fit_local_pilot();
  // Refused while everything is being stopped (what would begin now could be left behind), and while the journal cannot be written.
  Status takes_work() const;
  void launch(PilotId id);

  template <class T>
  bool refused(const Reply<T>& reply) {
    if (commit_error_) reply(fail(*commit_error_));
    return commit_error_.has_value();
  }

  void take_output(NodeId from, const v1::OutputData& data);
  void ask_again(JobOutput stream);
  void arm_output_retry();
  void await_output(NodeId from, const v1::AttemptId& ended_attempt);
  InputFlow& input_flow(const Job& job);
  void send_input(const Job& job, InputFlow::Piece piece);
  void send_held_input(const Job& job);
  void on_input_taken(NodeId from, const v1::InputTaken& taken);
  void resend_input(NodeId to, const v1::PilotHello& hello);
  void settle_output(JobId id);  // forgets the attempt when all is in
  void send_forgets(NodeId to);
  void send_due_forgets(const std::set<NodeId>& started);
  bool output_complete(const Job& job);
  void on_need_blob(NodeId from, const v1::NeedBlob& wanted);
  void on_blob_taken(NodeId from, const v1::BlobTaken& taken);
  bool has_room(NodeId to) const;
  bool send_blob_piece(BlobSend& blob);
  void end_jobs(const std::vector<JobId>& ids);
  Result<std::vector<JobId>> select_jobs(const google::protobuf::RepeatedField<std::uint64_t>& ids, const std::string& label,
                                         bool all) const;
  Result<std::vector<PilotId>> select_pilots(const google::protobuf::RepeatedField<std::uint64_t>& ids, const std::string& resource,
                                             const std::string& label, bool all, bool ended_too) const;
  Error ended_badly(const Job& job);
  void sample_channels();
  void on_node_status(NodeId from, const v1::NodeStatus& status);
  void follow_log_file(std::shared_ptr<LogSession> session);
  struct Stopping;
  void stop_everything(OutStreamPtr<v1::Progress> stream);
  void step_stopping(const std::shared_ptr<Stopping>& stopping);
  void finish_stopping(const std::shared_ptr<Stopping>& stopping);
  void end_soon();

  boost::asio::io_context& io_;
  Config config_;
  Places places_;
  std::unique_ptr<Journal> journal_;
  Core core_;
  Outbox out_;
  bool flush_posted_ = false;
  struct AfterCommit {
    std::function<void()> then;
    std::function<void(const Error&)> failed;
  };
  std::vector<AfterCommit> after_commit_;
  std::optional<Error> commit_error_;  // the journal cannot be written: what would change something is refused
  boost::asio::steady_timer retry_commit_;
  boost::asio::steady_timer ticks_;
  bool ticking_ = false;
  boost::asio::steady_timer sampling_;
  bool sampling_on_ = false;
  boost::asio::steady_timer local_replacement_;
  unsigned local_failures_ = 0;  // of local pilots, one after the other
  PilotId local_lost_;           // the last of them
  PilotId local_not_started_;    // the last of them that did not even register

  Prompts prompts_;
  OutputStore outputs_;
  BlobStore blobs_;
  std::list<BlobSend> blob_sends_;
  std::map<NodeId, std::vector<v1::Frame>> held_forgets_;
  LocalDriver local_driver_;
  std::unique_ptr<Hubs> hubs_;
  std::unique_ptr<ChannelGiver> giver_;
  std::unique_ptr<Monitor> monitor_;
  std::string web_problem_;  // why there is none

  std::unique_ptr<UnixListener> pilot_listener_;
  std::unique_ptr<link::Server> pilot_links_;
  std::unordered_map<NodeId, LocalNode> local_nodes_;

  std::list<Waiter> waiters_;
  std::uint64_t last_waiter_ = 0;
  std::list<Watcher> watchers_;
  std::map<JobId, std::vector<std::shared_ptr<AttachSession>>> attached_;
  struct WorkerCall {
    Reply<v1::WorkerChannel> reply;
    std::string start_key;  // the client's, to ask why it waits; may be empty
  };
  std::map<JobId, WorkerCall> worker_calls_;
  std::map<std::uint64_t, std::shared_ptr<LogSession>> log_requests_;
  std::uint64_t last_log_request_ = 0;
  std::map<JobId, InputFlow> input_flows_;
  OutputRetry output_retry_;
  boost::asio::steady_timer output_retry_timer_;
  bool output_retrying_ = false;
  std::set<JobId> awaited_outputs_;  // of jobs that have ended: their pilots hold the rest
  struct Sample {
    std::uint64_t calls = 0, to = 0, from = 0;
    std::int64_t at_ms = 0;
  };
  std::map<JobId, Sample> samples_;
  std::int64_t started_ms_;
  bool ending_ = false;
  std::shared_ptr<Stopping> stopping_;  // from the first step of `stop --all` on
};

}  // namespace flotilla::daemon
