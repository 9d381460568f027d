#include "daemon/coordinator/sessions.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include "daemon/coordinator/hubs.hpp"
#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"

namespace flotilla::daemon {
namespace {
constexpr std::size_t output_chunk_bytes = 256u << 10;
constexpr std::size_t output_queue_bytes = 1u << 20;  // what may wait for a slow client
constexpr char end_of_file_character = '\x04';        // a terminal's
constexpr std::uint64_t log_tail_bytes = 64u << 10;
constexpr auto log_poll = std::chrono::milliseconds(250);  // only while somebody follows the daemon's own log

bool takes_input(const Job& job) { return job.spec->has_command() && (job.spec->command().stdin_open() || job.spec->command().terminal()); }
}  // namespace

// ---- attach --------------------------------------------------------------------------------------------------

void Coordinator::attach(TwoWayStreamPtr<v1::AttachInput, v1::AttachOutput> stream) {
  std::make_shared<AttachSession>(*this, std::move(stream))->begin();
}

void Coordinator::AttachSession::begin() {
  auto self = shared_from_this();
  stream->on_message = [self](v1::AttachInput message) { self->on_message(std::move(message)); };
  stream->on_gone = [self] { self->leave(); };
  stream->on_half_close = [self] {
    if (!self->opened) {
      self->over = true;
      self->stream->finish(fail(Code::invalid_argument, "the call ended before it said what to attach to"));
    }
  };
  stream->on_drained = [self] { self->pump(); };
}

void Coordinator::AttachSession::on_message(v1::AttachInput message) {
  if (over) return;
  if (!opened) {
    if (!message.has_open()) {
      over = true;
      return stream->finish(fail(Code::invalid_argument, "the first message has to say what to attach to"));
    }
    opened = true;
    return open(std::move(*message.mutable_open()));
  }
  if (!id) return;
  const Job* job = c.state().job(id);
  if (!job || output_only) return;
  switch (message.body_case()) {
    case v1::AttachInput::kStdin: feed(std::move(*message.mutable_stdin()), false); break;
    case v1::AttachInput::kStdinEof: feed({}, true); break;
    case v1::AttachInput::kWindow: {
      if (job->state != v1::JOB_RUNNING) break;
      v1::Frame frame;
      frame.mutable_resize_terminal()->mutable_id()->set_job(id.value);
      frame.mutable_resize_terminal()->mutable_id()->set_attempt(job->attempt);
      *frame.mutable_resize_terminal()->mutable_window() = message.window();
      c.send(job->node, std::move(frame));
      break;
    }
    case v1::AttachInput::kSignal:
      if (placed(job->state) && !job->prefilled) {
        (void)c.core_.signal(id, message.signal(), now(), c.out_);
      } else if (!ended(job->state)) {
        (void)c.core_.cancel(id, v1::CANCELED_BY_USER, "interrupted before it started", now(), c.out_);
      }
      c.touch();
      break;
    case v1::AttachInput::kDetach:
      detached = true;
      c.core_.release_job(id, now(), c.out_);
      c.touch();
      leave();
      stream->finish({});
      break;
    default: break;
  }
}

void Coordinator::AttachSession::open(v1::AttachOpen open) {
  follow = !open.no_follow();
  output_only = open.output_only();
  offsets[0] = open.stdout_offset();
  offsets[1] = open.stderr_offset();
  if (open.has_submit()) {
    if (auto status = c.takes_work(); !status) {
      over = true;
      return stream->finish(fail(status.error()));
    }
    for (const auto& file : open.submit().files())
      if (file.sha256().size() == 32 && !c.blobs_.has(file.sha256())) {
        over = true;
        return stream->finish(
            fail(Code::failed_precondition, fmt::format("the input file '{}' was not sent", file.name()), "send it with PutBlob first"));
      }
    cancel_with_client = open.submit().cancel_with_client();
    auto ids = c.core_.submit({open.submit()}, now(), c.out_);
    if (!ids) {
      over = true;
      return stream->finish(fail(ids.error()));
    }
    id = ids->front();  // what the client sends from now on is for this job
    c.after_commit([self = shared_from_this(), id = ids->front()] { self->joined(id); });
    return;
  }
  const Job* job = c.state().job(JobId{open.job()});
  if (!job) {
    over = true;
    return stream->finish(fail(Code::not_found, fmt::format("there is no job {}", open.job()), "flotilla job list shows them"));
  }
  for (const unsigned which : {1u, 2u}) {
    const std::uint64_t there = c.outputs_.kept(job->id, which);
    if (open.from_end()) offsets[which - 1] = there;
    else if (open.tail_bytes() && there > open.tail_bytes()) offsets[which - 1] = std::max(offsets[which - 1], there - open.tail_bytes());
  }
  cancel_with_client = open.comes_back() && job->spec->cancel_with_client();
  // Somebody who attaches by hand takes a job over whose own client has not come back.
  if (follow && !output_only && c.core_.client_came_back(job->id) && !cancel_with_client) {
    c.core_.release_job(job->id, now(), c.out_);
    c.touch();
  }
  joined(job->id);
}

void Coordinator::AttachSession::joined(JobId job) {
  if (over) return;
  id = job;
  c.attached_[id].push_back(shared_from_this());
  if (const Job* open = c.state().job(id); open && !ended(open->state) && follow && !output_only && takes_input(*open)) {
    const InputFlow& flow = c.input_flow(*open);
    input_begins = flow.end();
    if (flow.known()) tell_input_begins();
  }
  on_job_changed();
}

void Coordinator::AttachSession::on_job_changed() {
  const Job* job = c.state().job(id);
  if (!job || over) return;
  // The last state comes after the last output: pump() tells it.
  if (!std::exchange(told, true) || !follow || !ended(job->state)) tell(*job);
  pump();
}

void Coordinator::AttachSession::tell(const Job& job) {
  v1::AttachOutput message;
  *message.mutable_job() = c.show(job);
  stream->send(std::move(message));
}

void Coordinator::AttachSession::feed(std::string data, bool eof) {
  const Job* job = c.state().job(id);
  if (!job || ended(job->state)) return;
  if (eof && job->spec->command().terminal()) {
    data += end_of_file_character;
    eof = false;
  }
  InputFlow& flow = c.input_flow(*job);
  auto piece = flow.add(std::move(data), eof);
  if (flow.full()) stream->pause();
  if (piece) c.send_input(*job, std::move(*piece));
}

void Coordinator::AttachSession::tell_input_begins() {
  input_told = true;
  v1::AttachOutput message;
  message.set_stdin_next(input_begins);
  stream->send(std::move(message));
}

InputFlow& Coordinator::input_flow(const Job& job) {
  if (const auto there = input_flows_.find(job.id); there != input_flows_.end()) return there->second;
  // Nothing is sent to a job that does not run: then none can be under way. Of one that ran before this daemon its pilot knows.
  const Node* node = state().node(job.node);
  const bool running = job.state == v1::JOB_RUNNING;
  InputFlow& flow = input_flows_.emplace(job.id, InputFlow(!running || (node && node->linked))).first->second;
  if (running) flow.begin();
  return flow;
}

void Coordinator::send_held_input(const Job& job) {
  if (job.state != v1::JOB_RUNNING) return;
  const auto flow = input_flows_.find(job.id);
  if (flow == input_flows_.end()) return;
  for (auto& piece : flow->second.begin()) send_input(job, std::move(piece));
}

void Coordinator::send_input(const Job& job, InputFlow::Piece piece) {
  v1::Frame frame;
  auto* input = frame.mutable_input_data();
  input->mutable_id()->set_job(job.id.value);
  input->mutable_id()->set_attempt(job.attempt);
  input->set_offset(piece.offset);
  input->set_data(std::move(piece.data));
  input->set_eof(piece.eof);
  // With what the core sends: after the welcome, where this is the answer to an inventory.
  out_.frames.push_back({job.node, std::move(frame)});
  touch();
}

void Coordinator::resend_input(NodeId to, const v1::PilotHello& hello) {
  for (const auto& report : hello.inventory()) {
    const JobId id{report.id().job()};
    const Job* job = state().job(id);
    if (!job || job->attempt != report.id().attempt() || job->node != to || job->state != v1::JOB_RUNNING) continue;
    if (!takes_input(*job) && !input_flows_.contains(id)) continue;
    InputFlow& flow = input_flows_.try_emplace(id, InputFlow(false)).first->second;
    const std::uint64_t shift = flow.known() ? 0 : report.stdin_bytes();
    for (auto& piece : flow.on_inventory(report.stdin_bytes(), report.stdin_eof())) send_input(*job, std::move(piece));
    const auto attached = attached_.find(id);
    if (attached == attached_.end()) continue;
    for (auto& session : attached->second) {
      if (session->input_told || session->output_only || !session->follow || !takes_input(*job)) continue;
      session->input_begins += shift;
      session->tell_input_begins();
    }
  }
}

void Coordinator::on_input_taken(NodeId from, const v1::InputTaken& taken) {
  const JobId id{taken.id().job()};
  const auto flow = input_flows_.find(id);
  const Job* job = state().job(id);
  if (flow == input_flows_.end() || !job || job->node != from) return;
  flow->second.on_taken(taken.bytes());
  const auto attached = attached_.find(id);
  if (attached == attached_.end()) return;
  for (auto& session : attached->second) {
    if (session->input_told) {
      v1::AttachOutput message;
      message.set_stdin_taken(taken.bytes());
      session->stream->send(std::move(message));
    }
    if (!flow->second.full()) session->stream->resume();
  }
}

void Coordinator::AttachSession::pump() {
  if (over || !id) return;
  const Job* job = c.state().job(id);
  if (!job) return;
  // Its output does not overtake its state: what changed is told after the commit, and this with it.
  if (c.out_.changed_jobs.contains(id)) return;
  bool more = false;
  for (const unsigned which : {1u, 2u}) {
    for (;;) {
      if (stream->queued_bytes() > output_queue_bytes) {
        more = true;
        break;
      }
      auto data = c.outputs_.read(id, which, offsets[which - 1], output_chunk_bytes);
      if (!data) {
        over = true;
        leave();
        return stream->finish(fail(data.error()));
      }
      if (data->empty()) break;
      v1::AttachOutput message;
      message.mutable_output()->set_stream(which);
      message.mutable_output()->set_offset(offsets[which - 1]);
      offsets[which - 1] += data->size();
      message.mutable_output()->set_data(std::move(*data));
      stream->send(std::move(message));
    }
  }
  if (more) return;  // on_drained goes on
  if ((ended(job->state) && c.output_complete(*job)) || !follow) {
    if (follow) tell(*job);
    v1::AttachOutput message;
    *message.mutable_end() = job->exit;
    stream->send(std::move(message));
    over = true;
    leave();
    stream->finish({});
  }
}

void Coordinator::AttachSession::leave() {
  auto self = shared_from_this();
  if (const auto it = c.attached_.find(id); it != c.attached_.end()) {
    std::erase(it->second, self);
    if (it->second.empty()) c.attached_.erase(it);
  }
  stream->on_message = nullptr;
  // The end of the daemon is no end of the client: it comes back and goes on.
  if (!over && cancel_with_client && !detached && id && !c.ending_) {
    (void)c.core_.cancel(id, v1::CANCELED_BY_USER, "its client went away", now(), c.out_);
    c.touch();
  }
  over = true;
}

// ---- logs ------------------------------------------------------------------------------------------------------

void Coordinator::LogSession::on_data(const v1::LogData& data) {
  if (!data.error().empty()) {
    stream->finish(fail(Code::unavailable, data.error(), node.pilot ? "flotilla pilot show says how it ended" : ""));
    return;
  }
  if (!data.data().empty() || !data.path().empty()) {
    v1::LogChunk chunk;
    chunk.set_data(data.data());
    chunk.set_path(data.path());
    chunk.set_host(host);
    stream->send(std::move(chunk));
  }
  if (data.eof()) stream->finish({});
}

void Coordinator::on_log_data(const std::string& resource, const v1::LogData& data) {
  const auto it = log_requests_.find(data.request());
  if (it == log_requests_.end() || it->second->resource != resource) return;
  const auto session = it->second;
  if (data.eof() || !data.error().empty()) log_requests_.erase(it);
  session->on_data(data);
}

void Coordinator::end_logs(const std::string& resource, NodeId node, const std::string& cause) {
  for (auto it = log_requests_.begin(); it != log_requests_.end();) {
    const auto session = it->second;
    if (session->resource != resource || (node.pilot && session->node != node)) {
      ++it;
      continue;
    }
    it = log_requests_.erase(it);
    session->stream->finish(
        fail(Code::unavailable, fmt::format("the log does not come any more: {}", cause), "ask for it again", Retry::yes));
  }
}

void Coordinator::read_logs(const v1::ReadLogsRequest& request, OutStreamPtr<v1::LogChunk> stream) {
  auto session = std::make_shared<LogSession>();
  session->stream = stream;
  const std::uint64_t tail = request.tail_bytes() ? request.tail_bytes() : log_tail_bytes;
  if (request.of() == "daemon" || request.of().empty()) {
    session->path = places_.log_file.string();
    session->host = host_name();
    struct stat info {};
    if (stat(session->path.c_str(), &info) == 0) {
      session->inode = info.st_ino;
      if (static_cast<std::uint64_t>(info.st_size) > tail) session->offset = static_cast<std::uint64_t>(info.st_size) - tail;
    }
    session->timer = std::make_unique<boost::asio::steady_timer>(io_);
    stream->on_gone = [weak = std::weak_ptr(session)] {
      if (auto s = weak.lock()) s->timer->cancel();
    };
    if (!request.follow()) session->inode = 0;
    follow_log_file(session);
    return;
  }
  const std::uint64_t number = ++last_log_request_;
  v1::Frame frame;
  frame.mutable_read_log()->set_request(number);
  frame.mutable_read_log()->set_tail_bytes(tail);
  frame.mutable_read_log()->set_follow(request.follow());
  v1::Frame stop;
  stop.mutable_read_log()->set_request(number);
  stop.mutable_read_log()->set_stop(true);

  if (const auto resource = state().resources.find(request.of()); resource != state().resources.end()) {
    const std::string name = resource->first;
    if (resource->second.local())
      return stream->finish(fail(Code::failed_precondition, "resource 'local' has no hub", "flotilla logs daemon, or flotilla logs PILOT"));
    if (!hubs_->connected(name))
      return stream->finish(fail(Code::unavailable, fmt::format("the hub of '{}' is not connected", name),
                                 fmt::format("flotilla resource connect {}", name), Retry::yes));
    session->host = resource->second.hub_host;
    session->resource = name;
    session->stop = [this, name, stop] { hubs_->send(name, stop); };
    log_requests_[number] = session;
    hubs_->send(name, std::move(frame));
  } else {
    NodeId node = parse_peer(request.of());
    if (!node.pilot) {
      node = parse_peer(request.of() + ".0");
      if (const auto pilot = state().pilots.find(node.pilot); pilot != state().pilots.end()) {
        const auto& nodes = pilot->second.nodes;
        const auto linked = std::ranges::find_if(nodes, [](const auto& each) { return each.second.linked; });
        if (linked != nodes.end()) node.node = linked->first;
        else if (!nodes.empty()) node.node = nodes.begin()->first;
      }
    }
    const auto pilot = state().pilots.find(node.pilot);
    const Node* there = state().node(node);
    if (pilot == state().pilots.end() || (!there && pilot->second.nodes.contains(0)))
      return stream->finish(fail(Code::not_found, fmt::format("'{}' is neither 'daemon' nor a resource nor a pilot", request.of()),
                                 "flotilla resource list and flotilla pilot list show them"));
    const std::string name = pilot->second.spec.resource();
    const auto at = state().resources.find(name);
    const bool local = at != state().resources.end() && at->second.local();
    if (!there && !local)
      return stream->finish(fail(Code::not_found, fmt::format("pilot {} was not started yet", request.of()), pilot->second.message));
    if (local && !(there && there->linked)) {  // its file is here
      const auto file = find_pilot_log(at->second.spec.scratch_dir(), journal_->instance(), node);
      if (!file) return stream->finish(fail(file.error()));
      session->path = file->string();
      session->host = host_name();
      std::error_code problem;
      if (const auto size = std::filesystem::file_size(*file, problem); !problem && size > tail) session->offset = size - tail;
      return follow_log_file(session);
    }
    if (!local && !hubs_->connected(name))
      return stream->finish(fail(Code::unavailable,
                                 fmt::format("the log of pilot {} lies at '{}', whose hub is not connected", request.of(), name),
                                 fmt::format("flotilla resource connect {}", name), Retry::yes));
    session->host = there->record.host();
    session->resource = name;
    session->node = node;
    session->stop = [this, node, stop] { send(node, stop); };
    log_requests_[number] = session;
    send(node, std::move(frame));
  }
  stream->on_gone = [this, number] {
    const auto it = log_requests_.find(number);
    if (it == log_requests_.end()) return;
    it->second->stop();
    log_requests_.erase(it);
  };
}

void Coordinator::follow_log_file(std::shared_ptr<LogSession> session) {
  for (;;) {
    unique_fd fd(open(session->path.c_str(), O_RDONLY | O_CLOEXEC));
    std::string data(output_chunk_bytes, '\0');
    const ssize_t n = fd ? pread(fd.get(), data.data(), data.size(), static_cast<off_t>(session->offset)) : 0;
    struct stat info {};
    const bool rotated = session->inode && fd && fstat(fd.get(), &info) == 0 && info.st_ino != session->inode;
    if (rotated) {
      session->inode = info.st_ino;
      session->offset = 0;
      continue;
    }
    if (n <= 0) break;
    data.resize(static_cast<std::size_t>(n));
    session->offset += static_cast<std::uint64_t>(n);
    v1::LogChunk chunk;
    chunk.set_data(std::move(data));
    chunk.set_path(session->path);
    chunk.set_host(session->host);
    session->stream->send(std::move(chunk));
  }
  if (!session->inode) return session->stream->finish({});
  session->timer->expires_after(log_poll);
  session->timer->async_wait([this, session](boost::system::error_code code) {
    if (!code) follow_log_file(session);
  });
}

}  // namespace flotilla::daemon
