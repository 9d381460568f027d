// The shell around the core, with a journal that fails when it is told to and a pilot that says what the test says.
#include "daemon/coordinator/coordinator.hpp"

#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "daemon/coordinator/channel_giver.hpp"
#include "daemon/coordinator/hubs.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
namespace fs = std::filesystem;

namespace {

// What a journal holds, over several lives of a daemon.
struct Kept {
  std::vector<v1::Event> events;
  std::map<std::string, std::string> settings;
  bool full = false;
};

class FakeJournal final : public Journal {
 public:
  explicit FakeJournal(Kept& kept) : kept_(kept) {}
  const std::string& instance() const override { return instance_; }
  Status replay(const std::function<void(const v1::Event&)>& each) override {
    for (const auto& event : kept_.events) each(event);
    return {};
  }
  Status append(const std::vector<v1::Event>& events) override {
    if (kept_.full && !events.empty())
      return fail(Code::resource_exhausted, "cannot write the journal: disk full", "make room on its disk", Retry::yes);
    kept_.events.insert(kept_.events.end(), events.begin(), events.end());
    return {};
  }
  std::string get(const std::string& name) override { return kept_.settings[name]; }
  Status put(const std::string& name, const std::string& value) override {
    kept_.settings[name] = value;
    return {};
  }

 private:
  Kept& kept_;
  std::string instance_ = std::string(16, 'i');
};

template <class Out>
struct Heard {
  std::vector<Out> messages;
  std::optional<Status> end;
};
template <class Base, class Out>
struct FakeStream final : Base {
  explicit FakeStream(Heard<Out>& heard) : heard_(heard) {}
  void send(Out message) override { heard_.messages.push_back(std::move(message)); }
  void finish(Status status) override { heard_.end = std::move(status); }
  std::size_t queued_bytes() const override { return 0; }
  Heard<Out>& heard_;
};
using ProgressStream = FakeStream<OutStream<v1::Progress>, v1::Progress>;
struct AttachStream final : TwoWayStream<v1::AttachInput, v1::AttachOutput> {
  explicit AttachStream(Heard<v1::AttachOutput>& heard) : heard_(heard) {}
  void send(v1::AttachOutput message) override { heard_.messages.push_back(std::move(message)); }
  void finish(Status status) override { heard_.end = std::move(status); }
  std::size_t queued_bytes() const override { return 0; }
  void pause() override {}
  void resume() override {}
  Heard<v1::AttachOutput>& heard_;
};
// A client that attaches, for as long as its call lasts. Then the handlers, which hold the stream, are let go as gRPC's side does it.
struct Attachment {
  explicit Attachment(Heard<v1::AttachOutput>& heard) : stream(std::make_shared<AttachStream>(heard)) {}
  Attachment(Attachment&&) = default;
  ~Attachment() {
    if (!stream) return;
    stream->on_message = nullptr;
    stream->on_half_close = nullptr;
    stream->on_gone = nullptr;
    stream->on_drained = nullptr;
  }
  AttachStream* operator->() const { return stream.get(); }
  std::shared_ptr<AttachStream> stream;
};

struct Folder {
  Folder() {
    char name[] = "/tmp/fl-coordinator-test-XXXXXX";
    path = mkdtemp(name);
    for (const char* part : {"state", "runtime"}) fs::create_directory(path / part);
  }
  ~Folder() { fs::remove_all(path); }
  fs::path path;
};

// Something that looks like a pilot that lives.
struct PilotProcess {
  PilotProcess() {
    char program[] = "flotilla-agent", time[] = "1000";
    char* argv[] = {program, time, nullptr};
    REQUIRE(posix_spawn(&pid, "/bin/sleep", nullptr, nullptr, argv, environ) == 0);
  }
  ~PilotProcess() {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  pid_t pid = 0;
};

// One life of a daemon.
struct Life {
  Life(const Folder& folder, Kept& kept, std::uint64_t output_limit_bytes = 1 << 20) {
    Config config;
    config.local_pilot = false;
    config.output_limit_bytes = output_limit_bytes;
    Coordinator::Places places;
    places.state = folder.path / "state";
    places.runtime = folder.path / "runtime";
    places.agent = "/nonexistent";
    c = std::make_unique<Coordinator>(io, config, places, std::make_unique<FakeJournal>(kept));
    REQUIRE(c->start());
  }
  void settle() {
    io.restart();
    io.poll();
  }
  template <class Done>
  void until(Done done) {
    while (!done() && io.run_one_for(std::chrono::seconds(30))) {}
    CHECK(done());
  }
  PilotId start_pilot() {
    v1::StartPilotRequest request;
    request.mutable_spec()->set_resource("local");
    request.mutable_spec()->set_slots_per_node(2);
    c->start_pilot(request, [](auto) {});
    const PilotId id{c->state().last_pilot};
    join(id);
    settle();
    return id;
  }
  void join(PilotId id, const v1::AttemptReport* held = nullptr) {
    v1::PilotHello hello;
    hello.set_pilot(id.value);
    hello.set_slots(2);
    hello.set_incarnation("one");
    hello.set_host("here");
    hello.set_pid(static_cast<std::uint32_t>(pilot_pid));
    if (held) *hello.add_inventory() = *held;
    CHECK(c->join(hello, true).error().empty());
    settle();
  }
  JobId submit() {
    std::optional<Result<v1::SubmitReply>> answer;
    c->submit(one_job(), [&](auto reply) { answer = std::move(reply); });
    settle();
    REQUIRE(answer);
    REQUIRE(*answer);
    return JobId{(*answer)->ids(0)};
  }
  static v1::SubmitRequest one_job() {
    v1::SubmitRequest request;
    request.add_specs()->mutable_command()->add_argv("true");
    return request;
  }
  static v1::AttemptId attempt(JobId job) {
    v1::AttemptId id;
    id.set_job(job.value);
    id.set_attempt(1);
    return id;
  }
  void output(JobId job, std::uint64_t offset, const std::string& data) {
    v1::Frame frame;
    *frame.mutable_output_data()->mutable_id() = attempt(job);
    frame.mutable_output_data()->set_stream(1);
    frame.mutable_output_data()->set_offset(offset);
    frame.mutable_output_data()->set_data(data);
    c->on_node_frame(c->state().job(job)->node, std::move(frame));
    settle();
  }
  void end(JobId job, std::uint64_t bytes) {
    v1::Frame frame;
    *frame.mutable_attempt_ended()->mutable_id() = attempt(job);
    frame.mutable_attempt_ended()->mutable_exit()->set_kind(v1::EXITED);
    frame.mutable_attempt_ended()->set_stdout_bytes(bytes);
    c->on_node_frame(c->state().job(job)->node, std::move(frame));
    settle();
  }
  void lose(PilotId pilot) {
    v1::Frame frame;
    frame.mutable_node_left()->set_cause("its process ended");
    frame.mutable_node_left()->set_process_dead(true);
    c->on_node_frame({pilot, 0}, std::move(frame));
    settle();
  }
  Attachment attach(JobId job, Heard<v1::AttachOutput>& heard) {
    Attachment client(heard);
    c->attach(client.stream);
    v1::AttachInput open;
    open.mutable_open()->set_job(job.value);
    client->on_message(open);
    return client;
  }
  boost::asio::io_context io{1};
  std::unique_ptr<Coordinator> c;
  pid_t pilot_pid = 0;
};

std::string text_of(const Heard<v1::AttachOutput>& heard) {
  std::string text;
  for (const auto& message : heard.messages) text += message.output().data();
  return text;
}

}  // namespace

TEST_CASE("a journal that cannot be written: changes are refused with the reason, the daemon can be asked and ended") {
  Folder folder;
  Kept kept;
  Life life(folder, kept);
  life.settle();
  kept.full = true;
  std::optional<Result<v1::SubmitReply>> first;
  life.c->submit(Life::one_job(), [&](auto reply) { first = std::move(reply); });
  life.settle();
  CHECK_FALSE(first);  // it may still be kept

  std::vector<Error> refusals;
  const auto refused = [&](auto reply) {
    REQUIRE_FALSE(reply);
    refusals.push_back(reply.error());
  };
  life.c->submit(Life::one_job(), refused);
  v1::AddResourceRequest resource;
  resource.mutable_spec()->set_name("desk");
  resource.mutable_spec()->set_location("desk");
  life.c->add_resource(resource, refused);
  v1::RemoveResourceRequest remove;
  remove.set_name("desk");
  life.c->remove_resource(remove, refused);
  life.c->start_pilot({}, refused);
  v1::StopPilotsRequest stop;
  stop.set_all(true);
  life.c->stop_pilots(stop, refused);
  v1::CancelJobsRequest cancel;
  cancel.set_all(true);
  life.c->cancel_jobs(cancel, refused);
  v1::StartWorkerRequest worker;
  worker.mutable_spec()->mutable_worker()->set_executable("code");
  life.c->start_worker(worker, std::make_shared<CallContext>(), refused);
  REQUIRE(refusals.size() == 7);
  for (const auto& error : refusals) {
    CHECK(error.code == Code::resource_exhausted);
    CHECK(error.retry == Retry::yes);
    CHECK(error.message.find("cannot write the journal") != std::string::npos);
  }
  Heard<v1::AttachOutput> attached;
  const Attachment client(attached);
  life.c->attach(client.stream);
  v1::AttachInput open;
  *open.mutable_open()->mutable_submit() = Life::one_job().specs(0);
  client->on_message(open);
  REQUIRE(attached.end);
  CHECK(attached.end->error().code == Code::resource_exhausted);
  Heard<v1::Progress> all;
  life.c->shutdown(true, std::make_shared<ProgressStream>(all));
  REQUIRE(all.end);
  CHECK_FALSE(*all.end);
  bool listed = false;
  life.c->list_jobs({}, [&](auto reply) { listed = reply.has_value(); });
  CHECK(listed);

  kept.full = false;  // somebody made room
  life.until([&] { return first.has_value(); });
  REQUIRE(*first);
  CHECK(life.submit() == JobId{2});

  kept.full = true;
  life.c->submit(Life::one_job(), [](auto) {});
  Heard<v1::Progress> alone;
  bool ended = false;
  life.c->on_end = [&] { ended = true; };
  life.c->shutdown(false, std::make_shared<ProgressStream>(alone));
  life.until([&] { return ended; });
  REQUIRE(alone.end);
  CHECK(*alone.end);
}

TEST_CASE("a resource that is added and removed in the same moment") {
  Folder folder;
  Kept kept;
  Life life(folder, kept);
  life.settle();
  v1::AddResourceRequest add;
  add.mutable_spec()->set_name("desk");
  add.mutable_spec()->set_location("desk");
  std::optional<Result<v1::Resource>> added;
  bool removed = false;
  life.c->add_resource(add, [&](auto reply) { added = std::move(reply); });
  v1::RemoveResourceRequest remove;
  remove.set_name("desk");
  life.c->remove_resource(remove, [&](auto reply) { removed = reply.has_value(); });
  life.settle();
  REQUIRE(added);
  REQUIRE_FALSE(*added);
  CHECK(added->error().code == Code::not_found);
  CHECK(removed);
}

TEST_CASE("whoever reads along comes to an end when the pilot was lost before the last of the output came") {
  Folder folder;
  Kept kept;
  JobId job;
  {
    Life life(folder, kept);
    const PilotId pilot = life.start_pilot();
    job = life.submit();
    life.output(job, 0, "abcd");
    life.end(job, 10);
    Heard<v1::AttachOutput> heard;
    const auto client = life.attach(job, heard);
    CHECK_FALSE(heard.end);  // the pilot has more
    life.lose(pilot);
    CHECK(heard.end);
    CHECK(text_of(heard) == "abcd");
  }
  Life again(folder, kept);
  Heard<v1::AttachOutput> heard;
  const auto client = again.attach(job, heard);
  again.settle();
  REQUIRE(heard.end);
  CHECK(*heard.end);
  CHECK(text_of(heard) == "abcd");
}

TEST_CASE("after a restart the pilot says of which ends it still has output") {
  Folder folder;
  Kept kept;
  PilotProcess process;
  PilotId pilot;
  JobId held, forgotten;
  {
    Life life(folder, kept);
    life.pilot_pid = process.pid;
    pilot = life.start_pilot();
    held = life.submit();
    forgotten = life.submit();
    for (const JobId job : {held, forgotten}) {
      life.output(job, 0, "abcd");
      life.end(job, 8);
    }
  }
  Life life(folder, kept);
  life.pilot_pid = process.pid;
  life.settle();
  Heard<v1::AttachOutput> first, second;
  const auto one = life.attach(held, first), two = life.attach(forgotten, second);
  CHECK_FALSE(first.end);
  CHECK_FALSE(second.end);
  v1::AttemptReport report;
  *report.mutable_id() = Life::attempt(held);
  report.set_state(v1::JOB_FINISHED);
  report.set_stdout_bytes(8);
  life.join(pilot, &report);
  CHECK_FALSE(first.end);
  CHECK(second.end);
  life.output(held, 4, "efgh");
  CHECK(first.end);
  CHECK(text_of(first) == "abcdefgh");
}

TEST_CASE("beyond its limit output is complete, also after a restart, and its tail is the tail of what is kept") {
  Folder folder;
  Kept kept;
  JobId job;
  {
    Life life(folder, kept, 8);
    life.start_pilot();
    job = life.submit();
    life.output(job, 0, "0123456789");
    CHECK(life.c->output(job.value, 1, 4).value() == "4567");
    life.output(job, 10, "abcdef");
    CHECK(life.c->output(job.value, 1, 4).value() == "4567");
    life.end(job, 1000);
    Heard<v1::AttachOutput> heard;
    const Attachment client(heard);
    life.c->attach(client.stream);
    v1::AttachInput open;
    open.mutable_open()->set_job(job.value);
    open.mutable_open()->set_tail_bytes(3);
    client->on_message(open);
    CHECK(text_of(heard) == "567");
    CHECK(heard.end);
  }
  Life life(folder, kept, 8);
  Heard<v1::AttachOutput> heard;
  const auto client = life.attach(job, heard);
  CHECK(heard.end);
  CHECK(text_of(heard) == "01234567");
}

TEST_CASE("output on a full disk is neither lost nor doubled") {
  Folder folder;
  Kept kept;
  Life life(folder, kept);
  life.start_pilot();
  const JobId job = life.submit();
  life.output(job, 0, "0123456789");
  Heard<v1::AttachOutput> heard;
  const auto client = life.attach(job, heard);
  signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit limit{14, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &limit);
  life.output(job, 10, "abcdefgh");
  life.output(job, 18, "the next");
  setrlimit(RLIMIT_FSIZE, &before);
  life.end(job, 26);
  CHECK_FALSE(heard.end);
  life.output(job, 18, "the next");  // was under way
  life.output(job, 10, "abcdefgh");  // it was asked to send again
  life.output(job, 18, "the next");
  CHECK(heard.end);
  CHECK(text_of(heard) == "0123456789abcdefghthe next");
}

TEST_CASE("output of jobs that the journal does not know is none of the next one's") {
  Folder folder;
  fs::create_directories(folder.path / "state/output/0");
  std::ofstream(folder.path / "state/output/0/1.out") << "of another life";
  Kept kept;
  Life life(folder, kept);
  life.start_pilot();
  const JobId job = life.submit();
  CHECK(job == JobId{1});
  CHECK(life.c->output(1, 1, 100).value().empty());
  life.output(job, 0, "new");
  CHECK(life.c->output(1, 1, 100).value() == "new");
}
