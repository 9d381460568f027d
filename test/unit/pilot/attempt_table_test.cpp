#include "pilot/core/attempt_table.hpp"

#include <catch2/catch.hpp>

using namespace flotilla;
using namespace flotilla::pilot;

namespace {

v1::JobSpec command(std::uint32_t slots = 1) {
  v1::JobSpec spec;
  spec.mutable_command()->add_argv("/usr/bin/simulate");
  spec.set_processes(slots);
  return spec;
}
Attempt attempt(std::uint64_t job, std::uint32_t number = 1) { return {JobId{job}, number}; }

void start(AttemptTable& table, std::uint64_t job, std::uint32_t slots = 1) {
  std::string why;
  REQUIRE(table.start(attempt(job), command(slots), {}, why) == AttemptTable::Start::accepted);
}

}  // namespace

TEST_CASE("every phase and event: what the table says, and nothing else") {
  int allowed = 0;
  for (Phase from : {Phase::waiting, Phase::preparing, Phase::running, Phase::leaving, Phase::ended})
    for (AttemptEvent event :
         {AttemptEvent::admitted, AttemptEvent::started, AttemptEvent::exited, AttemptEvent::gone, AttemptEvent::not_started})
      if (next_phase(from, event)) {
        ++allowed;
        CHECK(from != Phase::ended);
      }
  CHECK(allowed == 6);
}

TEST_CASE("slots are given in order of arrival; who needs none waits for nobody") {
  AttemptTable table(4);
  start(table, 1, 3);
  start(table, 2, 2);
  start(table, 3, 1);
  std::string why;
  auto free = command();
  free.set_no_slots(true);
  REQUIRE(table.start(attempt(4), free, {}, why) == AttemptTable::Start::accepted);
  CHECK(table.admit() == std::vector<Attempt>{attempt(1), attempt(4)});
  CHECK(table.slots_used() == 3);
  CHECK(table.admit().empty());
  table.on_started(attempt(1));
  table.on_exited(attempt(1));
  CHECK(table.slots_used() == 3);  // until nothing of it is left
  table.on_ended(attempt(1), {});
  CHECK(table.slots_used() == 0);
  CHECK(table.admit() == std::vector<Attempt>{attempt(2), attempt(3)});
  CHECK(table.busy());
}

TEST_CASE("the same start again does nothing; what can never run is refused") {
  AttemptTable table(2);
  start(table, 1);
  std::string why;
  CHECK(table.start(attempt(1), command(), {}, why) == AttemptTable::Start::already_held);
  CHECK(table.start(attempt(2), command(3), {}, why) == AttemptTable::Start::refused);
  CHECK(why == "job 2 needs 3 slots, this node has 2");
  CHECK(table.start(attempt(3), command(), attempt(1), why) == AttemptTable::Start::refused);  // 1 does not run yet
  table.admit();
  table.on_started(attempt(1));
  CHECK(table.start(attempt(3), command(), attempt(1), why) == AttemptTable::Start::accepted);
  table.drain();
  CHECK(table.start(attempt(4), command(), {}, why) == AttemptTable::Start::given_back);
  CHECK(table.start(attempt(4), command(), attempt(1), why) == AttemptTable::Start::refused);
  CHECK(table.all().size() == 2);
}

TEST_CASE("given back: only what waits; who stood behind it moves up") {
  AttemptTable table(2);
  start(table, 1, 1);
  start(table, 2, 2);
  start(table, 3, 1);
  CHECK(table.admit() == std::vector<Attempt>{attempt(1)});
  CHECK(table.waiting() == std::vector<Attempt>{attempt(2), attempt(3)});
  CHECK_FALSE(table.retract(attempt(1)));
  CHECK_FALSE(table.retract(attempt(9)));
  CHECK(table.retract(attempt(2)));
  CHECK_FALSE(table.find(attempt(2)));
  CHECK(table.live() == 2);
  CHECK(table.admit() == std::vector<Attempt>{attempt(3)});
  std::string why;
  CHECK(table.start(attempt(2, 2), command(2), {}, why) == AttemptTable::Start::accepted);
}

TEST_CASE("ending: each phase answers as it must, the first order stands") {
  AttemptTable table(1);
  start(table, 1);
  start(table, 2);
  table.admit();
  using Step = AttemptTable::EndStep;
  CHECK(table.end(attempt(9), {}) == Step::unknown);
  CHECK(table.end(attempt(2), {v1::CANCELED_BY_USER, "", 0}) == Step::was_waiting);
  table.on_ended(attempt(2), describe_not_started(describe_job(command(), "n1"), {v1::CANCELED_BY_USER, "", 0}));
  CHECK(table.end(attempt(2), {}) == Step::already_ended);
  CHECK(state_of(*table.find(attempt(2))) == v1::JOB_CANCELED);
  CHECK(table.end(attempt(1), {v1::TIME_LIMIT, "", 0}) == Step::order_noted);
  CHECK(table.end(attempt(1), {v1::CANCELED_BY_USER, "", 0}) == Step::order_stands);
  CHECK(table.find(attempt(1))->order->kind == v1::TIME_LIMIT);
  table.forget(attempt(1));
  CHECK(table.find(attempt(1)));  // only what has ended
  table.on_ended(attempt(1), {});
  table.forget(attempt(1));
  table.forget(attempt(2));
  CHECK(table.all().empty());
  CHECK_FALSE(table.busy());
  CHECK(table.slots_used() == 0);
}

TEST_CASE("the reason of an end is a complete sentence") {
  auto spec = command();
  spec.set_time_limit_ms(90'000);
  const auto job = describe_job(spec, "node1");
  auto ended = describe_end(job, {0, 0, false}, {});
  CHECK(ended.state == v1::JOB_FINISHED);
  CHECK(ended.reason.message() == "command simulate on node1 exited with code 0");
  ended = describe_end(job, {3, 0, false}, {});
  CHECK(ended.state == v1::JOB_FAILED);
  CHECK(ended.reason.kind() == v1::EXITED);
  ended = describe_end(job, {0, 11, true}, {});
  CHECK(ended.reason.message() == "command simulate on node1 was killed by signal 11 (SIGSEGV), core dumped");
  CHECK(ended.reason.core_dumped());
  ended = describe_end(job, {0, 15, false}, EndOrder{v1::TIME_LIMIT, "", 0});
  CHECK(ended.reason.message() == "command simulate on node1 was ended at its time limit of 90 s");
  CHECK(ended.reason.signal() == 15);
  CHECK(ended.state == v1::JOB_FAILED);
  ended = describe_end(job, {0, 0, false}, EndOrder{v1::CANCELED_BY_USER, "", 0});
  CHECK(ended.state == v1::JOB_CANCELED);

  v1::JobSpec worker_spec;
  worker_spec.mutable_worker()->set_executable("/opt/amuse/gravity_worker");
  worker_spec.set_start_timeout_ms(2500);
  auto worker = describe_job(worker_spec, "node2");
  ended = describe_end(worker, {3, 0, false}, {});
  CHECK(ended.reason.kind() == v1::START_FAILED);
  CHECK(ended.reason.code() == 3);
  CHECK(ended.reason.message() == "worker gravity_worker on node2 exited with code 3 before it connected back");
  ended = describe_end(worker, {0, 9, false}, EndOrder{v1::START_TIMEOUT, "", 0});
  CHECK(ended.reason.message() == "worker gravity_worker on node2 did not connect back within 2500 ms");
  worker.connected = true;
  ended = describe_end(worker, {0, 9, false}, EndOrder{v1::CLIENT_GONE, "", 0});
  CHECK(ended.state == v1::JOB_FINISHED);
  CHECK(describe_end(worker, {1, 0, false}, {}).reason.kind() == v1::EXITED);
}

TEST_CASE("slots of a job") {
  auto spec = command(0);
  CHECK(slots_of(spec) == 1);
  spec.set_processes(4);
  spec.set_threads(3);
  CHECK(slots_of(spec) == 12);
  spec.set_beside_job(5);
  CHECK(slots_of(spec) == 0);
}
