#include "daemon/core/hub_frames.hpp"
#include "test/unit/daemon/harness.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
using flotilla::daemon::test::Harness;

// A resource with two nodes, and its hub.
static void add_far_nodes(Harness& h) {
  v1::ResourceSpec spec;
  spec.set_name("far");
  spec.set_location("me@far");
  spec.add_hosts("node1");
  spec.add_hosts("node2");
  REQUIRE(h.core.add_resource(spec, false, h.now, h.out));
  h.connect_hub("far");
}

TEST_CASE("a command from submission to its end") {
  Harness h;
  const PilotId pilot = h.running();
  CHECK(h.state(pilot) == v1::PILOT_RUNNING);
  const JobId job = h.submit(h.command());
  CHECK(h.state(job) == v1::JOB_QUEUED);
  h.place();
  CHECK(h.state(job) == v1::JOB_DISPATCHED);
  auto starts = h.take(v1::Frame::kStartAttempt);
  REQUIRE(starts.size() == 1);
  CHECK(starts[0].node == NodeId{pilot, 0});
  CHECK(starts[0].frame.start_attempt().id().attempt() == 1);
  h.report_running(job);
  CHECK(h.state(job) == v1::JOB_RUNNING);
  h.report_end(job);
  CHECK(h.state(job) == v1::JOB_FINISHED);
  CHECK(h.out.ended_jobs == std::vector{job});
  CHECK(h.core.state().node({pilot, 0})->slots_used == 0);
  h.out.launches.clear();
  CHECK(h.nothing_else());
  h.check_replay();
}

TEST_CASE("an end says how") {
  Harness h;
  h.running(8);
  struct Case {
    v1::ExitKind kind;
    int code;
    v1::JobState state;
  };
  for (const Case& c : {Case{v1::EXITED, 3, v1::JOB_FAILED}, Case{v1::SIGNALED, 0, v1::JOB_FAILED}, Case{v1::TIME_LIMIT, 0, v1::JOB_FAILED},
                        Case{v1::CANCELED_BY_USER, 0, v1::JOB_CANCELED}, Case{v1::CLIENT_GONE, 0, v1::JOB_FINISHED},
                        Case{v1::START_FAILED, 127, v1::JOB_FAILED}}) {
    const JobId job = h.submit(h.command());
    h.place();
    h.report_end(job, c.kind, c.code);
    CHECK(h.state(job) == c.state);
  }
  h.check_replay();
}

TEST_CASE("an end that comes twice counts once and is answered") {
  Harness h;
  const PilotId pilot = h.running();
  const JobId job = h.submit(h.command());
  h.place();
  h.report_end(job);
  const auto events = h.all_events().size();
  h.out.ended_jobs.clear();
  h.report_end(job);
  CHECK(h.all_events().size() == events);
  CHECK(h.out.ended_jobs == std::vector{job});  // the pilot is told again to forget it
  CHECK(h.core.state().pilots.at(pilot).jobs_done == 1);
}

TEST_CASE("a report of an attempt that is not current is to be forgotten, and changes nothing") {
  Harness h;
  const PilotId pilot = h.running();
  v1::AttemptEnded end;
  end.mutable_id()->set_job(99);
  end.mutable_id()->set_attempt(1);
  h.core.on_attempt_ended({pilot, 0}, end, h.now, h.out);
  auto forget = h.take(v1::Frame::kForgetAttempt);
  REQUIRE(forget.size() == 1);
  CHECK(forget[0].frame.forget_attempt().id().job() == 99);
}

TEST_CASE("canceling a queued job ends it; a running one is told to the pilot, once and again after a reconnect") {
  Harness h;
  const PilotId pilot = h.running(1);
  auto at_terminal = h.command();
  at_terminal.mutable_command()->set_terminal(true);  // waits in the queue, at no pilot
  const JobId first = h.submit(h.command()), second = h.submit(at_terminal);
  h.place();
  h.report_running(first);
  CHECK(h.state(second) == v1::JOB_QUEUED);
  REQUIRE(h.core.cancel(second, v1::CANCELED_BY_USER, "by the test", h.now, h.out));
  CHECK(h.state(second) == v1::JOB_CANCELED);
  REQUIRE(h.core.cancel(first, v1::CANCELED_BY_USER, "by the test", h.now, h.out));
  CHECK(h.state(first) == v1::JOB_RUNNING);
  CHECK(h.take(v1::Frame::kCancelAttempt).size() == 1);

  h.core.on_node_unlinked({pilot, 0}, "cut", h.now, h.out);
  CHECK(h.state(pilot) == v1::PILOT_UNREACHABLE);
  auto hello = h.hello(pilot, 1);
  auto* report = hello.add_inventory();
  *report->mutable_id() = h.attempt(first);
  report->set_state(v1::JOB_RUNNING);
  CHECK(h.core.on_node_joined(hello, false, h.now, h.out).error().empty());
  CHECK(h.state(pilot) == v1::PILOT_RUNNING);
  CHECK(h.take(v1::Frame::kCancelAttempt).size() == 1);
  h.check_replay();
}

TEST_CASE("after a reconnect the difference is acted on") {
  Harness h;
  const PilotId pilot = h.running(8);
  const JobId goes_on = h.submit(h.command()), ended_meanwhile = h.submit(h.command()), order_lost = h.submit(h.command()),
              vanished = h.submit(h.command());
  h.place();
  for (const JobId job : {goes_on, ended_meanwhile, vanished}) h.report_running(job);
  (void)h.take(v1::Frame::kStartAttempt);
  h.core.on_node_unlinked({pilot, 0}, "cut", h.now, h.out);
  auto hello = h.hello(pilot, 8);
  auto add = [&](const v1::AttemptId& id, v1::JobState state) {
    auto* report = hello.add_inventory();
    *report->mutable_id() = id;
    report->set_state(state);
    return report;
  };
  add(h.attempt(goes_on), v1::JOB_RUNNING);
  add(h.attempt(ended_meanwhile), v1::JOB_FAILED)->mutable_exit()->set_kind(v1::SIGNALED);
  v1::AttemptId stranger;
  stranger.set_job(4242);
  stranger.set_attempt(7);
  add(stranger, v1::JOB_RUNNING);
  CHECK(h.core.on_node_joined(hello, false, h.now, h.out).error().empty());
  CHECK(h.state(goes_on) == v1::JOB_RUNNING);
  CHECK(h.state(ended_meanwhile) == v1::JOB_FAILED);
  CHECK(h.state(order_lost) == v1::JOB_DISPATCHED);
  CHECK(h.state(vanished) == v1::JOB_FAILED);
  CHECK(h.core.state().job(vanished)->exit.kind() == v1::PILOT_LOST);
  auto starts = h.take(v1::Frame::kStartAttempt);
  REQUIRE(starts.size() == 1);
  CHECK(starts[0].frame.start_attempt().id().job() == order_lost.value);
  auto cancels = h.take(v1::Frame::kCancelAttempt);
  REQUIRE(cancels.size() == 1);
  CHECK(cancels[0].frame.cancel_attempt().id().job() == 4242);
  h.check_replay();
}

TEST_CASE("a pilot that died loses its jobs with the cause; one that ended as told ends them") {
  Harness h;
  const PilotId dies = h.running(), ends = h.start();
  CHECK(h.join(ends).error().empty());
  const JobId a = h.submit(h.command()), b = h.submit(h.command()), c = h.submit(h.command());
  h.place();
  h.core.on_node_unlinked({dies, 0}, "the link broke", h.now, h.out);
  h.core.on_node_left({dies, 0}, "its process ended", h.now, h.out);
  CHECK(h.state(dies) == v1::PILOT_FAILED);
  CHECK(h.state(a) == v1::JOB_FAILED);
  CHECK(h.core.state().job(a)->exit.kind() == v1::PILOT_LOST);
  CHECK(h.core.state().job(a)->exit.message().find("its process ended") != std::string::npos);
  CHECK(h.state(b) == v1::JOB_FAILED);

  CHECK(h.core.state().job(c)->node == NodeId{ends, 0});
  h.core.on_pilot_ending({ends, 0}, "its time of 60 s is over", false, h.now, h.out);
  h.core.on_node_left({ends, 0}, "left", h.now, h.out);
  CHECK(h.state(ends) == v1::PILOT_FINISHED);
  CHECK(h.core.state().job(c)->exit.kind() == v1::PILOT_ENDED);
  h.check_replay();
}

TEST_CASE("a join secret must fit, and a pilot that ended may not come back") {
  Harness h;
  const PilotId pilot = h.start();
  auto hello = h.hello(pilot);
  hello.set_secret("another");
  CHECK_FALSE(h.core.on_node_joined(hello, false, h.now, h.out).error().empty());
  CHECK(h.state(pilot) == v1::PILOT_STARTING);
  CHECK(h.join(pilot).error().empty());
  h.core.on_node_left({pilot, 0}, "died", h.now, h.out);
  CHECK_FALSE(h.join(pilot).error().empty());
  hello.set_pilot(77);
  CHECK_FALSE(h.core.on_node_joined(hello, false, h.now, h.out).error().empty());
}

TEST_CASE("a cut hub: nothing is dispatched, nothing is lost; after the lease the pilots are given up") {
  Harness h;
  h.add_remote("far");
  const PilotId pilot = h.start("far", "far");
  CHECK(h.state(pilot) == v1::PILOT_SUBMITTED);
  CHECK(h.out.wanted_hubs.contains("far"));
  h.connect_hub("far");
  CHECK(h.state(pilot) == v1::PILOT_STARTING);
  CHECK(h.core.on_node_joined(h.hello(pilot), true, h.now, h.out).error().empty());
  const JobId job = h.submit(h.command("far")), later = h.submit(h.command("far", 2));
  h.place();
  h.report_running(job);
  h.core.on_hub_lost("far", "no route", false, h.now, h.out);
  CHECK(h.state(pilot) == v1::PILOT_UNREACHABLE);
  CHECK(describe(h.core.state(), *h.core.state().job(job)).pilot_unreachable());
  h.place();
  CHECK(h.state(later) == v1::JOB_QUEUED);
  CHECK(h.core.needs_ticks());
  h.now.boot_ms += 23ll * 3600 * 1000;
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(job) == v1::JOB_RUNNING);
  h.now.boot_ms += 3600 * 1000 + 60'000;  // the pilot may have noticed the cut later than we, and ends its jobs
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(job) == v1::JOB_RUNNING);
  h.now.boot_ms += 30'000;
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(pilot) == v1::PILOT_FAILED);
  CHECK(h.core.state().job(job)->exit.kind() == v1::PILOT_LOST);
  h.check_replay();
}

TEST_CASE("a hub that is started again waits for its pilots, but not for ever") {
  Harness h;
  h.add_remote("far");
  const PilotId back = h.start("far", "far"), gone = h.start("far", "far");
  h.connect_hub("far");
  for (const PilotId pilot : {back, gone}) CHECK(h.core.on_node_joined(h.hello(pilot), true, h.now, h.out).error().empty());
  h.core.on_hub_lost("far", "killed", false, h.now, h.out);
  h.now.boot_ms += 1000;
  h.connect_hub("far");
  CHECK(h.core.on_node_joined(h.hello(back), true, h.now, h.out).error().empty());
  h.now.boot_ms += 14'000;
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(gone) == v1::PILOT_UNREACHABLE);
  h.now.boot_ms += 2'000;
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(gone) == v1::PILOT_FAILED);
  CHECK(h.state(back) == v1::PILOT_RUNNING);
}

TEST_CASE("the more pilots come back through a hub, the longer they have") {
  Harness h;
  h.add_remote("far");
  h.add_remote("near");
  std::vector<PilotId> many;
  for (int i = 0; i < 2000; ++i) many.push_back(h.start("far", "far"));
  const PilotId alone = h.start("near", "near");
  h.connect_hub("far");
  h.connect_hub("near");
  for (const PilotId pilot : many) h.core.on_node_joined(h.hello(pilot), true, h.now, h.out);
  h.core.on_node_joined(h.hello(alone), true, h.now, h.out);
  for (const char* hub : {"far", "near"}) {
    h.core.on_hub_lost(hub, "cut", false, h.now, h.out);
    h.connect_hub(hub);
  }
  h.now.boot_ms += 30'000;  // the hub itself waits for 23 s
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(many.back()) == v1::PILOT_UNREACHABLE);
  CHECK(h.state(alone) == v1::PILOT_FAILED);
  h.now.boot_ms += 26'000;
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(many.back()) == v1::PILOT_FAILED);
}

TEST_CASE("a cut hub keeps no room of other pilots") {
  Harness h;
  h.add_remote("far");
  h.connect_hub("far");
  const PilotId far = h.start("far", "far", 1);
  h.core.on_node_joined(h.hello(far, 1), true, h.now, h.out);
  const JobId runs = h.submit(h.command()), waits = h.submit(h.command());
  h.place();
  CHECK(h.has_room(runs));
  CHECK(h.prefilled(waits));
  h.running(1);
  h.place();
  CHECK(h.take(v1::Frame::kRetractAttempt).size() == 1);  // the room is kept for it
  h.core.on_hub_lost("far", "no route", false, h.now, h.out);
  const JobId next = h.submit(h.command());
  h.place();
  CHECK(h.has_room(next));
  h.check_replay();
}

TEST_CASE("a job that is tied to a pilot ends with it") {
  Harness h;
  const PilotId pilot = h.running(1);
  auto tied = h.command();
  tied.set_pilot(pilot.value);
  tied.mutable_command()->set_terminal(true);  // waits in the queue, at no pilot
  const JobId runs = h.submit(h.command()), first = h.submit(tied), second = h.submit(tied), free = h.submit(h.command("elsewhere"));
  h.place();
  h.report_running(runs);
  REQUIRE(h.core.stop_pilot(pilot, false, "stopped by the user", h.now, h.out));
  h.place();
  CHECK(h.state(first) == v1::JOB_QUEUED);
  h.core.on_pilot_ending({pilot, 0}, "stopped by the user", false, h.now, h.out);
  h.core.on_node_left({pilot, 0}, "goodbye", h.now, h.out);
  CHECK(h.state(pilot) == v1::PILOT_FINISHED);
  h.place();
  for (const JobId id : {first, second}) {
    CHECK(h.state(id) == v1::JOB_FAILED);
    CHECK(h.core.state().job(id)->exit.kind() == v1::START_FAILED);
    CHECK(h.core.state().job(id)->exit.message() == "it was to run on pilot 1 alone: pilot 1 has ended: stopped by the user");
  }
  CHECK(h.state(free) == v1::JOB_QUEUED);
  h.check_replay();
}

TEST_CASE("a job that is tied to a pilot ends also when that is forgotten") {
  Harness h;
  h.add_remote("far");
  const PilotId pilot = h.start("far", "far");
  auto tied = h.command();
  tied.set_pilot(pilot.value);
  const JobId job = h.submit(tied);
  REQUIRE(h.core.stop_pilot(pilot, false, "no longer wanted", h.now, h.out));
  h.core.forget_pilot(pilot, h.now, h.out);
  h.place();
  CHECK(h.state(job) == v1::JOB_FAILED);
  CHECK(h.core.state().job(job)->exit.message() == "it was to run on pilot 1 alone: it is not there any more");
}

TEST_CASE("a job that is tied to a pilot which turns out too small ends when that is known") {
  Harness h;
  const PilotId pilot = h.start("local", "local", 0);
  auto tied = h.command("", 8);
  tied.set_pilot(pilot.value);
  const JobId job = h.submit(tied);
  h.place();
  CHECK(h.state(job) == v1::JOB_QUEUED);
  h.join(pilot, 4);
  h.place();
  CHECK(h.state(job) == v1::JOB_FAILED);
  CHECK(h.core.state().job(job)->exit.message().find("no node of pilot 1 has 8 slots; the widest has 4") != std::string::npos);
}

TEST_CASE("a start whose hub needs the user is given up with the reason, and called off when the hub is back") {
  Harness h;
  h.add_remote("far");
  h.connect_hub("far");
  const PilotId pilot = h.start("far", "far");
  CHECK(h.state(pilot) == v1::PILOT_STARTING);
  h.core.on_hub_lost("far", "no route", false, h.now, h.out);
  CHECK(h.state(pilot) == v1::PILOT_STARTING);
  CHECK(h.core.state().pilots.at(pilot).message == "the link to its hub is cut: no route");
  h.core.on_hub_lost("far", "the password was refused", true, h.now, h.out);
  CHECK(h.state(pilot) == v1::PILOT_FAILED);
  CHECK(h.core.state().pilots.at(pilot).message == "the password was refused");
  h.out.launches.clear();
  v1::Hello hello;
  hello.mutable_hub()->add_launches(pilot.value);
  h.core.on_hub_connected("far", hello, h.now, h.out);
  CHECK(h.out.stop_launches == std::vector{pilot});
  CHECK(h.out.launches.empty());
}

TEST_CASE("one host of two that is down does not stop the pilot; both do, with the reason") {
  Harness h;
  v1::ResourceSpec spec;
  spec.set_name("far");
  spec.set_location("me@far");
  spec.add_hosts("node1");
  spec.add_hosts("node2");
  REQUIRE(h.core.add_resource(spec, false, h.now, h.out));
  auto report = [&](PilotId pilot, unsigned node) {
    v1::LaunchReport failed;
    failed.set_pilot(pilot.value);
    failed.set_node(node);
    failed.set_host("node" + std::to_string(node + 1));
    failed.set_stage(v1::LaunchReport::FAILED);
    failed.set_message("cannot reach node" + std::to_string(node + 1));
    failed.set_stderr_tail("No route to host\n");
    h.core.on_launch_report(failed, h.now, h.out);
  };
  h.connect_hub("far");
  const PilotId one = h.start("far", "a", 2, 2), none = h.start("far", "b", 2, 2);
  CHECK(h.core.on_node_joined(h.hello(one, 2, 0), true, h.now, h.out).error().empty());
  report(one, 1);
  CHECK(h.state(one) == v1::PILOT_RUNNING);
  report(none, 0);
  CHECK(h.state(none) == v1::PILOT_STARTING);
  report(none, 1);
  CHECK(h.state(none) == v1::PILOT_FAILED);
  CHECK(h.core.state().pilots.at(none).message.find("No route to host") != std::string::npos);
  CHECK(h.core.state().pilots.at(none).message.find("cannot reach node1") != std::string::npos);
}

TEST_CASE("after a restart a node that had failed is not waited for") {
  Harness h;
  add_far_nodes(h);
  const PilotId pilot = h.start("far", "far", 2, 2);
  v1::LaunchReport failed;
  failed.set_pilot(pilot.value);
  failed.set_node(1);
  failed.set_stage(v1::LaunchReport::FAILED);
  failed.set_message("cannot reach node2");
  h.core.on_launch_report(failed, h.now, h.out);
  CHECK(h.core.on_node_joined(h.hello(pilot, 2, 0), true, h.now, h.out).error().empty());
  h.check_replay();

  Core again({}, [] { return std::string("secret"); });
  for (const auto& event : h.all_events()) REQUIRE(again.replay(event));
  CHECK(again.state().node({pilot, 1})->gone);
  again.restored(h.now, h.out);
  v1::Hello hello;  // of a hub without its record: it knows of nothing
  again.on_hub_connected("far", hello, h.now, h.out);
  h.now.boot_ms += 20'000;
  again.on_tick(h.now, h.out);
  CHECK(again.state().pilots.at(pilot).state == v1::PILOT_FAILED);
}

TEST_CASE("a node that was given up and comes back is there again, also after a restart") {
  Harness h;
  add_far_nodes(h);
  const PilotId pilot = h.start("far", "far", 2, 2);
  for (const unsigned node : {0, 1}) CHECK(h.core.on_node_joined(h.hello(pilot, 2, node), true, h.now, h.out).error().empty());
  h.core.on_node_left({pilot, 1}, "its link ended", h.now, h.out, false);
  CHECK(h.core.state().node({pilot, 1})->gone);
  h.check_replay();
  CHECK(h.core.on_node_joined(h.hello(pilot, 2, 1), true, h.now, h.out).error().empty());
  CHECK_FALSE(h.core.state().node({pilot, 1})->gone);
  h.check_replay();
}

TEST_CASE("a queue time-out ends a job with the reason why it waited") {
  Harness h;
  auto spec = h.command("nowhere");
  spec.set_queue_timeout_ms(2000);
  const JobId job = h.submit(spec);
  h.place();
  h.now.wall_ms += 1999;
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(job) == v1::JOB_QUEUED);
  h.now.wall_ms += 1;
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(job) == v1::JOB_FAILED);
  CHECK(h.core.state().job(job)->exit.kind() == v1::QUEUE_TIMEOUT);
  CHECK(h.core.state().job(job)->exit.message().find("nowhere") != std::string::npos);
  CHECK_FALSE(h.core.needs_ticks());
}

TEST_CASE("stop and drain, in each state of a pilot") {
  Harness h;
  const PilotId starting = h.start();
  REQUIRE(h.core.stop_pilot(starting, false, "enough", h.now, h.out));
  CHECK(h.state(starting) == v1::PILOT_FINISHED);
  CHECK(h.out.stop_launches == std::vector{starting});
  const PilotId drained = h.running();
  REQUIRE(h.core.stop_pilot(drained, true, "enough", h.now, h.out));
  CHECK(h.state(drained) == v1::PILOT_DRAINING);
  CHECK(h.take(v1::Frame::kDrainPilot).size() == 1);
  const JobId job = h.submit(h.command());
  h.place();
  CHECK(h.state(job) == v1::JOB_QUEUED);
  const PilotId stopped = h.running();
  h.core.on_node_unlinked({stopped, 0}, "cut", h.now, h.out);
  REQUIRE(h.core.stop_pilot(stopped, false, "enough", h.now, h.out));
  CHECK(h.take(v1::Frame::kEndPilot).empty());
  CHECK(h.join(stopped).error().empty());
  CHECK(h.take(v1::Frame::kEndPilot).size() == 1);  // it is told when it is back
}

TEST_CASE("a restart of the daemon: pilots are waited for, channels of remote workers end") {
  Harness h;
  h.add_remote("far");
  const PilotId local = h.running(), far = h.start("far", "far");
  h.connect_hub("far");
  CHECK(h.core.on_node_joined(h.hello(far), true, h.now, h.out).error().empty());
  auto worker = [&](const std::string& label) {
    v1::JobSpec spec;
    spec.set_label(label);
    spec.mutable_worker()->set_executable("code");
    return h.submit(spec);
  };
  const JobId near = worker("local"), remote = worker("far"), command = h.submit(h.command("far"));
  h.place();
  for (const JobId job : {near, remote, command}) h.report_running(job);
  for (const JobId job : {near, remote}) {
    v1::WorkerConnected connected;
    *connected.mutable_id() = h.attempt(job);
    h.core.on_worker_connected(h.core.state().job(job)->node, connected, h.now, h.out);
  }
  const JobId waiting = worker("far");

  Core again({}, [] { return std::string("s"); });
  for (const auto& event : h.all_events()) REQUIRE(again.replay(event));
  Outbox out;
  again.restored(h.now, out);
  CHECK(again.state().pilots.at(local).state == v1::PILOT_UNREACHABLE);
  CHECK(out.wanted_hubs == std::set<std::string>{"far"});
  CHECK(again.state().job(near)->canceling == v1::EXIT_NONE);
  CHECK(again.state().job(command)->canceling == v1::EXIT_NONE);
  CHECK(again.state().job(remote)->canceling == v1::CLIENT_GONE);
  CHECK(again.state().job(waiting)->state == v1::JOB_CANCELED);
}

TEST_CASE("a job beside another goes where that runs, takes no slot, and cannot outlast the chance") {
  Harness h;
  const PilotId pilot = h.running(1);
  const JobId host = h.submit(h.command());
  h.place();
  h.report_running(host);
  auto spec = h.command();
  spec.set_beside_job(host.value);
  const JobId beside = h.submit(spec);
  h.place();
  CHECK(h.state(beside) == v1::JOB_DISPATCHED);
  CHECK(h.core.state().job(beside)->node == NodeId{pilot, 0});
  CHECK(h.core.state().node({pilot, 0})->slots_used == 1);
  h.report_end(host);
  auto late = h.core.submit({spec}, h.now, h.out);
  CHECK_FALSE(late);
}

TEST_CASE("a resource with pilots is not removed, unless by force; a gateway never") {
  Harness h;
  h.add_remote("gate");
  v1::ResourceSpec behind;
  behind.set_name("behind");
  behind.set_location("me@behind");
  behind.set_gateway("gate");
  REQUIRE(h.core.add_resource(behind, false, h.now, h.out));
  CHECK_FALSE(h.core.remove_resource("gate", true, h.now, h.out));
  const PilotId pilot = h.start("behind", "b");
  CHECK_FALSE(h.core.remove_resource("behind", false, h.now, h.out));
  CHECK(h.core.remove_resource("behind", true, h.now, h.out));
  CHECK(ended(h.state(pilot)));
  CHECK(h.core.remove_resource("gate", false, h.now, h.out));
  CHECK_FALSE(h.core.remove_resource("local", true, h.now, h.out));
  CHECK_FALSE(h.core.remove_resource("nobody", true, h.now, h.out));
}

TEST_CASE("a resource that is replaced: pilots go on, and its hub ends only when it is elsewhere now") {
  Harness h;
  h.add_remote("front");
  h.connect_hub("front");
  const PilotId pilot = h.start("front", "f");
  h.join(pilot);
  const JobId job = h.submit(h.command("f"));
  h.place();
  h.report_running(job);
  h.out = {};
  v1::ResourceSpec spec = h.core.state().resources.at("front").spec;
  const auto replace = [&] { return h.core.add_resource(spec, true, h.now, h.out); };

  (*spec.mutable_env())["A"] = "1";
  spec.add_setup("module load gcc");
  spec.set_debug(true);
  CHECK(replace());
  CHECK(h.out.left_hubs.empty());
  CHECK(h.out.other_ways.empty());
  spec.set_transport("openssh");
  CHECK(replace());
  CHECK(h.out.other_ways == std::set<std::string>{"front"});
  CHECK(h.out.left_hubs.empty());
  CHECK(h.state(pilot) == v1::PILOT_RUNNING);
  CHECK(h.state(job) == v1::JOB_RUNNING);
  CHECK(h.nothing_else());

  h.out = {};
  spec.set_scratch_dir("/elsewhere");
  CHECK_FALSE(replace());
  spec.clear_scratch_dir();
  spec.set_location("me@elsewhere");
  CHECK_FALSE(replace());
  h.report_end(job);
  (void)h.core.stop_pilot(pilot, false, "", h.now, h.out);
  h.core.on_node_left({pilot, 0}, "it ended", h.now, h.out);
  REQUIRE(ended(h.state(pilot)));
  h.out = {};
  CHECK(replace());
  CHECK(h.out.left_hubs == std::set<std::string>{"front"});
  CHECK(h.core.state().resources.at("front").hub_state == v1::HUB_NONE);
  // A pilot now waits for the hub there.
  const PilotId next = h.start("front", "f");
  CHECK(h.state(next) == v1::PILOT_SUBMITTED);
  CHECK(h.out.wanted_hubs == std::set<std::string>{"front"});
  CHECK(h.nothing_else());
}

TEST_CASE("a resource that is removed: its hub ends; pilots behind a cut link are named, with their end") {
  Harness h;
  h.add_remote("front");
  h.connect_hub("front");
  const PilotId pilot = h.start("front", "f");
  h.join(pilot);
  const PilotId ends_soon = [&] {
    v1::PilotSpec spec;
    spec.set_resource("front");
    spec.set_cutoff_ms(60'000);
    return h.core.start_pilot(spec, h.now, h.out).value();
  }();
  h.join(ends_soon);
  h.core.on_hub_lost("front", "the wire was cut", false, h.now, h.out);
  const PilotId waiting = h.start("front", "f");
  h.now.wall_ms += 10'000;
  h.now.boot_ms += 10'000;
  h.out = {};
  const auto left = h.core.remove_resource("front", true, h.now, h.out);
  REQUIRE(left);
  REQUIRE(left->size() == 2);
  CHECK(left->at(0).pilot == pilot);
  CHECK(left->at(0).ends_by_ms == h.now.wall_ms - 10'000 + 24ll * 3600 * 1000);
  CHECK(left->at(1).pilot == ends_soon);
  CHECK(left->at(1).ends_by_ms == h.now.wall_ms + 50'000);
  CHECK(h.out.left_hubs == std::set<std::string>{"front"});
  CHECK(ended(h.state(waiting)));
  CHECK(h.nothing_else());
}

TEST_CASE("a hub speaks for itself and for the pilots of its resource") {
  Harness h;
  h.add_remote("front");
  h.add_remote("other");
  h.connect_hub("front");
  h.connect_hub("other");
  const PilotId own = h.start("front", "f"), foreign = h.start("other", "o");
  h.join(foreign);
  const auto may = [&](v1::Frame frame, const std::string& peer = "") {
    frame.set_peer(peer);
    return may_say(h.core.state(), "front", frame);
  };
  const std::string own_node = format_peer({own, 0}), foreign_node = format_peer({foreign, 0});
  v1::Frame ping, status, joined, report;
  ping.mutable_ping();
  status.mutable_node_status();
  CHECK(may(ping));
  CHECK(may(ping, own_node));
  CHECK_FALSE(may(ping, foreign_node));
  CHECK(may(status, own_node));
  CHECK_FALSE(may(status));
  CHECK_FALSE(may(status, foreign_node));
  CHECK_FALSE(may(status, "99.0"));
  *joined.mutable_node_joined()->mutable_node() = h.hello(own);
  CHECK(may(joined, own_node));
  CHECK_FALSE(may(joined, foreign_node));
  *joined.mutable_node_joined()->mutable_node() = h.hello(foreign);
  CHECK_FALSE(may(joined, foreign_node));
  CHECK_FALSE(may(joined, own_node));
  *joined.mutable_node_joined()->mutable_node() = h.hello(PilotId{99});
  CHECK(may(joined, "99.0"));  // it is told that nobody knows it
  report.mutable_launch_report()->set_pilot(own.value);
  CHECK(may(report));
  report.mutable_launch_report()->set_pilot(foreign.value);
  CHECK_FALSE(may(report));

  v1::JobSpec worker;
  worker.set_label("o");
  worker.mutable_worker()->set_executable("code");
  const JobId job = h.submit(worker);
  h.place();
  REQUIRE(h.core.state().job(job)->node == NodeId{foreign, 0});
  CHECK(has_channel(h.core.state(), {foreign, 0}, job.value));
  CHECK_FALSE(has_channel(h.core.state(), {own, 0}, job.value));
  CHECK_FALSE(has_channel(h.core.state(), {}, 99));
}

TEST_CASE("a prefilled job is canceled like one that runs, and is no target of signals") {
  Harness h;
  h.running(1);
  const JobId first = h.submit(h.command()), second = h.submit(h.command());
  h.place();
  REQUIRE(h.prefilled(second));
  CHECK_FALSE(h.core.signal(second, 15, h.now, h.out));
  REQUIRE(h.core.cancel(second, v1::CANCELED_BY_USER, "no more", h.now, h.out));
  CHECK(h.take(v1::Frame::kCancelAttempt).size() == 1);
  SECTION("its pilot ends it") { h.report_end(second, v1::CANCELED_BY_USER); }
  SECTION("its pilot had given it back just before") { h.report_retracted(second); }
  CHECK(h.state(second) == v1::JOB_CANCELED);
  CHECK(h.has_room(first));
  h.report_end(first);
  CHECK(h.core.state().queue.empty());
  CHECK(h.core.state().prefilled.empty());
  h.check_replay();
}

TEST_CASE("the queue time-out of a prefilled job: it is asked back, and ended when it had not begun") {
  Harness h;
  h.running(1);
  h.submit(h.command());
  auto spec = h.command();
  spec.set_queue_timeout_ms(2000);
  const JobId job = h.submit(spec);
  h.place();
  REQUIRE(h.prefilled(job));
  CHECK(h.core.needs_ticks());
  h.now.wall_ms += 1500;
  h.core.on_tick(h.now, h.out);
  CHECK(h.take(v1::Frame::kRetractAttempt).empty());
  h.now.wall_ms += 1000;
  h.core.on_tick(h.now, h.out);
  h.core.on_tick(h.now, h.out);
  CHECK(h.take(v1::Frame::kRetractAttempt).size() == 1);
  SECTION("it had begun") {
    h.report_running(job);
    h.report_retracted(job, true);
    CHECK(h.state(job) == v1::JOB_RUNNING);
  }
  SECTION("it had not") {
    h.report_retracted(job);
    CHECK(h.state(job) == v1::JOB_FAILED);
    CHECK(h.core.state().job(job)->exit.kind() == v1::QUEUE_TIMEOUT);
  }
  CHECK_FALSE(h.core.needs_ticks());
  h.check_replay();
}

TEST_CASE("a pilot that drains or ends gives back what has not begun; it goes elsewhere and has not failed") {
  Harness h;
  const PilotId ending = h.running(1);
  const JobId first = h.submit(h.command()), second = h.submit(h.command());
  h.place();
  h.report_running(first);
  REQUIRE(h.prefilled(second));
  REQUIRE(h.core.stop_pilot(ending, GENERATE(true, false), "told", h.now, h.out));
  h.report_retracted(second);
  h.place();
  CHECK(h.state(second) == v1::JOB_QUEUED);
  h.take(v1::Frame::kStartAttempt);
  const PilotId other = h.running(1);
  h.place();
  CHECK(h.has_room(second));
  CHECK(h.core.state().job(second)->node.pilot == other);
  CHECK(h.state(first) == v1::JOB_RUNNING);
  h.check_replay();
}

TEST_CASE("a pilot that dies while its link lives: what waited there is queued again; after a silence it is lost") {
  Harness h;
  const PilotId pilot = h.running(1);
  const JobId first = h.submit(h.command()), second = h.submit(h.command());
  h.place();
  h.report_running(first);
  REQUIRE(h.prefilled(second));
  bool dead = true, again = true;
  SECTION("at once") { h.core.on_node_unlinked({pilot, 0}, "the link broke", h.now, h.out); }
  SECTION("nobody knows whether its process is dead") {
    h.core.on_node_unlinked({pilot, 0}, "the link broke", h.now, h.out);
    dead = again = false;
  }
  SECTION("long after its link") {
    h.core.on_node_unlinked({pilot, 0}, "the link broke", h.now, h.out);
    h.now.boot_ms += 60'000;
    again = false;
  }
  SECTION("while the daemon was away") {
    h.core.restored(h.now, h.out);
    again = false;
  }
  h.core.on_node_left({pilot, 0}, "its process ended", h.now, h.out, dead);
  CHECK(h.core.state().job(first)->exit.kind() == v1::PILOT_LOST);
  CHECK(h.state(second) == (again ? v1::JOB_QUEUED : v1::JOB_FAILED));
  h.check_replay();
}

TEST_CASE("inventory: ends make room before what runs is counted; lost orders are sent again in their order") {
  Harness h;
  const PilotId pilot = h.running(1);
  std::vector<JobId> jobs;
  for (int i = 0; i < 4; ++i) jobs.push_back(h.submit(h.command()));
  h.place();
  h.report_running(jobs[0]);
  h.take(v1::Frame::kStartAttempt);
  h.core.on_node_unlinked({pilot, 0}, "cut", h.now, h.out);
  auto hello = h.hello(pilot, 1);
  auto report = [&](JobId job, v1::JobState state) {
    auto* entry = hello.add_inventory();
    *entry->mutable_id() = h.attempt(job);
    entry->set_state(state);
    if (ended(state)) entry->mutable_exit()->set_kind(v1::EXITED);
  };
  report(jobs[1], v1::JOB_RUNNING);  // it had come to its turn while nobody heard
  report(jobs[0], v1::JOB_FINISHED);
  CHECK(h.core.on_node_joined(hello, false, h.now, h.out).error().empty());
  CHECK(h.state(jobs[0]) == v1::JOB_FINISHED);
  CHECK(h.state(jobs[1]) == v1::JOB_RUNNING);
  CHECK(h.core.state().node({pilot, 0})->slots_used == 1);
  const auto starts = h.take(v1::Frame::kStartAttempt);
  REQUIRE(starts.size() == 2);
  CHECK(starts[0].frame.start_attempt().id().job() == jobs[2].value);
  CHECK(starts[1].frame.start_attempt().id().job() == jobs[3].value);
  CHECK(h.prefilled(jobs[2]));
  h.check_replay();
}

TEST_CASE("a job beside one that waits at its pilot waits too") {
  Harness h;
  h.running(1);
  h.submit(h.command());
  const JobId host = h.submit(h.command());
  h.place();
  REQUIRE(h.prefilled(host));
  auto spec = h.command();
  spec.set_beside_job(host.value);
  const JobId beside = h.submit(spec);
  h.place();
  CHECK(h.state(beside) == v1::JOB_QUEUED);
  h.report_running(host);
  CHECK(h.core.placing_wanted());
  h.place();
  CHECK(h.has_room(beside));
}

TEST_CASE("jobs that end with their client are canceled when nobody comes back after the daemon was killed") {
  Harness h;
  auto bound = [&] {
    auto spec = h.command();
    spec.set_cancel_with_client(true);
    return h.submit(spec);
  };
  const JobId alone = bound(), claimed = bound(), let_go = bound(), free = h.submit(h.command());
  h.core.release_job(let_go, h.now, h.out);
  h.core.release_job(free, h.now, h.out);  // nothing to let go of
  const auto events = h.all_events();
  CHECK(std::ranges::count_if(events, [](const auto& event) { return event.has_job_released(); }) == 1);

  Harness again;
  for (const auto& event : events) again.core.replay(event);
  again.core.restored(again.now, again.out);
  again.core.await_clients(again.now);
  CHECK(again.core.needs_ticks());
  again.now.boot_ms += 59'999;
  again.core.on_tick(again.now, again.out);
  CHECK(again.state(alone) == v1::JOB_QUEUED);
  CHECK(again.core.client_came_back(claimed));
  CHECK_FALSE(again.core.client_came_back(claimed));
  again.now.boot_ms += 1;
  again.core.on_tick(again.now, again.out);
  CHECK(again.state(alone) == v1::JOB_CANCELED);
  CHECK(again.core.state().job(alone)->exit.message().find("did not come back") != std::string::npos);
  for (const JobId id : {claimed, let_go, free}) CHECK(again.state(id) == v1::JOB_QUEUED);
  CHECK_FALSE(again.core.needs_ticks());
  CHECK(again.nothing_else());
}

TEST_CASE("after an orderly end of the daemon nobody has to come back") {
  Harness h;
  auto spec = h.command();
  spec.set_cancel_with_client(true);
  const JobId job = h.submit(spec);
  h.core.restored(h.now, h.out);
  h.now.boot_ms += 3'600'000;
  h.core.on_tick(h.now, h.out);
  CHECK(h.state(job) == v1::JOB_QUEUED);
}

TEST_CASE("a pilot that never ran can be forgotten, and no other") {
  Harness h;
  const PilotId never = h.start(), ran = h.running(), starts = h.start();
  REQUIRE(h.core.stop_pilot(never, false, "stopped", h.now, h.out));
  h.core.on_node_left({ran, 0}, "its process ended", h.now, h.out);
  for (const PilotId id : {never, ran, starts}) h.core.forget_pilot(id, h.now, h.out);
  CHECK_FALSE(h.core.state().pilots.contains(never));
  CHECK(h.core.state().pilots.contains(ran));
  CHECK(h.core.state().pilots.contains(starts));
  h.check_replay();
}

TEST_CASE("a local pilot that cannot live is started again less and less often") {
  CHECK(local_replacement_pause_ms(0) == 0);
  CHECK(local_replacement_pause_ms(1) == 10'000);
  CHECK(local_replacement_pause_ms(2) == 20'000);
  for (unsigned failures = 1; failures < 100; ++failures)
    CHECK(local_replacement_pause_ms(failures + 1) >= local_replacement_pause_ms(failures));
  CHECK(local_replacement_pause_ms(4'000'000'000u) == 600'000);
}
