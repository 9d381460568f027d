#include "daemon/core/scheduler.hpp"

#include <fmt/format.h>

#include "test/unit/daemon/harness.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
using flotilla::daemon::test::Harness;

TEST_CASE("jobs start in order, as many as fit") {
  Harness h;
  h.running(3);
  std::vector<JobId> jobs;
  for (int i = 0; i < 5; ++i) jobs.push_back(h.submit(h.command()));
  h.place();
  for (int i = 0; i < 5; ++i) CHECK(h.has_room(jobs[i]) == (i < 3));
  h.report_end(jobs[1]);
  h.place();
  CHECK(h.has_room(jobs[3]));
  CHECK(h.waits(jobs[4]));
}

TEST_CASE("labels: the pilot's, its resource's name, or any") {
  Harness h;
  const PilotId blue = h.running(1, "blue"), green = h.running(1, "green");
  const JobId on_green = h.submit(h.command("green")), anywhere = h.submit(h.command()), on_local = h.submit(h.command("local")),
              nowhere = h.submit(h.command("red"));
  h.place();
  CHECK(h.core.state().job(on_green)->node.pilot == green);
  CHECK(h.core.state().job(anywhere)->node.pilot == blue);
  CHECK(h.waits(on_local));  // all slots of resource local are taken
  CHECK(h.state(nowhere) == v1::JOB_QUEUED);
}

TEST_CASE("a wide job does not starve behind narrow ones") {
  Harness h;
  const PilotId pilot = h.running(4);
  std::vector<JobId> narrow;
  for (int i = 0; i < 4; ++i) narrow.push_back(h.submit(h.command()));
  h.place();
  const JobId wide = h.submit(h.command("", 4));
  std::vector<JobId> later;
  for (int i = 0; i < 20; ++i) later.push_back(h.submit(h.command()));
  for (int i = 0; i < 4; ++i) {
    CHECK(h.state(wide) == v1::JOB_QUEUED);
    h.report_end(narrow[i]);
    h.place();
    if (i < 3) CHECK(h.state(later[0]) == v1::JOB_QUEUED);
  }
  CHECK(h.has_room(wide));
  CHECK(h.core.state().node({pilot, 0})->slots_used == 4);
}

TEST_CASE("a wide job holds back one node only") {
  Harness h;
  const PilotId first = h.running(2), second = h.running(2);
  const JobId a = h.submit(h.command()), b = h.submit(h.command("", 2));
  h.place();
  CHECK(h.core.state().job(a)->node.pilot == first);
  CHECK(h.core.state().job(b)->node.pilot == second);
  const JobId wide = h.submit(h.command("", 2)), narrow = h.submit(h.command());
  h.place();
  CHECK(h.state(wide) == v1::JOB_QUEUED);
  CHECK(h.prefilled(narrow));  // the one free slot is on the node kept for the wide job
  CHECK(h.core.state().job(narrow)->node.pilot == second);
  const PilotId third = h.running(1);
  h.place();
  h.report_retracted(narrow);
  h.place();
  CHECK(h.core.state().job(narrow)->node.pilot == third);
  CHECK(h.has_room(narrow));
}

TEST_CASE("a job that no node could carry holds back nobody") {
  Harness h;
  h.running(2);
  const JobId giant = h.submit(h.command("", 64)), small = h.submit(h.command());
  h.place();
  CHECK(h.state(giant) == v1::JOB_QUEUED);
  CHECK(h.state(small) == v1::JOB_DISPATCHED);
  CHECK(why(h.core.state(), *h.core.state().job(giant), h.now).sentence.find("64 slots") != std::string::npos);
}

TEST_CASE("why says what stands in the way") {
  Harness h;
  const JobId job = h.submit(h.command("gpu"));
  auto sentence = [&] { return why(h.core.state(), *h.core.state().job(job), h.now).sentence; };
  auto passes = [&](JobId id) { return why(h.core.state(), *h.core.state().job(id), h.now).transient; };
  CHECK(sentence().find("no pilot has the label 'gpu'") != std::string::npos);
  CHECK_FALSE(passes(job));
  const PilotId pilot = h.start("local", "gpu", 1);
  CHECK(sentence().find("still starting") != std::string::npos);
  CHECK(passes(job));
  CHECK(h.join(pilot, 1).error().empty());
  const JobId first = h.submit(h.command("gpu"));
  h.place();
  CHECK(h.has_room(job));
  CHECK(why(h.core.state(), *h.core.state().job(first), h.now).sentence ==
        fmt::format("all slots that it could use are taken; it waits at pilot {} (host0) and starts there with the next free one, "
                    "or where there is room earlier",
                    pilot.value));
  CHECK(passes(first));
  const JobId wide = h.submit(h.command("gpu", 64));
  CHECK(why(h.core.state(), *h.core.state().job(wide), h.now).sentence.find("flotilla pilot start RESOURCE --slots 64") !=
        std::string::npos);
  CHECK_FALSE(passes(wide));
  h.core.on_node_unlinked({pilot, 0}, "cut", h.now, h.out);
  CHECK(why(h.core.state(), *h.core.state().job(first), h.now).sentence.find("link") != std::string::npos);
  CHECK_FALSE(passes(first));
}

TEST_CASE("a job with a time limit starts only where that fits") {
  Harness h;
  auto timed = [&](std::int64_t limit_ms) {
    auto spec = h.command();
    spec.set_time_limit_ms(limit_ms);
    return h.submit(spec);
  };
  auto sentence = [&](JobId id) { return why(h.core.state(), *h.core.state().job(id), h.now); };
  v1::PilotSpec spec;
  spec.set_resource("local");
  spec.set_slots_per_node(2);
  spec.set_time_ms(600'000);
  const PilotId brief = *h.core.start_pilot(spec, h.now, h.out);
  auto hello = h.hello(brief);
  hello.set_ends_in_ms(590'000);
  CHECK(h.core.on_node_joined(hello, false, h.now, h.out).error().empty());
  h.now.boot_ms += 300'000;
  const JobId fits = timed(290'000), too_long = timed(290'001), never = timed(600'001), unlimited = h.submit(h.command());
  h.place();
  CHECK(h.has_room(fits));
  CHECK(h.has_room(unlimited));
  for (const JobId id : {too_long, never}) {
    CHECK(h.state(id) == v1::JOB_QUEUED);  // nor does it keep the room of others
    CHECK(sentence(id).sentence.find("lasts as long as its time limit") != std::string::npos);
    CHECK_FALSE(sentence(id).transient);
  }
  CHECK(sentence(too_long).details.at(0).find("ends in 290 s") != std::string::npos);
  CHECK(sentence(never).details.at(0).find("lasts 600 s") != std::string::npos);
  // It waits at no pilot whose time is running out: when it would begin is not known.
  const JobId waits = timed(1000);
  h.place();
  CHECK(h.state(waits) == v1::JOB_QUEUED);
  const PilotId lasting = h.running(4);
  h.place();
  for (const JobId id : {too_long, never, waits}) {
    CHECK(h.has_room(id));
    CHECK(h.core.state().job(id)->node.pilot == lasting);
  }
}

// ---- prefill ---------------------------------------------------------------------------------------------

namespace {
std::vector<JobId> submit_many(Harness& h, int count, const std::string& label = "", unsigned slots = 1) {
  std::vector<JobId> jobs;
  for (int i = 0; i < count; ++i) jobs.push_back(h.submit(h.command(label, slots)));
  return jobs;
}
}  // namespace

TEST_CASE("prefill: what finds no room waits at a busy node, in order, up to a bound") {
  Harness h;
  const PilotId pilot = h.running(2);
  const auto jobs = submit_many(h, 20);
  h.place();
  const unsigned bound = 2 + prefill_depth * 2;
  for (unsigned i = 0; i < 20; ++i) {
    CHECK(h.has_room(jobs[i]) == (i < 2));
    CHECK(h.prefilled(jobs[i]) == (i >= 2 && i < bound));
  }
  CHECK(h.take(v1::Frame::kStartAttempt).size() == bound);
  const Node& node = *h.core.state().node({pilot, 0});
  CHECK(node.slots_used == 2);
  CHECK(describe(h.core.state(), h.core.state().pilots.at(pilot)).jobs_running() == 2);
  CHECK(describe(h.core.state(), *h.core.state().job(jobs[2])).prefilled());
  // An end makes room for the first that waits, without a word from us.
  h.report_running(jobs[1]);
  h.report_end(jobs[1]);
  CHECK(h.has_room(jobs[2]));
  CHECK(node.slots_used == 2);
  h.place();
  CHECK_FALSE(h.prefilled(jobs[bound]));
  CHECK(h.take(v1::Frame::kStartAttempt).empty());
  // When half of them are gone, as many are sent at once.
  for (const int i : {2, 3, 4}) {
    h.report_running(jobs[i]);
    h.report_end(jobs[i]);
  }
  h.place();
  for (unsigned i = bound; i < 20; ++i) CHECK(h.prefilled(jobs[i]) == (i < bound + 4));
  CHECK(h.take(v1::Frame::kStartAttempt).size() == 4);
  CHECK(h.take(v1::Frame::kRetractAttempt).empty());
  // The pilot may know earlier than we that there is room.
  h.report_running(jobs[6]);
  CHECK(h.state(jobs[6]) == v1::JOB_RUNNING);
  CHECK(node.slots_used == 3);
  h.report_end(jobs[0]);
  CHECK(node.slots_used == 2);
  h.check_replay();
}

TEST_CASE("prefill: never while another node has room, and even among those that have not") {
  Harness h;
  const PilotId first = h.running(1), second = h.running(1);
  const auto jobs = submit_many(h, 6);
  h.place();
  const State& state = h.core.state();
  CHECK(h.has_room(jobs[0]));
  CHECK(h.has_room(jobs[1]));
  CHECK(state.node({first, 0})->prefilled == std::deque<JobId>{jobs[2], jobs[4]});
  CHECK(state.node({second, 0})->prefilled == std::deque<JobId>{jobs[3], jobs[5]});
}

TEST_CASE("prefill: labels hold") {
  Harness h;
  const PilotId blue = h.running(1, "blue");
  (void)h.running(1, "green");
  const auto jobs = submit_many(h, 4, "blue");
  h.place();
  for (const JobId job : jobs) CHECK(h.core.state().job(job)->node.pilot == blue);
}

TEST_CASE("prefill: asked back, the oldest first, when another node has room; the room is kept for it") {
  Harness h;
  const PilotId busy = h.running(1);
  const auto jobs = submit_many(h, 4);
  h.place();
  h.report_running(jobs[0]);
  h.take(v1::Frame::kStartAttempt);
  const PilotId fresh = h.running(2);
  h.place();
  auto retracts = h.take(v1::Frame::kRetractAttempt);
  REQUIRE(retracts.size() == 2);
  CHECK(retracts[0].node == NodeId{busy, 0});
  CHECK(retracts[0].frame.retract_attempt().id().job() == jobs[1].value);
  CHECK(retracts[1].frame.retract_attempt().id().job() == jobs[2].value);
  // Nobody takes their room, and they are not asked twice.
  const JobId late = h.submit(h.command());
  h.place();
  CHECK(h.state(late) == v1::JOB_QUEUED);
  CHECK(h.take(v1::Frame::kRetractAttempt).empty());
  h.report_retracted(jobs[1]);
  CHECK(h.state(jobs[1]) == v1::JOB_QUEUED);
  h.place();
  CHECK(h.has_room(jobs[1]));
  CHECK(h.core.state().job(jobs[1])->node.pilot == fresh);
  CHECK(h.core.state().job(jobs[1])->attempt == 2);
  // One that has begun stays, and its room goes to the next.
  h.report_running(jobs[2]);
  h.report_retracted(jobs[2], true);
  CHECK(h.state(jobs[2]) == v1::JOB_RUNNING);
  CHECK(h.core.state().job(jobs[2])->node.pilot == busy);
  h.place();
  retracts = h.take(v1::Frame::kRetractAttempt);
  REQUIRE(retracts.size() == 1);
  CHECK(retracts[0].frame.retract_attempt().id().job() == jobs[3].value);
  h.check_replay();
}

TEST_CASE("prefill: a long job does not hold up what waits behind it when another is done") {
  Harness h;
  const PilotId one = h.running(1), other = h.running(1);
  const auto jobs = submit_many(h, 4);
  h.place();
  for (int i : {0, 1}) h.report_running(jobs[i]);
  CHECK(h.core.state().job(jobs[2])->node.pilot == one);
  CHECK(h.core.state().job(jobs[3])->node.pilot == other);
  h.report_end(jobs[1]);  // the other goes on with its own
  h.place();
  CHECK(h.has_room(jobs[3]));
  CHECK(h.take(v1::Frame::kRetractAttempt).empty());
  h.report_end(jobs[3]);
  h.place();
  REQUIRE(h.take(v1::Frame::kRetractAttempt).size() == 1);
  h.report_retracted(jobs[2]);
  h.place();
  CHECK(h.has_room(jobs[2]));
  CHECK(h.core.state().job(jobs[2])->node.pilot == other);
}

TEST_CASE("prefill: nothing goes to the node that is kept for a wide job, and nothing wide waits at a node") {
  Harness h;
  const PilotId wide_one = h.running(4), small_one = h.running(1);
  submit_many(h, 5);
  h.place();
  const JobId wide = h.submit(h.command("", 4));
  const auto later = submit_many(h, 10);
  h.place();
  CHECK(h.state(wide) == v1::JOB_QUEUED);
  for (const JobId job : later) {
    if (h.state(job) == v1::JOB_DISPATCHED) CHECK(h.core.state().job(job)->node.pilot == small_one);
  }
  CHECK(h.core.state().node({wide_one, 0})->prefilled.empty());
  CHECK(h.core.state().node({small_one, 0})->prefilled.size() == prefill_depth);
}

TEST_CASE("prefill: a wide job gets its node after those that wait there") {
  Harness h;
  const PilotId pilot = h.running(4);
  const auto early = submit_many(h, 8);
  h.place();
  const JobId wide = h.submit(h.command("", 4));
  const auto later = submit_many(h, 20);
  h.place();
  for (const JobId job : early) {
    CHECK(h.state(wide) == v1::JOB_QUEUED);
    CHECK(h.state(later[0]) == v1::JOB_QUEUED);
    CHECK(h.has_room(job));
    h.report_end(job);
    h.place();
  }
  CHECK(h.has_room(wide));
  CHECK(h.core.state().node({pilot, 0})->slots_used == 4);
}

TEST_CASE("prefill: workers and terminals wait in the queue") {
  Harness h;
  h.running(1);
  h.submit(h.command());
  v1::JobSpec worker;
  worker.mutable_worker()->set_executable("code");
  auto terminal = h.command();
  terminal.mutable_command()->set_terminal(true);
  const JobId a = h.submit(worker), b = h.submit(terminal);
  h.place();
  CHECK(h.state(a) == v1::JOB_QUEUED);
  CHECK(h.state(b) == v1::JOB_QUEUED);
}
