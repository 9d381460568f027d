// A core with pilots that answer as the test says: no clock, no process.
#pragma once

#include <catch2/catch.hpp>

#include "daemon/core/core.hpp"

namespace flotilla::daemon::test {

struct Harness {
  Harness() : core({}, [n = 0]() mutable { return "secret-" + std::to_string(++n); }) {
    v1::ResourceSpec local;
    local.set_name("local");
    local.set_driver("local");
    REQUIRE(core.add_resource(local, false, now, out));
  }

  void add_remote(const std::string& name) {
    v1::ResourceSpec spec;
    spec.set_name(name);
    spec.set_location("me@" + name);
    REQUIRE(core.add_resource(spec, false, now, out));
  }
  void connect_hub(const std::string& name) {
    v1::Hello hello;
    hello.set_host(name + "-host");
    core.on_hub_connected(name, hello, now, out);
  }

  PilotId start(const std::string& resource = "local", const std::string& label = "local", unsigned slots = 2, unsigned nodes = 1) {
    v1::PilotSpec spec;
    spec.set_resource(resource);
    spec.set_label(label);
    spec.set_slots_per_node(slots);
    spec.set_node_count(nodes);
    auto id = core.start_pilot(spec, now, out);
    REQUIRE(id);
    return *id;
  }
  v1::PilotHello hello(PilotId pilot, unsigned slots = 2, unsigned node = 0, const std::string& incarnation = "one") {
    v1::PilotHello hello;
    hello.set_pilot(pilot.value);
    hello.set_node(node);
    hello.set_slots(slots);
    hello.set_host("host" + std::to_string(node));
    hello.set_incarnation(incarnation);
    hello.set_pid(100 + node);
    const auto it = core.state().pilots.find(pilot);
    if (it != core.state().pilots.end()) hello.set_secret(it->second.secret);
    return hello;
  }
  v1::Welcome join(PilotId pilot, unsigned slots = 2, unsigned node = 0, const std::string& incarnation = "one") {
    return core.on_node_joined(hello(pilot, slots, node, incarnation), false, now, out);
  }
  PilotId running(unsigned slots = 2, const std::string& label = "local") {
    const PilotId id = start("local", label, slots);
    CHECK(join(id, slots).error().empty());
    return id;
  }

  v1::JobSpec command(const std::string& label = "", unsigned slots = 1) {
    v1::JobSpec spec;
    spec.set_label(label);
    spec.set_processes(slots);
    spec.mutable_command()->add_argv("true");
    return spec;
  }
  JobId submit(v1::JobSpec spec) {
    auto ids = core.submit({std::move(spec)}, now, out);
    REQUIRE(ids);
    return ids->front();
  }
  void place() { core.place(now, out); }

  v1::AttemptId attempt(JobId job) {
    v1::AttemptId id;
    id.set_job(job.value);
    id.set_attempt(core.state().job(job)->attempt);
    return id;
  }
  void report_running(JobId job) {
    v1::AttemptRunning running;
    *running.mutable_id() = attempt(job);
    running.set_pid(4711);
    core.on_attempt_running(core.state().job(job)->node, running, now, out);
  }
  void report_end(JobId job, v1::ExitKind kind = v1::EXITED, int code = 0) {
    v1::AttemptEnded end;
    *end.mutable_id() = attempt(job);
    end.mutable_exit()->set_kind(kind);
    end.mutable_exit()->set_code(code);
    core.on_attempt_ended(core.state().job(job)->node, end, now, out);
  }
  void report_retracted(JobId job, bool begun = false) {
    v1::AttemptRetracted retracted;
    *retracted.mutable_id() = attempt(job);
    retracted.set_begun(begun);
    core.on_attempt_retracted(core.state().job(job)->node, retracted, now, out);
  }
  v1::JobState state(JobId job) { return core.state().job(job)->state; }
  // Dispatched to a node that has room for it; or to one that has not.
  bool has_room(JobId job) { return state(job) == v1::JOB_DISPATCHED && !core.state().job(job)->prefilled; }
  bool prefilled(JobId job) { return state(job) == v1::JOB_DISPATCHED && core.state().job(job)->prefilled; }
  bool waits(JobId job) { return state(job) == v1::JOB_QUEUED || prefilled(job); }
  v1::PilotState state(PilotId pilot) { return core.state().pilots.at(pilot).state; }

  // What went out since the last call, by kind.
  std::vector<FrameTo> take(v1::Frame::BodyCase kind) {
    std::vector<FrameTo> some;
    for (auto it = out.frames.begin(); it != out.frames.end();)
      if (it->frame.body_case() == kind) {
        some.push_back(*it);
        it = out.frames.erase(it);
      } else {
        ++it;
      }
    return some;
  }
  bool nothing_else() { return out.frames.empty() && out.launches.empty() && out.stop_launches.empty(); }

  // The journalled part of the state is the replay of the events.
  void check_replay() {
    State again;
    for (const auto& event : all_events()) REQUIRE(apply(again, event));
    const State& state = core.state();
    REQUIRE(again.jobs.size() == state.jobs.size());
    REQUIRE(again.queue == state.queue);
    REQUIRE(again.prefilled == state.prefilled);
    REQUIRE(again.pilots.size() == state.pilots.size());
    for (const auto& [id, job] : state.jobs) {
      const Job& other = again.jobs.at(id);
      CHECK(other.state == job.state);
      CHECK(other.attempt == job.attempt);
      CHECK(other.node == job.node);
      CHECK(other.canceling == job.canceling);
      CHECK(other.prefilled == job.prefilled);
    }
    for (const auto& [id, pilot] : state.pilots) {
      const Pilot& other = again.pilots.at(id);
      CHECK(other.state == pilot.state);
      CHECK(other.jobs_done == pilot.jobs_done);
      for (const auto& [index, node] : pilot.nodes) {
        if (!other.nodes.contains(index)) continue;  // a report of a start that has not registered
        if (!ended(pilot.state)) CHECK(other.nodes.at(index).gone == node.gone);
        CHECK(other.nodes.at(index).slots_used == node.slots_used);
        CHECK(other.nodes.at(index).attempts == node.attempts);
        CHECK(other.nodes.at(index).prefilled == node.prefilled);
      }
    }
  }
  const std::vector<v1::Event>& all_events() {
    events.insert(events.end(), out.events.begin(), out.events.end());
    out.events.clear();
    return events;
  }

  Now now{1'000'000, 5'000};
  Outbox out;
  Core core;
  std::vector<v1::Event> events;
};

}  // namespace flotilla::daemon::test
