#include "test/integration/pilot/fake_daemon.hpp"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "pilot/process/process_tree.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"

extern char** environ;

namespace flotilla::test {
namespace fs = std::filesystem;

FakeDaemon::FakeDaemon() : acceptor_(io) {
  char name[] = "/tmp/flpilot-XXXXXX";
  dir = mkdtemp(name);
  start.set_pilot(7);
  start.set_node(0);
  start.set_instance(random_bytes(16));
  start.set_secret("a join secret");
  start.set_scratch_dir((dir / "scratch").string());
  start.set_runtime_dir((dir / "run").string());
  start.set_upper_socket((dir / "daemon.sock").string());
  start.set_resource("local");
  start.mutable_spec()->set_slots_per_node(4);
  start.mutable_settings()->set_idle_ms(-1);
  start.mutable_settings()->set_cutoff_ms(20'000);
  if (prepare) prepare(start);
  welcome.set_protocol(protocol_version);
  welcome.set_build("test");
  link::Handlers handlers;
  handlers.on_open = [this](const link::LinkPtr& link) { link_ = link; };
  handlers.on_frame = [this](const link::LinkPtr& link, v1::Frame frame) { on_frame(link, std::move(frame)); };
  handlers.on_closed = [this](const link::LinkPtr& link, const std::string&) {
    if (link == link_) {
      link_.reset();
      welcomed = false;
    }
  };
  server_ = std::make_unique<link::Server>(io, std::move(handlers), link::keepalive_cluster);
  listen();
}

FakeDaemon::~FakeDaemon() {
  if (outcome.guard > 0 && process_exists(outcome.guard)) {
    auto_forget = true;  // it need not wait for us
    for (const auto& [id, seen] : jobs)
      if (seen.ends > 0) forget(id);
    kill(outcome.guard, SIGTERM);
    run_until([&] { return !process_exists(outcome.guard); }, 8s);
    for (pid_t pid : processes_of(start.instance())) kill(pid, SIGKILL);
  }
  acceptor_.close();
  server_.reset();
  std::error_code ignored;
  fs::remove_all(dir, ignored);
}

void FakeDaemon::listen() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, start.upper_socket().c_str());
  unlink(address.sun_path);
  unique_fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::listen(fd.get(), 8) != 0) std::abort();
  acceptor_.assign(fd.release());
  accept_one();
}

void FakeDaemon::stop_listening() {
  acceptor_.close();
  unlink(start.upper_socket().c_str());
}

void FakeDaemon::accept_one() {
  acceptor_.async_wait(boost::asio::posix::stream_descriptor::wait_read, [this](const boost::system::error_code& error) {
    if (error || !acceptor_.is_open()) return;
    unique_fd fd(accept4(acceptor_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC));
    if (fd) server_->add_fd(std::move(fd));
    accept_one();
  });
}

bool FakeDaemon::run_until(const std::function<bool()>& done, std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  io.restart();
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    io.run_one_for(20ms);
  }
  return true;
}

void FakeDaemon::run_for(std::chrono::milliseconds time) {
  io.restart();
  io.run_for(time);
}

StartOutcome FakeDaemon::launch() {
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(start, &json);
  int in[2], out[2], err[2];
  if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) std::abort();
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  posix_spawn_file_actions_adddup2(&actions, err[1], 2);
  std::string program = FLOTILLA_AGENT, part = "pilot";
  char* arguments[] = {program.data(), part.data(), nullptr};
  pid_t pid = -1;
  if (posix_spawn(&pid, program.c_str(), &actions, nullptr, arguments, environ) != 0) std::abort();
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]);
  close(out[1]);
  close(err[1]);
  if (write(in[1], json.data(), json.size()) != static_cast<ssize_t>(json.size())) std::abort();
  close(in[1]);
  int status = 0;
  run_until([&] { return waitpid(pid, &status, WNOHANG) == pid; }, 15s);
  outcome = {};
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  for (auto [fd, text] : {std::pair{out[0], &outcome.out}, std::pair{err[0], &outcome.err}}) {
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) text->append(buffer, static_cast<std::size_t>(n));
    close(fd);
  }
  if (const auto at = outcome.out.find("STARTED "); at != std::string::npos)  // after what the setup lines said
    std::sscanf(outcome.out.c_str() + at, "STARTED %d %d", &outcome.guard, &outcome.pilot);
  return outcome;
}

void FakeDaemon::send(v1::Frame frame) {
  if (link_) link_->send(std::move(frame));
}

void FakeDaemon::cut_link() {
  if (link_) link_->abort();
  link_.reset();
  welcomed = false;
}

std::uint64_t FakeDaemon::submit(v1::JobSpec spec, const std::function<void(v1::StartAttempt&)>& change) {
  v1::Frame frame;
  auto& attempt = *frame.mutable_start_attempt();
  const std::uint64_t id = next_job_++;
  attempt.mutable_id()->set_job(id);
  attempt.mutable_id()->set_attempt(1);
  *attempt.mutable_spec() = std::move(spec);
  if (change) change(attempt);
  jobs[id];
  send(std::move(frame));
  return id;
}

std::uint64_t FakeDaemon::submit_shell(const std::string& script, const std::function<void(v1::JobSpec&)>& change) {
  v1::JobSpec spec;
  for (const char* word : {"/bin/sh", "-c", script.c_str()}) spec.mutable_command()->add_argv(word);
  spec.set_working_folder(dir.string());
  if (change) change(spec);
  return submit(std::move(spec));
}

bool FakeDaemon::wait_end(std::uint64_t id, std::chrono::milliseconds limit) {
  return run_until([&] { return jobs[id].complete(); }, limit);
}
bool FakeDaemon::wait_running(std::uint64_t id, std::chrono::milliseconds limit) {
  return run_until([&] { return jobs[id].started > 0; }, limit);
}

void FakeDaemon::cancel(std::uint64_t id, std::int64_t grace_ms) {
  v1::Frame frame;
  frame.mutable_cancel_attempt()->mutable_id()->set_job(id);
  frame.mutable_cancel_attempt()->mutable_id()->set_attempt(1);
  frame.mutable_cancel_attempt()->set_kind(v1::CANCELED_BY_USER);
  frame.mutable_cancel_attempt()->set_grace_ms(grace_ms);
  send(std::move(frame));
}

void FakeDaemon::forget(std::uint64_t id) {
  v1::Frame frame;
  frame.mutable_forget_attempt()->mutable_id()->set_job(id);
  frame.mutable_forget_attempt()->mutable_id()->set_attempt(1);
  send(std::move(frame));
}

void FakeDaemon::on_frame(const link::LinkPtr& link, v1::Frame frame) {
  switch (frame.body_case()) {
    case v1::Frame::kHello: {
      ++hellos;
      hello = frame.hello();
      v1::Frame answer;
      *answer.mutable_welcome() = welcome;
      *answer.mutable_welcome()->mutable_pilot() = start.settings();
      for (const auto& [id, seen] : jobs) {
        auto& known = *answer.mutable_welcome()->add_known();
        known.mutable_id()->set_job(id);
        known.mutable_id()->set_attempt(1);
        known.set_stdout_bytes(seen.out.size());
        known.set_stderr_bytes(seen.err.size());
      }
      link->send(std::move(answer));
      welcomed = welcome.error().empty();
      break;
    }
    case v1::Frame::kAttemptRunning: {
      auto& seen = jobs[frame.attempt_running().id().job()];
      ++seen.started;
      seen.running = frame.attempt_running();
      break;
    }
    case v1::Frame::kWorkerConnected: {
      auto& seen = jobs[frame.worker_connected().id().job()];
      ++seen.connected;
      seen.hand_over_socket = frame.worker_connected().hand_over_socket();
      break;
    }
    case v1::Frame::kAttemptRetracted: {
      auto& seen = jobs[frame.attempt_retracted().id().job()];
      ++(frame.attempt_retracted().begun() ? seen.kept : seen.given_back);
      break;
    }
    case v1::Frame::kAttemptEnded: {
      auto& seen = jobs[frame.attempt_ended().id().job()];
      ++seen.ends;
      seen.end = frame.attempt_ended();
      if (on_end) on_end(seen.end);
      if (auto_forget) forget(frame.attempt_ended().id().job());
      break;
    }
    case v1::Frame::kOutputData: {
      const auto& data = frame.output_data();
      auto& seen = jobs[data.id().job()];
      auto& text = data.stream() == 2 ? seen.err : seen.out;
      if (data.offset() != text.size()) {
        std::fprintf(stderr, "output of job %llu at offset %llu, expected %zu\n", static_cast<unsigned long long>(data.id().job()),
                     static_cast<unsigned long long>(data.offset()), text.size());
        std::abort();
      }
      text += data.data();
      if (data.eof()) (data.stream() == 2 ? seen.err_eof : seen.out_eof) = true;
      if (!take_output) break;
      v1::Frame answer;
      *answer.mutable_output_window()->mutable_id() = data.id();
      answer.mutable_output_window()->set_stream(data.stream());
      answer.mutable_output_window()->set_offset(text.size());
      answer.mutable_output_window()->set_credit(1 << 20);
      link->send(std::move(answer));
      break;
    }
    case v1::Frame::kNeedBlob:
      needs.push_back(frame.need_blob());
      if (on_need) on_need(needs.back());
      break;
    case v1::Frame::kBlobTaken: blob_taken = frame.blob_taken().offset(); break;
    case v1::Frame::kPilotEnding:
      ++endings;
      ending = frame.pilot_ending();
      break;
    case v1::Frame::kGoodbye:
      ++goodbyes;
      link->close();
      break;
    case v1::Frame::kChannelAck:
      if (on_channel_ack) on_channel_ack(frame.channel_ack());
      break;
    case v1::Frame::kChannelEnd:
      if (on_channel_end) on_channel_end(frame.channel_end());
      break;
    case v1::Frame::kChannelData:
      if (on_channel_data) on_channel_data(frame.channel_data());
      break;
    case v1::Frame::kChannelRefused: refusals.push_back(frame.channel_refused()); break;
    case v1::Frame::kInputTaken: inputs_taken[frame.input_taken().id().job()] = frame.input_taken().bytes(); break;
    case v1::Frame::kNodeStatus: statuses.push_back(frame.node_status()); break;
    case v1::Frame::kLogData: logs.push_back(frame.log_data()); break;
    default: break;
  }
}

bool process_exists(pid_t pid) {
  for (const auto& entry : pilot::list_processes())
    if (entry.pid == pid) return entry.state != 'Z';
  return false;
}

std::vector<pid_t> processes_of(const std::string& instance) {
  std::vector<pid_t> found;
  for (const auto& entry : pilot::list_processes())
    if (entry.state != 'Z' && pilot::has_environment(entry.pid, {"FLOTILLA_INSTANCE=" + to_hex(instance)})) found.push_back(entry.pid);
  return found;
}

std::string read_whole(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream all;
  all << in.rdbuf();
  return all.str();
}

}  // namespace flotilla::test
