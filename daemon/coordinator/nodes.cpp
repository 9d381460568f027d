// The daemon's side of pilot nodes: registering, local ones over a unix socket, what they report.
#include <fmt/format.h>
#include <unistd.h>

#include "daemon/coordinator/coordinator.hpp"
#include "daemon/coordinator/hubs.hpp"
#include "daemon/coordinator/sessions.hpp"
#include "daemon/core/hub_frames.hpp"
#include "daemon/core/validate.hpp"
#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/version.hpp"

namespace flotilla::daemon {
namespace asio = boost::asio;

namespace {
constexpr std::uint64_t output_credit_bytes = 1u << 20;   // what a pilot may send beyond what was acknowledged
constexpr std::uint64_t output_window_step = 128u << 10;  // acknowledged at least this often: half of what a pilot holds without a disk
constexpr auto output_retry_interval = std::chrono::milliseconds(500);  // on a full disk
constexpr std::size_t blob_chunk_bytes = 256u << 10;
constexpr std::size_t most_held_forgets = 32;

std::string version_refusal(std::uint32_t low, std::uint32_t high, const std::string& build) {
  return fmt::format("the daemon ({}) speaks protocol {} to {}, the pilot or hub ({}) {} to {}: no common version", build_version(),
                     protocol_minimum, protocol_version, build, low, high);
}
}  // namespace

v1::Welcome Coordinator::join(const v1::PilotHello& hello, bool trusted) {
  v1::Welcome welcome = core_.on_node_joined(hello, trusted, now(), out_);
  welcome.set_build(build_version());
  welcome.set_protocol(protocol_version);
  welcome.set_instance(journal_->instance());
  if (welcome.error().empty()) {
    const NodeId id{PilotId{hello.pilot()}, hello.node()};
    end_logs(state().pilots.at(id.pilot).spec.resource(), id, "the pilot's link was made anew");
    for (const auto& report : hello.inventory()) {
      auto* known = welcome.add_known();
      *known->mutable_id() = report.id();
      known->set_stdout_bytes(outputs_.taken(JobId{report.id().job()}, 1));
      known->set_stderr_bytes(outputs_.taken(JobId{report.id().job()}, 2));
      if (ended(report.state())) await_output({PilotId{hello.pilot()}, hello.node()}, report.id());
    }
    resend_input(id, hello);
    spdlog::info("pilot {}.{} on {} registered: {} slots, {} attempts held", hello.pilot(), hello.node(), hello.host(), hello.slots(),
                 hello.inventory_size());
  } else {
    spdlog::warn("a pilot was refused: {}", welcome.error());
  }
  touch();
  return welcome;
}

// ---- local pilots ------------------------------------------------------------------------------------------

void Coordinator::accept_pilots() {
  link::Handlers handlers;
  handlers.on_frame = [this](const link::LinkPtr& link, v1::Frame frame) { on_local_frame(link, std::move(frame)); };
  handlers.on_closed = [this](const link::LinkPtr& link, const std::string& cause) { on_local_closed(link, cause); };
  handlers.on_room = [this](const link::LinkPtr&) { pump_blobs(); };
  pilot_links_ = std::make_unique<link::Server>(io_, std::move(handlers), link::keepalive_cluster);
  pilot_listener_ =
      std::make_unique<UnixListener>(io_, places_.runtime / "pilots.sock", [this](unique_fd fd) { pilot_links_->add_fd(std::move(fd)); });
  if (auto status = pilot_listener_->start(); !status) spdlog::error("{}", status.error().text());
}

namespace {
// Which node a local link belongs to, in its tag: pilot << 24 | node + 1; 0 = has not said hello.
std::uint64_t tag_of(NodeId id) { return id.pilot.value << 24 | (id.node + 1); }
NodeId node_of(std::uint64_t tag) { return {PilotId{tag >> 24}, static_cast<std::uint32_t>((tag & 0xffffff) - 1)}; }
}  // namespace

void Coordinator::on_local_frame(const link::LinkPtr& link, v1::Frame frame) {
  if (link->tag) return on_node_frame(node_of(link->tag), std::move(frame));
  v1::Frame answer;
  if (!frame.has_hello() || !frame.hello().has_pilot()) {
    answer.mutable_welcome()->set_error("the first frame is no hello of a pilot");
  } else if (frame.hello().protocol() < protocol_minimum || frame.hello().protocol_min() > protocol_version) {
    answer.mutable_welcome()->set_error(version_refusal(frame.hello().protocol_min(), frame.hello().protocol(), frame.hello().build()));
  } else {
    const auto& hello = frame.hello().pilot();
    const NodeId id{PilotId{hello.pilot()}, hello.node()};
    *answer.mutable_welcome() = join(hello, false);
    answer.mutable_welcome()->set_protocol(std::min(frame.hello().protocol(), protocol_version));
    if (answer.welcome().error().empty()) {
      link->tag = tag_of(id);
      LocalNode& node = local_nodes_[id];
      if (node.link) {  // displaced: its end is no news
        node.link->detach();
        node.link->abort();
      }
      node.link = link;
      node.process.reset();
      after_commit([link, answer] { link->send(answer); });
      return;
    }
  }
  link->send(std::move(answer));
  link->close();
}

void Coordinator::on_local_closed(const link::LinkPtr& link, const std::string& cause) {
  if (!link->tag) return;
  const NodeId id = node_of(link->tag);
  const auto it = local_nodes_.find(id);
  if (it == local_nodes_.end() || it->second.link != link) return;
  it->second.link.reset();
  if (const auto pilot = state().pilots.find(id.pilot); pilot != state().pilots.end()) end_logs(pilot->second.spec.resource(), id, cause);
  core_.on_node_unlinked(id, cause, now(), out_);
  touch();
  // All that it said has been read by now: when its process is gone, it is gone.
  const Node* node = state().node(id);
  if (!node) return;
  it->second.process = ProcessWatch::start(io_, static_cast<int>(node->record.pid()), [this, id] {
    const Node* n = state().node(id);
    if (!n || n->linked) return;
    core_.on_node_left(id, "its process ended", now(), out_, true);
    touch();
  });
}

void Coordinator::launch(PilotId id) {
  const auto it = state().pilots.find(id);
  if (it == state().pilots.end()) return;
  const Pilot& pilot = it->second;
  const auto resource = state().resources.find(pilot.spec.resource());
  if (resource == state().resources.end()) return;
  if (!resource->second.local()) {
    v1::Frame frame;
    *frame.mutable_launch_pilot() = launch_order(pilot);
    hubs_->send(pilot.spec.resource(), std::move(frame));
    return;
  }
  const v1::LaunchPilot order = launch_order(pilot);
  v1::PilotStart start;
  start.set_pilot(id.value);
  start.set_instance(journal_->instance());
  *start.mutable_spec() = pilot.spec;
  start.mutable_settings()->set_idle_ms(order.idle_ms());
  start.mutable_settings()->set_cutoff_ms(order.cutoff_ms());
  start.mutable_settings()->set_time_ms(pilot.spec.time_ms());
  start.mutable_settings()->set_debug(order.debug());
  *start.mutable_settings()->mutable_traces() = order.traces();
  start.set_scratch_dir(order.scratch_dir());
  *start.mutable_env() = order.env();
  *start.mutable_setup() = order.setup();
  start.set_setup_timeout_ms(order.setup_timeout_ms());
  start.set_upper_socket((places_.runtime / "pilots.sock").string());
  start.set_secret(pilot.secret);
  start.set_runtime_dir((places_.runtime / fmt::format("p{}.0", id.value)).string());
  start.set_resource(pilot.spec.resource());
  local_driver_.launch(start);
}

v1::LaunchPilot Coordinator::launch_order(const Pilot& pilot) const {
  const v1::ResourceSpec& resource = state().resources.at(pilot.spec.resource()).spec;
  v1::LaunchPilot order;
  order.set_pilot(pilot.id.value);
  *order.mutable_spec() = pilot.spec;
  order.set_scratch_dir(resource.scratch_dir());
  *order.mutable_env() = resource.env();
  *order.mutable_setup() = resource.setup();
  order.set_setup_timeout_ms(resource.setup_timeout_ms());
  const auto hosts = hosts_of(pilot.spec, resource);
  order.mutable_hosts()->Assign(hosts.begin(), hosts.end());
  order.set_idle_ms(pilot.spec.idle_ms() ? pilot.spec.idle_ms() : config_.pilot_idle_ms);
  order.set_cutoff_ms(pilot.spec.cutoff_ms() ? pilot.spec.cutoff_ms() : config_.pilot_cutoff_ms);
  order.set_debug(pilot.spec.debug() || resource.debug());
  *order.mutable_traces() = traces_of(config_);
  return order;
}

// ---- frames ---------------------------------------------------------------------------------------------------

void Coordinator::send(NodeId to, v1::Frame frame) {
  if (const auto local = local_nodes_.find(to); local != local_nodes_.end()) {
    if (local->second.link) local->second.link->send(std::move(frame));
    return;
  }
  const auto pilot = state().pilots.find(to.pilot);
  if (pilot == state().pilots.end()) return;
  frame.set_peer(format_peer(to));
  hubs_->send(pilot->second.spec.resource(), std::move(frame));
}

void Coordinator::on_node_frame(NodeId from, v1::Frame frame) {
  switch (frame.body_case()) {
    case v1::Frame::kAttemptRunning: core_.on_attempt_running(from, frame.attempt_running(), now(), out_); break;
    case v1::Frame::kWorkerConnected: core_.on_worker_connected(from, frame.worker_connected(), now(), out_); break;
    case v1::Frame::kAttemptRetracted: core_.on_attempt_retracted(from, frame.attempt_retracted(), now(), out_); break;
    case v1::Frame::kAttemptEnded:
      core_.on_attempt_ended(from, frame.attempt_ended(), now(), out_);
      await_output(from, frame.attempt_ended().id());
      break;
    case v1::Frame::kOutputData: take_output(from, frame.output_data()); return;
    case v1::Frame::kInputTaken: on_input_taken(from, frame.input_taken()); return;
    case v1::Frame::kNeedBlob: on_need_blob(from, frame.need_blob()); return;
    case v1::Frame::kBlobTaken: on_blob_taken(from, frame.blob_taken()); return;
    case v1::Frame::kPilotEnding:
      core_.on_pilot_ending(from, frame.pilot_ending().reason(), frame.pilot_ending().failed(), now(), out_);
      break;
    case v1::Frame::kNodeStatus: on_node_status(from, frame.node_status()); return;
    case v1::Frame::kNodeLeft:
      if (const auto pilot = state().pilots.find(from.pilot); pilot != state().pilots.end())
        end_logs(pilot->second.spec.resource(), from, frame.node_left().cause());
      core_.on_node_left(from, frame.node_left().cause(), now(), out_, frame.node_left().process_dead());
      break;
    case v1::Frame::kChannelAck:
      if (has_channel(state(), from, frame.channel_ack().channel())) hubs_->channels().on_ack(frame.channel_ack());
      return;
    case v1::Frame::kChannelData:
      if (has_channel(state(), from, frame.channel_data().channel())) hubs_->channels().on_data(frame.channel_data());
      return;
    case v1::Frame::kChannelEnd:
      if (has_channel(state(), from, frame.channel_end().channel())) hubs_->channels().on_end(frame.channel_end());
      return;
    case v1::Frame::kChannelRefused:
      if (has_channel(state(), from, frame.channel_refused().channel())) hubs_->on_channel_refused(frame.channel_refused());
      return;
    case v1::Frame::kLogData:
      if (const auto pilot = state().pilots.find(from.pilot); pilot != state().pilots.end())
        on_log_data(pilot->second.spec.resource(), frame.log_data());
      return;
    case v1::Frame::kPing: {
      v1::Frame pong;
      pong.mutable_pong()->set_id(frame.ping().id());
      pong.mutable_pong()->set_sent_us(frame.ping().sent_us());
      send(from, std::move(pong));
      return;
    }
    case v1::Frame::kGoodbye:
    case v1::Frame::kPong: return;
    default:
      spdlog::debug("a frame of kind {} from {} has no meaning here", static_cast<int>(frame.body_case()), format_peer(from));
      return;
  }
  touch();
}

void Coordinator::take_output(NodeId from, const v1::OutputData& data) {
  const JobId id{data.id().job()};
  const Job* job = state().job(id);
  if (!job || job->attempt != data.id().attempt() || job->node != from) return;
  const JobOutput stream{id, data.stream()};
  if (data.oldest() && data.offset() > outputs_.taken(id, data.stream())) {
    spdlog::warn("{} bytes of the output of job {} are lost: they are neither here nor at its pilot",
                 data.offset() - outputs_.taken(id, data.stream()), id.value);
    outputs_.pass_over(id, data.stream(), data.offset());
  }
  const std::uint64_t before = outputs_.taken(id, data.stream());
  if (auto status = outputs_.append(id, data.stream(), data.offset(), data.data()); !status) {
    // A full disk: what was not kept is not acknowledged, the pilot keeps it and is asked for it again.
    if (output_retry_.on_refused(stream)) spdlog::error("{}", status.error().text());
    arm_output_retry();
  } else {
    for (const auto& other : output_retry_.on_kept(stream, outputs_.taken(id, data.stream()) > before)) ask_again(other);
  }
  const std::uint64_t after = outputs_.taken(id, data.stream());
  if (after / output_window_step != before / output_window_step) {
    v1::Frame frame;
    auto* window = frame.mutable_output_window();
    *window->mutable_id() = data.id();
    window->set_stream(data.stream());
    window->set_offset(after);
    window->set_credit(output_credit_bytes);
    send(from, std::move(frame));
  }
  if (const auto attached = attached_.find(id); attached != attached_.end())
    for (auto& session : std::vector(attached->second)) session->pump();
  if (ended(job->state)) settle_output(id);
}

void Coordinator::ask_again(JobOutput stream) {
  const Job* job = state().job(stream.job);
  if (!job || !job->node.pilot) return;
  v1::Frame frame;
  auto* window = frame.mutable_output_window();
  window->mutable_id()->set_job(job->id.value);
  window->mutable_id()->set_attempt(job->attempt);
  window->set_stream(stream.which);
  window->set_offset(outputs_.taken(job->id, stream.which));
  window->set_credit(output_credit_bytes);
  window->set_again(true);
  send(job->node, std::move(frame));
}

void Coordinator::arm_output_retry() {
  if (std::exchange(output_retrying_, true)) return;
  output_retry_timer_.expires_after(output_retry_interval);
  output_retry_timer_.async_wait([this](boost::system::error_code code) {
    output_retrying_ = false;
    if (code) return;
    const auto stream = output_retry_.next();
    if (!stream) return;
    if (const Job* job = state().job(stream->job); !job || output_complete(*job)) output_retry_.forget(stream->job);
    else ask_again(*stream);
    arm_output_retry();
  });
}

// The pilot said that the attempt has ended: it holds it until it is told to forget it.
void Coordinator::await_output(NodeId from, const v1::AttemptId& ended_attempt) {
  const Job* job = state().job(JobId{ended_attempt.job()});
  if (job && job->attempt == ended_attempt.attempt() && job->node == from && ended(job->state)) awaited_outputs_.insert(job->id);
}

bool Coordinator::output_complete(const Job& job) {
  if (!ended(job.state)) return false;
  if (!job.node.pilot) return true;
  const auto all_in = [&](unsigned which, std::uint64_t bytes) {
    return outputs_.taken(job.id, which) >= bytes || outputs_.full(job.id, which);
  };
  if (all_in(1, job.stdout_bytes) && all_in(2, job.stderr_bytes)) return true;
  const auto pilot = state().pilots.find(job.node.pilot);
  if (pilot == state().pilots.end() || ended(pilot->second.state)) return true;
  const Node* node = state().node(job.node);
  return !node || node->gone || (node->linked && !awaited_outputs_.contains(job.id));
}

// A pilot that has work waiting needs no answer to each end: they go with the next that it is sent.
void Coordinator::send_forgets(NodeId to) {
  auto held = held_forgets_.extract(to);
  if (held.empty()) return;
  for (auto& frame : held.mapped()) send(to, std::move(frame));
}

void Coordinator::send_due_forgets(const std::set<NodeId>& started) {
  std::vector<NodeId> due;
  for (const auto& [to, frames] : held_forgets_) {
    const Node* node = state().node(to);
    if (!node || node->prefilled.empty() || started.contains(to)) due.push_back(to);
  }
  for (const NodeId to : due) send_forgets(to);
}

void Coordinator::settle_output(JobId id) {
  const Job* job = state().job(id);
  if (!job || out_.changed_jobs.contains(id) || !output_complete(*job)) return;  // its end is to be in the journal first
  awaited_outputs_.erase(id);
  output_retry_.forget(id);
  if (job->node.pilot) {
    v1::Frame frame;
    frame.mutable_forget_attempt()->mutable_id()->set_job(id.value);
    frame.mutable_forget_attempt()->mutable_id()->set_attempt(job->attempt);
    const Node* node = state().node(job->node);
    auto& held = held_forgets_[job->node];
    held.push_back(std::move(frame));
    if (!node || node->prefilled.empty() || held.size() >= most_held_forgets) send_forgets(job->node);
  }
  outputs_.close(id);
  if (const auto attached = attached_.find(id); attached != attached_.end())
    for (auto& session : std::vector(attached->second)) session->pump();
}

void Coordinator::on_need_blob(NodeId from, const v1::NeedBlob& wanted) {
  // It asks again when it has come back: from where it stands.
  blob_sends_.remove_if([&](const BlobSend& each) { return each.to == from && each.sha256 == wanted.sha256(); });
  blob_sends_.push_back({from, wanted.sha256(), {wanted.offset(), wanted.offset(), wanted.tells_taken()}});
  pump_blobs();
}

void Coordinator::on_blob_taken(NodeId from, const v1::BlobTaken& taken) {
  for (auto& each : blob_sends_)
    if (each.to == from && each.sha256 == taken.sha256()) each.flow.on_taken(taken.offset());
  pump_blobs();
}

bool Coordinator::has_room(NodeId to) const {
  if (const auto local = local_nodes_.find(to); local != local_nodes_.end())
    return local->second.link && local->second.link->queued_bytes() < link::room_bytes;
  const auto pilot = state().pilots.find(to.pilot);
  return pilot != state().pilots.end() && hubs_->has_room(pilot->second.spec.resource());
}

void Coordinator::pump_blobs() {
  // Piece by piece in turn, so that a small file does not wait for a large one's end.
  for (bool moved = true; std::exchange(moved, false);)
    for (auto each = blob_sends_.begin(); each != blob_sends_.end();) {
      const Node* node = state().node(each->to);
      bool over = !node || !node->linked;
      if (!over && each->flow.may_send(blob_sends_.size()) && has_room(each->to)) {
        moved = true;
        over = send_blob_piece(*each);
      }
      each = over ? blob_sends_.erase(each) : std::next(each);
    }
}

// True: it was the last.
bool Coordinator::send_blob_piece(BlobSend& blob) {
  v1::Frame frame;
  auto* piece = frame.mutable_blob_data();
  piece->set_sha256(blob.sha256);
  piece->set_offset(blob.flow.offset);
  auto data = blobs_.read(blob.sha256, blob.flow.offset, blob_chunk_bytes);
  if (data) {
    blob.flow.offset += data->size();
    piece->set_last(data->empty() || blob.flow.offset >= blobs_.size(blob.sha256));
    piece->set_data(std::move(*data));
  } else {
    piece->set_error(data.error().message);
    piece->set_last(true);
  }
  const bool last = piece->last();
  send(blob.to, std::move(frame));
  return last;
}

}  // namespace flotilla::daemon
