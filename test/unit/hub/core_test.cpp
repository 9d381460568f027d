#include "hub/core/core.hpp"

#include <catch2/catch.hpp>

#include "proto/base/version.hpp"

using namespace flotilla;
using namespace flotilla::hub;

namespace {

constexpr Tag daemon_tag = 1, pilot_tag = 10;
std::string the_secret() { return "s3cret"; }

// A hub's core with a clock that jumps, and what it did last.
struct Bench {
  Bench() : core(Identity{std::string(16, 'i'), "h1", "build-a", "front", "boot", 4711, "/tmp/x/channels.sock"}, the_secret) {
    step([&](Outbox& out) { core.on_tick(now, out); });
  }
  template <class F>
  void step(F f) {
    out = {};
    f(out);
  }
  void pass(Moment ms) {
    now += ms;
    step([&](Outbox& o) { core.on_tick(now, o); });
  }
  void connect(Tag tag = daemon_tag) {
    step([&](Outbox& o) { core.on_daemon_link(tag, "token", 0, now, o); });
  }
  void welcome(Tag tag = daemon_tag) {
    v1::Frame frame;
    frame.mutable_welcome()->set_protocol(1);
    from_daemon(frame, tag);
  }
  void from_daemon(const v1::Frame& frame, Tag tag = daemon_tag) {
    step([&](Outbox& o) { core.on_daemon_frame(tag, frame, now, o); });
  }
  void launch(std::uint64_t pilot, std::uint32_t nodes = 1, std::vector<std::string> hosts = {}) {
    v1::Frame frame;
    auto* order = frame.mutable_launch_pilot();
    order->set_pilot(pilot);
    order->mutable_spec()->set_node_count(nodes);
    for (const auto& host : hosts) order->add_hosts(host);
    from_daemon(frame);
  }
  void started(std::uint64_t pilot, std::uint32_t node = 0) {
    StartResult result;
    result.ok = true;
    result.guard_pid = 100;
    result.pid = 101;
    step([&](Outbox& o) { core.on_start_result({PilotId{pilot}, node}, result, now, o); });
  }
  void failed(std::uint64_t pilot, std::uint32_t node, bool unreachable) {
    StartResult result;
    result.unreachable = unreachable;
    result.message = "it failed";
    result.stderr_tail = "why";
    result.exit_code = 7;
    step([&](Outbox& o) { core.on_start_result({PilotId{pilot}, node}, result, now, o); });
  }
  static v1::Frame hello(std::uint64_t pilot, std::uint32_t node = 0) {
    v1::Frame frame;
    auto* hello = frame.mutable_hello();
    hello->set_protocol(protocol_version);
    hello->set_protocol_min(protocol_minimum);
    hello->set_instance(std::string(16, 'i'));
    hello->mutable_pilot()->set_pilot(pilot);
    hello->mutable_pilot()->set_node(node);
    hello->mutable_pilot()->set_secret("s3cret");
    return frame;
  }
  void join(Tag tag, std::uint64_t pilot, std::uint32_t node = 0, bool beside = true) {
    step([&](Outbox& o) { core.on_pilot_link(tag, PilotProof{beside, PilotId{beside ? 0 : pilot}}, now, o); });
    from_pilot(tag, hello(pilot, node));
  }
  void from_pilot(Tag tag, const v1::Frame& frame) {
    step([&](Outbox& o) { core.on_pilot_frame(tag, frame, now, o); });
  }
  void close(Tag tag) {
    step([&](Outbox& o) { core.on_pilot_closed(tag, "the wire was cut", now, o); });
  }
  // Frames that went to one link in the last step.
  std::vector<v1::Frame> sent(Tag tag) const {
    std::vector<v1::Frame> frames;
    for (const auto& [to, frame] : out.frames)
      if (to == tag) frames.push_back(frame);
    return frames;
  }
  bool quiet() const {
    return out.frames.empty() && out.close.empty() && out.abort.empty() && out.starts.empty() && out.cancel_starts.empty() &&
           out.kill.empty() && out.channels.empty() && out.requests.empty() && !out.finished;
  }

  Moment now = 1'000'000;
  Core core;
  Outbox out;
};

struct Linked : Bench {
  Linked() {
    connect();
    welcome();
  }
};

struct Running : Linked {
  Running() {
    launch(7);
    join(pilot_tag, 7);
    started(7);
  }
};

v1::Frame start_attempt(const char* peer) {
  v1::Frame frame;
  frame.set_peer(peer);
  frame.mutable_start_attempt()->mutable_id()->set_job(5);
  return frame;
}

}  // namespace

TEST_CASE("the hub says who it is, with the token of that connection") {
  Bench bench;
  bench.connect();
  const auto frames = bench.sent(daemon_tag);
  REQUIRE(frames.size() == 1);
  const auto& hello = frames[0].hello();
  CHECK(hello.link_token() == "token");
  CHECK(hello.instance() == std::string(16, 'i'));
  CHECK(hello.hub().hub_id() == "h1");
  CHECK(hello.hub().channel_socket() == "/tmp/x/channels.sock");
  CHECK(hello.hub().launches_size() == 0);
  bench.welcome();
  CHECK(bench.quiet());
}

TEST_CASE("a newer daemon link displaces the older, whose frames and end count no more") {
  Linked bench;
  bench.connect(2);
  CHECK(bench.out.abort == std::vector<Tag>{daemon_tag});
  v1::Frame order;
  order.mutable_launch_pilot()->set_pilot(7);
  bench.from_daemon(order, daemon_tag);
  CHECK(bench.quiet());
  bench.step([&](Outbox& out) { bench.core.on_daemon_closed(daemon_tag, bench.now, out); });
  CHECK(bench.core.daemon_link() == 2);
}

TEST_CASE("a daemon that refuses is left; its orders before a welcome are not taken") {
  Bench bench;
  bench.connect();
  SECTION("refused") {
    v1::Frame frame;
    frame.mutable_welcome()->set_error("no");
    bench.from_daemon(frame);
    CHECK(bench.out.close == std::vector<Tag>{daemon_tag});
  }
  SECTION("no welcome") {
    v1::Frame frame;
    frame.mutable_launch_pilot()->set_pilot(7);
    bench.from_daemon(frame);
    CHECK(bench.out.abort == std::vector<Tag>{daemon_tag});
    CHECK(bench.out.starts.empty());
  }
}

TEST_CASE("a pilot is started beside the hub, joins, and frames go both ways unseen") {
  Linked bench;
  bench.launch(7);
  REQUIRE(bench.out.starts.size() == 1);
  CHECK(bench.out.starts[0].host.empty());
  CHECK(bench.out.starts[0].secret == "s3cret");
  CHECK(bench.out.save);
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  CHECK(bench.sent(daemon_tag)[0].launch_report().stage() == v1::LaunchReport::STARTING);

  bench.join(pilot_tag, 7);
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  const auto joined = bench.sent(daemon_tag)[0];
  CHECK(joined.peer() == "7.0");
  CHECK(joined.node_joined().node().pilot() == 7);
  CHECK(joined.node_joined().node().secret().empty());
  CHECK(joined.node_joined().node().beside_hub());
  CHECK(bench.sent(pilot_tag).empty());  // the daemon welcomes it
  bench.started(7);
  CHECK(bench.sent(daemon_tag).empty());

  bench.from_daemon(start_attempt("7.0"));
  REQUIRE(bench.sent(pilot_tag).size() == 1);
  CHECK(bench.sent(pilot_tag)[0].peer().empty());
  CHECK(bench.sent(pilot_tag)[0].start_attempt().id().job() == 5);

  v1::Frame up;
  up.mutable_attempt_running()->set_pid(1);
  bench.from_pilot(pilot_tag, up);
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  CHECK(bench.sent(daemon_tag)[0].peer() == "7.0");
  CHECK(bench.sent(daemon_tag)[0].has_attempt_running());
}

TEST_CASE("a second LaunchPilot starts nothing and says how things stand") {
  Running bench;
  bench.launch(7);
  CHECK(bench.out.starts.empty());
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  CHECK(bench.sent(daemon_tag)[0].launch_report().stage() == v1::LaunchReport::STARTED);
}

TEST_CASE("who does not prove itself is refused, with the reason") {
  Linked bench;
  bench.launch(7);
  v1::Frame hello = Bench::hello(7);
  PilotProof proof{true, {}};
  SECTION("wrong secret") { hello.mutable_hello()->mutable_pilot()->set_secret("other"); }
  SECTION("another instance") { hello.mutable_hello()->set_instance("x"); }
  SECTION("unknown pilot") { hello.mutable_hello()->mutable_pilot()->set_pilot(8); }
  SECTION("no such node") { hello.mutable_hello()->mutable_pilot()->set_node(1); }
  SECTION("a certificate of another pilot") { proof = {false, PilotId{8}}; }
  SECTION("a protocol of the future") {
    hello.mutable_hello()->set_protocol(99);
    hello.mutable_hello()->set_protocol_min(98);
  }
  bench.step([&](Outbox& out) { bench.core.on_pilot_link(pilot_tag, proof, bench.now, out); });
  bench.from_pilot(pilot_tag, hello);
  REQUIRE(bench.sent(pilot_tag).size() == 1);
  CHECK_FALSE(bench.sent(pilot_tag)[0].welcome().error().empty());
  CHECK(bench.out.close == std::vector<Tag>{pilot_tag});
  CHECK(bench.sent(daemon_tag).empty());
}

TEST_CASE("a link that says nothing, or something else than hello, is closed") {
  Linked bench;
  bench.step([&](Outbox& out) { bench.core.on_pilot_link(pilot_tag, {true, {}}, bench.now, out); });
  SECTION("nothing") {
    bench.pass(hello_grace_ms - 1);
    CHECK(bench.quiet());
    REQUIRE(bench.core.next_tick());
    CHECK(*bench.core.next_tick() == bench.now + 1);
    bench.pass(1);
    CHECK(bench.out.abort == std::vector<Tag>{pilot_tag});
  }
  SECTION("something else") {
    bench.from_pilot(pilot_tag, start_attempt(""));
    CHECK(bench.out.abort == std::vector<Tag>{pilot_tag});
  }
}

TEST_CASE("a node whose link ended may come back within the grace, and nobody is told") {
  Running bench;
  bench.close(pilot_tag);
  CHECK(bench.quiet());
  bench.pass(relink_grace_ms - 1);
  CHECK(bench.quiet());
  bench.join(pilot_tag + 1, 7);
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  CHECK(bench.sent(daemon_tag)[0].has_node_joined());
  bench.pass(10 * rejoin_grace_ms);
  CHECK(bench.quiet());
}

TEST_CASE("a node that does not come back has left; when it comes later it joins anew") {
  Running bench;
  bench.close(pilot_tag);
  bench.pass(relink_grace_ms + rejoin_each_ms);
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  const auto left = bench.sent(daemon_tag)[0];
  CHECK(left.peer() == "7.0");
  CHECK_FALSE(left.node_left().process_dead());
  CHECK(left.node_left().cause().find("cut") != std::string::npos);
  bench.from_daemon(start_attempt("7.0"));
  CHECK(bench.sent(daemon_tag).at(0).has_node_left());
  bench.join(pilot_tag + 1, 7);
  CHECK(bench.sent(daemon_tag).at(0).has_node_joined());
}

TEST_CASE("a silent node is told within 5 s") {
  // The keepalive of links inside a cluster is 1.5 s + 2 s (PROTOCOL.md 2.5).
  static_assert(3'500 + relink_grace_ms + 10 * rejoin_each_ms < 5'000);
}

TEST_CASE("the death of a process beside the hub is told at once, after what it said last") {
  Running bench;
  bench.step([&](Outbox& out) { bench.core.on_process_ended({PilotId{7}, 0}, bench.now, out); });
  CHECK(bench.quiet());
  v1::Frame last;
  last.mutable_attempt_ended();
  bench.from_pilot(pilot_tag, last);
  CHECK(bench.sent(daemon_tag).at(0).has_attempt_ended());
  bench.close(pilot_tag);
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  CHECK(bench.sent(daemon_tag)[0].node_left().process_dead());
  // Nothing of it is let in again.
  bench.join(pilot_tag + 1, 7);
  CHECK_FALSE(bench.sent(pilot_tag + 1).at(0).welcome().error().empty());
}

TEST_CASE("a pilot that says goodbye has ended, without a grace") {
  Running bench;
  v1::Frame goodbye;
  goodbye.mutable_goodbye()->set_reason("idle for too long");
  bench.from_pilot(pilot_tag, goodbye);
  CHECK(bench.quiet());
  bench.close(pilot_tag);
  REQUIRE(bench.sent(daemon_tag).size() == 2);
  CHECK(bench.sent(daemon_tag)[0].pilot_ending().reason() == "idle for too long");
  CHECK(bench.sent(daemon_tag)[1].node_left().process_dead());
  CHECK_FALSE(bench.core.has_pilots());
}

TEST_CASE("frames for a node that nobody knows are answered") {
  Linked bench;
  bench.from_daemon(start_attempt("9.3"));
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  CHECK(bench.sent(daemon_tag)[0].peer() == "9.3");
  CHECK(bench.sent(daemon_tag)[0].has_node_left());
}

TEST_CASE("several hosts: a node whose host is down takes a spare one, the others go on") {
  Linked bench;
  bench.launch(7, 2, {"n1", "n2", "n3"});
  REQUIRE(bench.out.starts.size() == 2);
  CHECK(bench.out.starts[0].host == "n1");
  CHECK(bench.out.starts[1].host == "n2");
  CHECK(bench.out.starts[0].secret.empty());

  bench.failed(7, 0, true);
  REQUIRE(bench.out.starts.size() == 1);
  CHECK(bench.out.starts[0].host == "n3");
  CHECK(bench.out.starts[0].node.node == 0);
  REQUIRE(bench.sent(daemon_tag).size() == 1);
  CHECK(bench.sent(daemon_tag)[0].launch_report().stage() == v1::LaunchReport::STARTING);
  CHECK(bench.sent(daemon_tag)[0].launch_report().message().find("n1") != std::string::npos);

  bench.join(pilot_tag, 7, 1, false);
  CHECK(bench.sent(daemon_tag).at(0).peer() == "7.1");

  bench.failed(7, 0, true);  // no spare is left
  CHECK(bench.out.starts.empty());
  const auto report = bench.sent(daemon_tag).at(0).launch_report();
  CHECK(report.stage() == v1::LaunchReport::FAILED);
  CHECK(report.host() == "n3");
  CHECK(report.message().find("n1") != std::string::npos);  // the first one's cause as well
  CHECK(report.stderr_tail() == "why");
  CHECK(report.exit_code() == 7);
  CHECK(bench.core.has_pilots());
}

TEST_CASE("a pilot that itself fails is not tried elsewhere") {
  Linked bench;
  bench.launch(7, 1, {"n1", "n2"});
  bench.failed(7, 0, false);
  CHECK(bench.out.starts.empty());
  CHECK(bench.sent(daemon_tag).at(0).launch_report().stage() == v1::LaunchReport::FAILED);
  CHECK_FALSE(bench.core.has_pilots());
}

TEST_CASE("more nodes than hosts: they are shared out in turn") {
  Linked bench;
  bench.launch(7, 3, {"n1", "n2"});
  REQUIRE(bench.out.starts.size() == 3);
  CHECK(bench.out.starts[2].host == "n1");
}

TEST_CASE("the daemon comes back: pilots are made to say anew what they have, frames before that stay here") {
  Running bench;
  bench.step([&](Outbox& out) { bench.core.on_daemon_closed(daemon_tag, bench.now, out); });
  v1::Frame up;
  up.mutable_attempt_ended();
  bench.from_pilot(pilot_tag, up);
  CHECK(bench.quiet());
  bench.connect(2);
  CHECK(bench.sent(2).at(0).hello().hub().launches(0) == 7);
  bench.from_pilot(pilot_tag, up);
  CHECK(bench.quiet());
  bench.welcome(2);
  CHECK(bench.out.abort == std::vector<Tag>{pilot_tag});
  bench.close(pilot_tag);  // a late word of the shell changes nothing
  CHECK(bench.quiet());
  bench.join(11, 7);
  CHECK(bench.sent(2).at(0).has_node_joined());
  bench.from_pilot(11, up);
  CHECK(bench.sent(2).at(0).has_attempt_ended());
}

TEST_CASE("cut off, a new pilot is admitted in the daemon's name with its settings") {
  Linked bench;
  v1::Frame frame;
  auto* order = frame.mutable_launch_pilot();
  order->set_pilot(7);
  order->set_idle_ms(1234);
  order->set_cutoff_ms(50'000);
  bench.from_daemon(frame);
  bench.step([&](Outbox& out) { bench.core.on_daemon_closed(daemon_tag, bench.now, out); });
  bench.join(pilot_tag, 7);
  REQUIRE(bench.sent(pilot_tag).size() == 1);
  CHECK(bench.sent(pilot_tag)[0].welcome().error().empty());
  CHECK(bench.sent(pilot_tag)[0].welcome().pilot().idle_ms() == 1234);

  SECTION("its own cut-off is kept by the hub, for its link to the hub lives") {
    bench.pass(49'999);
    CHECK(bench.quiet());
    bench.pass(1);
    CHECK(bench.sent(pilot_tag).at(0).has_end_pilot());
    bench.pass(10'000);
    CHECK(bench.sent(pilot_tag).empty());  // once
  }
  SECTION("what happened meanwhile is told when the daemon is back") {
    v1::Frame goodbye;
    goodbye.mutable_goodbye()->set_reason("done");
    bench.from_pilot(pilot_tag, goodbye);
    bench.close(pilot_tag);
    CHECK(bench.quiet());
    CHECK(bench.core.untold());
    bench.connect(2);
    bench.welcome(2);
    REQUIRE(bench.sent(2).size() == 2);
    CHECK(bench.sent(2)[0].pilot_ending().reason() == "done");
    CHECK(bench.sent(2)[1].node_left().process_dead());
    CHECK_FALSE(bench.core.untold());
  }
}

TEST_CASE("cut off for too long, the hub ends its pilots and itself") {
  Running bench;
  bench.step([&](Outbox& out) { bench.core.on_daemon_closed(daemon_tag, bench.now, out); });
  bench.pass(default_cutoff_ms - 1);
  CHECK(bench.quiet());
  bench.pass(1);
  CHECK(bench.sent(pilot_tag).at(0).end_pilot().cut_off());
  CHECK_FALSE(bench.out.finished);
  v1::Frame goodbye;
  goodbye.mutable_goodbye();
  bench.from_pilot(pilot_tag, goodbye);
  bench.close(pilot_tag);
  CHECK(bench.out.finished);
  REQUIRE(bench.core.untold());

  Bench next;  // takes up what that one kept
  next.core.restore(bench.core.launches(), bench.core.ended_pilots(), next.now);
  next.connect();
  CHECK(next.sent(daemon_tag).at(0).hello().hub().launches_size() == 0);
  next.welcome();
  REQUIRE(next.sent(daemon_tag).size() == 2);
  CHECK(next.sent(daemon_tag)[0].has_pilot_ending());
  CHECK(next.sent(daemon_tag)[1].node_left().process_dead());
  v1::Frame end;
  end.mutable_end_hub()->set_stop_pilots(true);
  next.from_daemon(end);
  CHECK(next.out.finished);
  CHECK_FALSE(next.core.untold());
}

TEST_CASE("cut off, the hub stays for a pilot that may be alone for longer, and ends the others") {
  Running bench;
  v1::Frame order;
  order.mutable_launch_pilot()->set_pilot(8);
  order.mutable_launch_pilot()->mutable_spec()->set_node_count(1);
  order.mutable_launch_pilot()->set_cutoff_ms(3 * default_cutoff_ms);
  bench.from_daemon(order);
  bench.join(pilot_tag + 1, 8);
  bench.started(8);
  bench.step([&](Outbox& out) { bench.core.on_daemon_closed(daemon_tag, bench.now, out); });
  bench.pass(default_cutoff_ms);
  CHECK(bench.sent(pilot_tag).at(0).has_end_pilot());
  CHECK(bench.sent(pilot_tag + 1).empty());
  v1::Frame goodbye;
  goodbye.mutable_goodbye();
  bench.from_pilot(pilot_tag, goodbye);
  bench.close(pilot_tag);
  CHECK_FALSE(bench.out.finished);
  CHECK_FALSE(bench.core.ending());
  REQUIRE(bench.core.next_tick());
  CHECK(*bench.core.next_tick() == bench.now + 2 * default_cutoff_ms);
  bench.pass(2 * default_cutoff_ms - 1);
  CHECK(bench.quiet());
  bench.pass(1);
  CHECK(bench.sent(pilot_tag + 1).at(0).has_end_pilot());
  CHECK(bench.core.ending());
}

TEST_CASE("a hub that nobody needs ends after a while; a daemon's link keeps it") {
  Bench bench;
  bench.pass(idle_hub_ms - 1);
  CHECK(bench.quiet());
  bench.connect();
  bench.welcome();
  bench.pass(100 * idle_hub_ms);
  CHECK(bench.quiet());
  bench.step([&](Outbox& out) { bench.core.on_daemon_closed(daemon_tag, bench.now, out); });
  bench.pass(idle_hub_ms);
  CHECK(bench.out.finished);
}

TEST_CASE("EndHub ends the pilots, waits, kills who stays, and goes") {
  Running bench;
  v1::Frame end;
  end.mutable_end_hub()->set_stop_pilots(true);
  bench.from_daemon(end);
  CHECK(bench.sent(pilot_tag).at(0).has_end_pilot());
  CHECK_FALSE(bench.out.finished);
  SECTION("it goes") {
    v1::Frame goodbye;
    goodbye.mutable_goodbye();
    bench.from_pilot(pilot_tag, goodbye);
    bench.close(pilot_tag);
    CHECK(bench.out.finished);
    CHECK(bench.sent(daemon_tag).back().has_goodbye());
  }
  SECTION("it stays") {
    bench.pass(end_pilots_ms);
    REQUIRE(bench.out.kill.size() == 1);
    CHECK(bench.out.kill[0].pilot.value == 7);
    bench.step([&](Outbox& out) { bench.core.on_process_ended({PilotId{7}, 0}, bench.now, out); });
    bench.close(pilot_tag);
    CHECK(bench.out.finished);
  }
  SECTION("even the killing does not help") {
    bench.pass(end_pilots_ms);
    bench.pass(end_killed_ms);
    CHECK(bench.out.finished);
  }
  SECTION("one that comes back meanwhile is told to end") {
    bench.close(pilot_tag);
    bench.join(11, 7);
    bool told = false;
    for (const auto& frame : bench.sent(11)) told |= frame.has_end_pilot();
    CHECK(told);
  }
  SECTION("no new ones are started") {
    bench.launch(8);
    CHECK(bench.out.starts.empty());
    CHECK(bench.sent(daemon_tag).at(0).launch_report().stage() == v1::LaunchReport::FAILED);
  }
}

TEST_CASE("EndHub without pilots ends at once; with pilots that it shall leave alone too") {
  SECTION("none") {
    Linked bench;
    v1::Frame end;
    end.mutable_end_hub()->set_stop_pilots(true);
    bench.from_daemon(end);
    CHECK(bench.out.finished);
  }
  SECTION("left alone") {
    Running bench;
    v1::Frame end;
    end.mutable_end_hub();
    bench.from_daemon(end);
    CHECK(bench.out.finished);
    CHECK(bench.sent(pilot_tag).empty());
  }
}

TEST_CASE("StopLaunch ends a start under way, and what had started all the same") {
  Linked bench;
  bench.launch(7, 2, {"n1", "n2"});
  v1::Frame stop;
  stop.mutable_stop_launch()->set_pilot(7);
  bench.from_daemon(stop);
  CHECK(bench.out.cancel_starts.size() == 2);
  bench.failed(7, 0, true);
  CHECK(bench.out.starts.empty());  // no spare is tried for what was stopped
  bench.join(pilot_tag, 7, 1, false);
  bool told = false;
  for (const auto& frame : bench.sent(pilot_tag)) told |= frame.has_end_pilot();
  CHECK(told);
  bench.from_daemon(stop);
  bench.from_daemon(stop);  // idempotent
  CHECK_FALSE(bench.out.finished);
}

TEST_CASE("after a crash of the hub its pilots may rejoin; who does not has left") {
  Running before;
  std::map<std::uint64_t, Launch> kept = before.core.launches();
  Bench bench;
  bench.core.restore(kept, {}, bench.now);
  CHECK(bench.core.has_pilots());
  SECTION("it rejoins") {
    bench.join(pilot_tag, 7);
    bench.connect();
    bench.welcome();
    bench.join(11, 7);
    CHECK(bench.sent(daemon_tag).at(0).has_node_joined());
    bench.pass(100'000);
    CHECK(bench.quiet());
  }
  SECTION("it does not") {
    bench.connect();
    bench.welcome();
    CHECK(bench.sent(daemon_tag).empty());
    bench.pass(rejoin_grace_ms);
    CHECK(bench.quiet());
    bench.pass(rejoin_each_ms);
    CHECK(bench.sent(daemon_tag).at(0).has_node_left());
  }
  SECTION("it is known to be dead") {
    bench.connect();
    bench.welcome();
    bench.step([&](Outbox& out) { bench.core.on_process_ended({PilotId{7}, 0}, bench.now, out); });
    CHECK(bench.sent(daemon_tag).at(0).node_left().process_dead());
  }
}

TEST_CASE("channels: to a pilot beside the hub at once, to a node as soon as it has a link") {
  Linked bench;
  bench.launch(7, 1, {"n1"});
  bench.join(pilot_tag, 7, 0, false);
  v1::Frame expect;
  expect.mutable_expect_channel()->set_peer("7.0");
  expect.mutable_expect_channel()->set_channel(5);
  bench.from_daemon(expect);
  REQUIRE(bench.out.channels.size() == 1);
  CHECK_FALSE(bench.out.channels[0].beside);
  bench.close(pilot_tag);
  bench.from_daemon(expect);
  CHECK(bench.out.channels.empty());
  bench.join(11, 7, 0, false);
  REQUIRE(bench.out.channels.size() == 1);
  CHECK(bench.out.channels[0].expect.channel() == 5);
  // The daemon would try again and again: it is told that there is no such node.
  expect.mutable_expect_channel()->set_peer("8.0");
  bench.from_daemon(expect);
  CHECK(bench.out.channels.empty());
  const auto told = bench.sent(daemon_tag);
  REQUIRE(told.size() == 1);
  CHECK(told[0].peer() == "8.0");
  CHECK(told[0].node_left().cause().find("8.0") != std::string::npos);
}

TEST_CASE("the log of a pilot: it is asked itself while it has a link, then its file is read") {
  Running bench;
  v1::Frame request;
  request.set_peer("7.0");
  request.mutable_read_log()->set_request(3);
  bench.from_daemon(request);
  CHECK(bench.sent(pilot_tag).at(0).read_log().request() == 3);
  CHECK(bench.out.requests.empty());
  bench.close(pilot_tag);
  for (const char* peer : {"7.0", "99.0"}) {
    request.set_peer(peer);
    bench.from_daemon(request);
    REQUIRE(bench.out.requests.size() == 1);
    CHECK(bench.out.requests.at(0).peer() == peer);
    CHECK(bench.out.frames.empty());
  }
}

TEST_CASE("pings of the daemon are answered, logs go to the shell") {
  Linked bench;
  v1::Frame ping;
  ping.mutable_ping()->set_id(3);
  bench.from_daemon(ping);
  CHECK(bench.sent(daemon_tag).at(0).pong().id() == 3);
  v1::Frame log;
  log.mutable_read_log()->set_request(4);
  bench.from_daemon(log);
  REQUIRE(bench.out.requests.size() == 1);
}

TEST_CASE("of ended launches only some are remembered, and none of them comes back") {
  Linked bench;
  for (std::uint64_t pilot = 1; pilot <= remembered_launches + 10; ++pilot) {
    bench.launch(pilot);
    bench.failed(pilot, 0, false);
  }
  CHECK(bench.core.launches().size() == remembered_launches);
  CHECK(bench.core.ended_pilots().size() == remembered_launches + 10);
  bench.join(pilot_tag, 1);
  CHECK_FALSE(bench.sent(pilot_tag).at(0).welcome().error().empty());
}
