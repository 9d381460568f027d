#include "hub/core/core.hpp"

#include <algorithm>
#include <utility>

#include "proto/base/hex.hpp"
#include "proto/base/version.hpp"

namespace flotilla::hub {
namespace {

constexpr std::pair<Stage, const char*> stage_names[] = {
    {Stage::starting, "starting"}, {Stage::started, "started"}, {Stage::linked, "linked"},
    {Stage::lost, "lost"},         {Stage::failed, "failed"},   {Stage::left, "left"},
};

std::string node_text(NodeId id) { return "node " + std::to_string(id.node) + " of pilot " + std::to_string(id.pilot.value); }

}  // namespace

const char* name_of(Stage stage) {
  for (const auto& [value, name] : stage_names)
    if (value == stage) return name;
  return "";
}
bool alive(const Node& node) { return node.stage != Stage::failed && node.stage != Stage::left; }
std::optional<Stage> parse_stage(const std::string& name) {
  for (const auto& [value, text] : stage_names)
    if (name == text) return value;
  return std::nullopt;
}

Core::Core(Identity identity, std::string (*make_secret)()) : identity_(std::move(identity)), make_secret_(make_secret) {}

void Core::restore(std::map<std::uint64_t, Launch> launches, std::set<std::uint64_t> ended, Moment now) {
  launches_ = std::move(launches);
  ended_ = std::move(ended);
  for (auto& [pilot, launch] : launches_)
    for (auto& [index, node] : launch.nodes)
      if (alive(node)) {
        lose(node, rejoin_grace_ms, "the hub was started again", now);
      }
  note_need(now);
}

// ---- the daemon's link --------------------------------------------------------------------------------

void Core::on_daemon_link(Tag link, const std::string& token, Moment cutoff_ms, Moment now, Outbox& out) {
  if (daemon_) {
    out.notes.push_back("a newer link to the daemon displaces the present one");
    out.abort.push_back(daemon_);
  }
  daemon_ = link;
  welcomed_ = false;
  cut_off_ = false;
  cutoff_ms_ = cutoff_ms > 0 ? cutoff_ms : default_cutoff_ms;
  note_need(now);

  v1::Frame frame;
  auto* hello = frame.mutable_hello();
  hello->set_protocol(protocol_version);
  hello->set_protocol_min(protocol_minimum);
  hello->set_build(identity_.build);
  hello->set_instance(identity_.instance);
  hello->set_host(identity_.host);
  hello->set_boot_id(identity_.boot_id);
  hello->set_pid(identity_.pid);
  hello->set_link_token(token);
  auto* hub = hello->mutable_hub();
  hub->set_hub_id(identity_.hub_id);
  hub->set_address(address_);
  hub->set_channel_socket(identity_.channel_socket);
  // No nodes: their inventories here are old. They are asked for new ones, which follow as NodeJoined.
  for (const auto& [pilot, launch] : launches_)
    if (std::any_of(launch.nodes.begin(), launch.nodes.end(), [](const auto& entry) { return alive(entry.second); }))
      hub->add_launches(pilot);
  out.frames.emplace_back(daemon_, std::move(frame));
}

void Core::on_daemon_frame(Tag link, v1::Frame frame, Moment now, Outbox& out) {
  if (link != daemon_) return;
  if (!welcomed_) {
    if (!frame.has_welcome() || !frame.peer().empty()) {
      out.notes.push_back("the daemon's first frame is no welcome: its link is closed");
      out.abort.push_back(link);
      return;
    }
    if (!frame.welcome().error().empty()) {
      out.notes.push_back("the daemon refused this hub: " + frame.welcome().error());
      out.close.push_back(link);
      return;
    }
    welcomed_ = true;
    out.notes.push_back("linked to the daemon, build " + frame.welcome().build());
    // What happened while it was away. Reports first: they say how ends came about.
    for (auto& [pilot, launch] : launches_)
      for (auto& [index, node] : launch.nodes) {
        const NodeId id{PilotId{pilot}, index};
        if (node.stage == Stage::starting || node.stage == Stage::started || node.stage == Stage::failed) report(id, node, out);
        if (node.stage == Stage::left) tell_left(id, node, out);
      }
    // What the pilots have now, the daemon learns from their next hello: they are made to connect anew, which they do at once.
    for (auto it = links_.begin(); it != links_.end();) {
      Node* node = it->second.node.pilot ? find(it->second.node) : nullptr;
      if (!node || node->link != it->first) {
        ++it;
        continue;
      }
      out.abort.push_back(it->first);
      lose(*node, rejoin_grace_ms, "it was asked to connect anew", now);
      it = links_.erase(it);
    }
    return;
  }

  if (!frame.peer().empty()) {
    const NodeId id = parse_peer(frame.peer());
    const Tag to = link_of(id);
    if (to) {
      frame.clear_peer();
      out.frames.emplace_back(to, std::move(frame));
      return;
    }
    if (frame.has_read_log()) {  // its file may be here
      out.requests.push_back(std::move(frame));
      return;
    }
    const Node* node = find(id);
    // One that may come back within the grace is not given up yet; its inventory will say what it has missed.
    if (node && node->stage != Stage::left && node->stage != Stage::failed) return;
    answer_unknown(frame.peer(), node, out);
    return;
  }

  switch (frame.body_case()) {
    case v1::Frame::kPing: {
      v1::Frame pong;
      pong.mutable_pong()->set_id(frame.ping().id());
      pong.mutable_pong()->set_sent_us(frame.ping().sent_us());
      to_daemon(std::move(pong), out);
      return;
    }
    case v1::Frame::kLaunchPilot: launch(frame.launch_pilot(), now, out); return;
    case v1::Frame::kStopLaunch: stop_launch(frame.stop_launch(), now, out); return;
    case v1::Frame::kEndHub:
      if (frame.end_hub().stop_pilots()) end_all_pilots("the hub was told to end with its pilots", out);
      end_hub("as the daemon said", now, out);
      return;
    case v1::Frame::kExpectChannel: {
      const NodeId id = parse_peer(frame.expect_channel().peer());
      const Node* node = find(id);
      if (!node || !alive(*node)) {
        out.notes.push_back("a channel to " + frame.expect_channel().peer() + ", which is not there");
        answer_unknown(frame.expect_channel().peer(), node, out);
        return;
      }
      ChannelOrder order;
      order.expect = frame.expect_channel();
      order.node = id;
      order.beside = node->beside;
      // A pilot beside the hub takes it without a link; another one is told as soon as it has one again.
      if (node->beside || node->link) out.channels.push_back(std::move(order));
      else waiting_channels_.push_back(std::move(order));
      return;
    }
    case v1::Frame::kReadLog: out.requests.push_back(std::move(frame)); return;
    case v1::Frame::kGoodbye: out.close.push_back(link); return;
    default: return;  // of a later version: nothing that this one could do
  }
}

void Core::answer_unknown(const std::string& peer, const Node* node, Outbox& out) {
  v1::Frame answer;
  answer.set_peer(peer);
  answer.mutable_node_left()->set_cause(node && !node->message.empty() ? node->message : "the hub does not know " + peer);
  answer.mutable_node_left()->set_process_dead(node && node->process_dead);
  to_daemon(std::move(answer), out);
}

void Core::on_daemon_closed(Tag link, Moment now, Outbox& out) {
  if (link != daemon_) return;
  daemon_ = 0;
  welcomed_ = false;
  daemon_gone_since_ = now;
  for (auto& [tag, at] : links_) at.joined_up = false;
  out.notes.push_back("the link to the daemon has ended");
  note_need(now);
  finish_if_done(now, out);
}

void Core::to_daemon(v1::Frame frame, Outbox& out) {
  if (daemon_ && welcomed_) out.frames.emplace_back(daemon_, std::move(frame));
}

// ---- starting -----------------------------------------------------------------------------------------

void Core::launch(const v1::LaunchPilot& order, Moment now, Outbox& out) {
  const auto known = launches_.find(order.pilot());
  if (known != launches_.end()) {
    for (auto& [index, node] : known->second.nodes) {
      const NodeId id{PilotId{order.pilot()}, index};
      if (node.stage == Stage::left) tell_left(id, node, out);
      else report(id, node, out);
    }
    return;
  }
  Launch launch;
  launch.order = order;
  launch.node_count = std::max(1u, order.spec().node_count());
  launch.hosts.assign(order.hosts().begin(), order.hosts().end());
  auto& settings = launch.settings;
  settings.set_idle_ms(order.idle_ms());
  settings.set_cutoff_ms(order.cutoff_ms());
  settings.set_time_ms(order.spec().time_ms());
  settings.set_debug(order.debug());
  *settings.mutable_traces() = order.traces();
  if (ending_ || ended_.contains(order.pilot())) {
    v1::Frame frame;
    auto* refusal = frame.mutable_launch_report();
    refusal->set_pilot(order.pilot());
    refusal->set_host(identity_.host);
    refusal->set_stage(v1::LaunchReport::FAILED);
    refusal->set_message(ending_ ? "the hub is about to end" : "this pilot has ended before");
    to_daemon(std::move(frame), out);
    return;
  }
  for (std::uint32_t i = 0; i < launch.node_count; ++i) {
    Node node;
    node.beside = launch.hosts.empty();
    node.host = node.beside ? identity_.host : launch.hosts[i % launch.hosts.size()];
    if (node.beside) node.secret = make_secret_();
    launch.nodes.emplace(i, std::move(node));
  }
  auto& kept = launches_.emplace(order.pilot(), std::move(launch)).first->second;
  note_need(now);
  out.save = true;
  // All are announced before the first can fail: the daemon counts them.
  for (auto& [index, node] : kept.nodes) {
    const NodeId id{PilotId{order.pilot()}, index};
    report(id, node, out);
    out.starts.push_back({id, node.beside ? "" : node.host, node.secret});
  }
}

void Core::on_start_progress(NodeId id, const std::string& message, Outbox& out) {
  Node* node = find(id);
  if (!node || node->stage != Stage::starting) return;
  node->message = message;
  report(id, *node, out);
}

void Core::on_start_result(NodeId id, const StartResult& result, Moment now, Outbox& out) {
  Node* node = find(id);
  if (!node) return;
  Launch& launch = launches_.at(id.pilot.value);
  if (result.ok) {
    if (node->message.starts_with("setting up")) node->message.clear();  // it is over
    node->guard_pid = result.guard_pid;
    node->pid = result.pid;
    if (node->stage == Stage::starting) {
      node->stage = Stage::started;
      // It registered before it was called started: its link may have come and gone.
      report(id, *node, out);
    }
    if (launch.stopping || ending_) end_node(id, *node, "it was stopped while it started", 0, out);
    out.save = true;
    return;
  }
  if (node->stage != Stage::starting) {
    // It registered all the same; the link counts. (ssh broke after the pilot had started.)
    return;
  }
  if (result.unreachable && !launch.stopping && !ending_) {
    node->tried.insert(node->host);
    const std::string other = next_host(launch, *node);
    if (!other.empty()) {
      out.notes.push_back(node_text(id) + " on " + node->host + " was not started: " + result.message);
      if (result.message.find(node->host) == std::string::npos) node->troubles += node->host + ": ";
      node->troubles += result.message + "; ";
      node->host = other;
      node->message = node->troubles + "trying " + other;
      report(id, *node, out);
      out.starts.push_back({id, other, ""});
      out.save = true;
      return;
    }
  }
  node->stage = Stage::failed;
  node->message = node->troubles + result.message;
  node->stderr_tail = result.stderr_tail;
  node->exit_code = result.exit_code;
  out.notes.push_back(node_text(id) + " on " + node->host + " was not started: " + result.message);
  report(id, *node, out);
  settle(id.pilot.value, out);
  note_need(now);
  finish_if_done(now, out);
}

// A host that no node of this pilot uses, and that was not tried in vain.
std::string Core::next_host(const Launch& launch, const Node& node) const {
  std::set<std::string> taken = node.tried;
  for (const auto& [index, other] : launch.nodes) {
    taken.insert(other.tried.begin(), other.tried.end());
    if (&other != &node && alive(other)) taken.insert(other.host);
  }
  for (const auto& host : launch.hosts)
    if (!taken.contains(host)) return host;
  return {};
}

void Core::report(NodeId id, Node& node, Outbox& out) {
  node.told = node.told || (daemon_ && welcomed_);
  v1::Frame frame;
  auto* report = frame.mutable_launch_report();
  report->set_pilot(id.pilot.value);
  report->set_node(id.node);
  report->set_host(node.host);
  report->set_message(node.message);
  report->set_pid(node.guard_pid);
  switch (node.stage) {
    case Stage::starting: report->set_stage(v1::LaunchReport::STARTING); break;
    case Stage::started:
    case Stage::linked:
    case Stage::lost: report->set_stage(v1::LaunchReport::STARTED); break;
    case Stage::failed:
      report->set_stage(v1::LaunchReport::FAILED);
      report->set_stderr_tail(node.stderr_tail);
      report->set_exit_code(node.exit_code);
      break;
    case Stage::left: report->set_stage(v1::LaunchReport::ENDED); break;
  }
  to_daemon(std::move(frame), out);
}

void Core::stop_launch(const v1::StopLaunch& order, Moment now, Outbox& out) {
  const auto it = launches_.find(order.pilot());
  if (it == launches_.end()) return;
  it->second.stopping = true;
  out.save = true;
  for (auto& [index, node] : it->second.nodes) {
    const NodeId id{PilotId{order.pilot()}, index};
    end_node(id, node, "it was stopped", order.force() ? 0 : end_job_grace_ms, out);
    if (order.force() && node.beside && node.pid && alive(node)) out.kill.push_back(id);
  }
  note_need(now);
}

void Core::end_node(NodeId id, Node& node, const std::string& reason, std::int64_t grace_ms, Outbox& out, bool cut_off) {
  if (node.stage == Stage::starting) out.cancel_starts.push_back(id);
  if (!node.link) return;
  v1::Frame frame;
  frame.mutable_end_pilot()->set_reason(reason);
  frame.mutable_end_pilot()->set_grace_ms(grace_ms);
  frame.mutable_end_pilot()->set_cut_off(cut_off);
  out.frames.emplace_back(node.link, std::move(frame));
}

// ---- pilots' links ------------------------------------------------------------------------------------

void Core::on_pilot_link(Tag link, const PilotProof& proof, Moment now, Outbox&) { links_[link] = PilotLink{proof, {}, now, true, false}; }

Status Core::check_hello(const PilotLink& at, const v1::Hello& hello) const {
  if (!hello.has_pilot()) return fail(Code::permission_denied, "only pilots register here");
  const auto& pilot = hello.pilot();
  const std::string who = std::to_string(pilot.pilot()) + "." + std::to_string(pilot.node());
  if (hello.protocol_min() > protocol_version || hello.protocol() < protocol_minimum)
    return fail(Code::version_mismatch, "pilot " + who + " of build " + hello.build() + " speaks protocol " +
                                            std::to_string(hello.protocol_min()) + " to " + std::to_string(hello.protocol()) +
                                            ", this hub of build " + identity_.build + " speaks " + std::to_string(protocol_minimum) +
                                            " to " + std::to_string(protocol_version));
  if (hello.instance() != identity_.instance)
    return fail(Code::permission_denied, "pilot " + who + " belongs to another instance than hub " + identity_.hub_id);
  if (!at.proof.beside && at.proof.pilot.value != pilot.pilot())
    return fail(Code::permission_denied, "the certificate is of pilot " + std::to_string(at.proof.pilot.value) + ", not " + who);
  if (ended_.contains(pilot.pilot())) return fail(Code::permission_denied, "pilot " + who + " has ended before");
  const auto it = launches_.find(pilot.pilot());
  if (it == launches_.end()) return fail(Code::permission_denied, "pilot " + who + " is not known to hub " + identity_.hub_id);
  const auto node = it->second.nodes.find(pilot.node());
  if (node == it->second.nodes.end())
    return fail(Code::permission_denied,
                "pilot " + std::to_string(pilot.pilot()) + " has " + std::to_string(it->second.node_count) + " nodes, not " + who);
  if (at.proof.beside && (node->second.secret.empty() || !equal_secret(node->second.secret, pilot.secret())))
    return fail(Code::permission_denied, "the join secret of pilot " + who + " is wrong");
  return {};
}

void Core::on_hello(Tag link, PilotLink& at, v1::Hello hello, Moment now, Outbox& out) {
  if (auto ok = check_hello(at, hello); !ok) {
    out.notes.push_back("refused a pilot: " + ok.error().message);
    v1::Frame frame;
    frame.mutable_welcome()->set_protocol(protocol_version);
    frame.mutable_welcome()->set_build(identity_.build);
    frame.mutable_welcome()->set_error(ok.error().message);
    out.frames.emplace_back(link, std::move(frame));
    out.close.push_back(link);
    return;
  }
  auto* pilot = hello.mutable_pilot();
  const NodeId id{PilotId{pilot->pilot()}, pilot->node()};
  Launch& launch = launches_[id.pilot.value];
  Node& node = launch.nodes[id.node];
  if (node.link && node.link != link) {
    // The older one has not noticed its end yet.
    links_.erase(node.link);
    out.abort.push_back(node.link);
  }
  at.node = id;
  at.awaiting_hello = false;
  if (node.host.empty()) node.host = pilot->host();
  node.link = link;
  node.stage = Stage::linked;
  node.said_goodbye = false;
  node.process_dead = false;
  node.message.clear();
  node.beside = at.proof.beside;
  if (!node.pid) node.pid = pilot->pid();
  pilot->clear_secret();  // it is for this hub alone
  pilot->set_beside_hub(at.proof.beside);
  out.save = true;
  note_need(now);

  // In the daemon's name where it is away; it says more in a welcome of its own when it is back.
  const bool unwanted = launch.stopping || ending_;
  if (!daemon_ || !welcomed_ || unwanted) {
    v1::Frame frame;
    auto* welcome = frame.mutable_welcome();
    welcome->set_protocol(std::min(protocol_version, hello.protocol()));
    welcome->set_build(identity_.build);
    welcome->set_instance(identity_.instance);
    *welcome->mutable_pilot() = launch.settings;
    welcome->set_debug(launch.settings.debug());
    out.frames.emplace_back(link, std::move(frame));
  }
  for (auto order = waiting_channels_.begin(); order != waiting_channels_.end();) {
    if (order->node == id) {
      out.channels.push_back(std::move(*order));
      order = waiting_channels_.erase(order);
    } else {
      ++order;
    }
  }
  if (unwanted) end_node(id, node, ending_ ? "its hub ends" : "it was stopped", end_job_grace_ms, out);
  if (daemon_ && welcomed_) {
    at.joined_up = true;
    v1::Frame frame;
    frame.set_peer(format_peer(id));
    *frame.mutable_node_joined()->mutable_node() = std::move(*pilot);
    to_daemon(std::move(frame), out);
  }
}

void Core::on_pilot_frame(Tag link, v1::Frame frame, Moment now, Outbox& out) {
  const auto it = links_.find(link);
  if (it == links_.end()) return;
  PilotLink& at = it->second;
  if (frame.has_hello()) {
    on_hello(link, at, std::move(*frame.mutable_hello()), now, out);
    return;
  }
  if (!at.node.pilot) {
    out.notes.push_back("a link whose first frame is no hello is closed");
    links_.erase(it);
    out.abort.push_back(link);
    return;
  }
  if (frame.has_goodbye()) {
    if (Node* node = find(at.node)) {
      node->said_goodbye = true;
      node->goodbye = frame.goodbye().reason();
    }
    return;
  }
  // What comes before the inventory that the present daemon link has is in that inventory.
  if (!at.joined_up) return;
  frame.set_peer(format_peer(at.node));
  to_daemon(std::move(frame), out);
}

void Core::on_pilot_closed(Tag link, const std::string& cause, Moment now, Outbox& out) {
  const auto it = links_.find(link);
  if (it == links_.end()) return;
  const NodeId id = it->second.node;
  links_.erase(it);
  Node* node = id.pilot ? find(id) : nullptr;
  if (!node || node->link != link) return;
  node->link = 0;
  if (node->said_goodbye) {
    leave(id, *node, node->goodbye.empty() ? "it ended" : "it ended: " + node->goodbye, true, out);
  } else if (node->process_dead) {
    leave(id, *node, node->message, true, out);
  } else {
    lose(*node, relink_grace_ms, cause, now);
    out.notes.push_back("the link of " + node_text(id) + " on " + node->host + " ended: " + cause);
  }
  note_need(now);
  finish_if_done(now, out);
}

void Core::on_process_ended(NodeId id, Moment now, Outbox& out) {
  Node* node = find(id);
  if (!node || !alive(*node)) return;
  if (node->stage == Stage::starting) return;  // its starter says why
  node->process_dead = true;
  if (node->link) {
    // What it said last may still be on its way to us; the end of the link follows at once.
    node->message = "its process on " + node->host + " died";
    return;
  }
  leave(id, *node, node->said_goodbye ? "it ended: " + node->goodbye : "its process on " + node->host + " died", true, out);
  note_need(now);
  finish_if_done(now, out);
}

void Core::leave(NodeId id, Node& node, std::string message, bool process_dead, Outbox& out) {
  node.stage = Stage::left;
  node.told = false;
  node.process_dead = process_dead;
  node.message = std::move(message);
  node.link = 0;
  std::erase_if(waiting_channels_, [&](const ChannelOrder& order) { return order.node == id; });
  out.notes.push_back(node_text(id) + " on " + node.host + " has left: " + node.message);
  tell_left(id, node, out);
  settle(id.pilot.value, out);
}

void Core::tell_left(NodeId id, Node& node, Outbox& out) {
  node.told = node.told || (daemon_ && welcomed_);
  if (node.said_goodbye) {
    // It said so itself, but perhaps while the daemon was away.
    v1::Frame ending;
    ending.set_peer(format_peer(id));
    ending.mutable_pilot_ending()->set_reason(node.goodbye);
    to_daemon(std::move(ending), out);
  }
  v1::Frame frame;
  frame.set_peer(format_peer(id));
  frame.mutable_node_left()->set_cause(node.message);
  frame.mutable_node_left()->set_process_dead(node.process_dead);
  to_daemon(std::move(frame), out);
}

// A pilot of which nothing is left is not let in again; some are remembered for a daemon that was away.
void Core::settle(std::uint64_t pilot, Outbox& out) {
  out.save = true;
  const Launch& launch = launches_.at(pilot);
  for (const auto& [index, node] : launch.nodes)
    if (alive(node) || (node.stage == Stage::left && !node.process_dead)) return;
  ended_.insert(pilot);
  std::size_t over = 0;
  for (const auto& [id, other] : launches_) over += ended_.contains(id);
  for (auto it = launches_.begin(); over > remembered_launches && it != launches_.end();) {
    if (it->first != pilot && ended_.contains(it->first)) {
      it = launches_.erase(it);
      --over;
    } else {
      ++it;
    }
  }
}

// ---- time ---------------------------------------------------------------------------------------------

bool Core::has_pilots() const {
  for (const auto& [pilot, launch] : launches_)
    for (const auto& [index, node] : launch.nodes)
      if (alive(node)) return true;
  return false;
}

bool Core::untold() const {
  for (const auto& [pilot, launch] : launches_)
    for (const auto& [index, node] : launch.nodes)
      if (alive(node) || !node.told) return true;
  return false;
}

void Core::lose(Node& node, Moment grace_ms, std::string message, Moment now) {
  node.link = 0;
  node.stage = Stage::lost;
  node.lost_since = now;
  node.grace_ms = grace_ms;
  node.message = std::move(message);
}

Moment Core::cutoff_of(const Launch& launch) const { return launch.settings.cutoff_ms() > 0 ? launch.settings.cutoff_ms() : cutoff_ms_; }

// It stays for those of its pilots that may be alone for longer.
Moment Core::cutoff_of_hub() const {
  Moment longest = cutoff_ms_;
  for (const auto& [pilot, launch] : launches_)
    if (!launch.stopping && std::any_of(launch.nodes.begin(), launch.nodes.end(), [](const auto& node) { return alive(node.second); }))
      longest = std::max(longest, cutoff_of(launch));
  return longest;
}

// What many that come back together need on top of their grace.
Moment Core::crowd_ms() const {
  Moment lost = 0;
  for (const auto& [pilot, launch] : launches_)
    for (const auto& [index, node] : launch.nodes) lost += node.stage == Stage::lost;
  return lost * rejoin_each_ms;
}

void Core::note_need(Moment now) {
  if (daemon_ || has_pilots()) unneeded_since_ = 0;
  else if (!unneeded_since_) unneeded_since_ = now;
  if (!daemon_ && !daemon_gone_since_) daemon_gone_since_ = now;
  if (daemon_) daemon_gone_since_ = 0;
}

void Core::end_all_pilots(const std::string& reason, Outbox& out) {
  for (auto& [pilot, launch] : launches_) {
    launch.stopping = true;
    for (auto& [index, node] : launch.nodes)
      if (alive(node)) end_node({PilotId{pilot}, index}, node, reason, end_job_grace_ms, out);
  }
  out.save = true;
}

void Core::end_hub(const std::string& why, Moment now, Outbox& out) {
  if (ending_) return;
  out.notes.push_back("the hub ends: " + why);
  ending_ = true;
  ending_since_ = now;
  bool stopping = false;
  for (const auto& [pilot, launch] : launches_) stopping |= launch.stopping;
  if (!stopping) killed_ = true;  // pilots are left alone: nothing to wait for
  finish_if_done(now, out);
}

void Core::finish_if_done(Moment now, Outbox& out) {
  if (!ending_ || finished_) return;
  const bool given_up = now >= ending_since_ + end_pilots_ms + end_killed_ms;
  bool waiting = false;
  for (const auto& [pilot, launch] : launches_)
    if (launch.stopping)
      for (const auto& [index, node] : launch.nodes) waiting |= alive(node);
  if (waiting && !given_up) return;
  finished_ = true;
  v1::Frame frame;
  frame.mutable_goodbye()->set_reason("the hub has ended");
  if (daemon_) {
    out.frames.emplace_back(daemon_, std::move(frame));
    out.close.push_back(daemon_);
  }
  out.finished = true;
}

void Core::on_tick(Moment now, Outbox& out) {
  for (auto it = links_.begin(); it != links_.end();) {
    if (it->second.awaiting_hello && now >= it->second.since + hello_grace_ms) {
      out.notes.push_back("a link that did not say whose it is is closed");
      out.abort.push_back(it->first);
      it = links_.erase(it);
    } else {
      ++it;
    }
  }
  const Moment crowd = crowd_ms();
  for (auto& [pilot, launch] : launches_) {
    for (auto& [index, node] : launch.nodes) {
      if (node.stage != Stage::lost || now < node.lost_since + node.grace_ms + crowd) continue;
      const NodeId id{PilotId{pilot}, index};
      leave(id, node,
            "the link to " + node.host + " ended and was not made again within " + std::to_string(node.grace_ms + crowd) + " ms" +
                (node.message.empty() ? "" : " (" + node.message + ")"),
            node.process_dead, out);
    }
  }
  if (!ending_ && !daemon_ && daemon_gone_since_) {
    // The pilots' link to this hub is alive, so it is on us to tell them.
    for (auto& [pilot, launch] : launches_) {
      if (launch.stopping || now < daemon_gone_since_ + cutoff_of(launch)) continue;
      launch.stopping = true;
      out.save = true;
      for (auto& [index, node] : launch.nodes)
        if (alive(node)) end_node({PilotId{pilot}, index}, node, "cut off from the daemon for too long", end_job_grace_ms, out, true);
    }
    if (!cut_off_ && now >= daemon_gone_since_ + cutoff_of_hub()) {
      cut_off_ = true;
      end_hub("cut off from the daemon for too long", now, out);
    }
  }
  note_need(now);
  if (!ending_ && unneeded_since_ && now >= unneeded_since_ + idle_hub_ms) end_hub("nobody needs it", now, out);
  if (ending_ && !killed_ && now >= ending_since_ + end_pilots_ms) {
    killed_ = true;
    for (auto& [pilot, launch] : launches_)
      for (auto& [index, node] : launch.nodes) {
        const NodeId id{PilotId{pilot}, index};
        if (!alive(node) || !launch.stopping) continue;
        if (node.beside && node.pid) out.kill.push_back(id);
        else if (node.link) out.notes.push_back(node_text(id) + " on " + node.host + " has not ended");
      }
  }
  finish_if_done(now, out);
}

std::optional<Moment> Core::next_tick() const {
  if (finished_) return std::nullopt;
  std::optional<Moment> next;
  auto at = [&](Moment moment) { next = next ? std::min(*next, moment) : moment; };
  for (const auto& [tag, link] : links_)
    if (link.awaiting_hello) at(link.since + hello_grace_ms);
  const Moment crowd = crowd_ms();
  for (const auto& [pilot, launch] : launches_) {
    for (const auto& [index, node] : launch.nodes)
      if (node.stage == Stage::lost) at(node.lost_since + node.grace_ms + crowd);
    if (!daemon_ && daemon_gone_since_ && !launch.stopping) at(daemon_gone_since_ + cutoff_of(launch));
  }
  if (!ending_) {
    if (!daemon_ && daemon_gone_since_ && !cut_off_) at(daemon_gone_since_ + cutoff_of_hub());
    if (unneeded_since_) at(unneeded_since_ + idle_hub_ms);
  } else {
    at(ending_since_ + end_pilots_ms + (killed_ ? end_killed_ms : 0));
  }
  return next;
}

// ---- looking ------------------------------------------------------------------------------------------

Node* Core::find(NodeId id) {
  const auto it = launches_.find(id.pilot.value);
  if (it == launches_.end()) return nullptr;
  const auto node = it->second.nodes.find(id.node);
  return node == it->second.nodes.end() ? nullptr : &node->second;
}
const Node* Core::node(NodeId id) const { return const_cast<Core*>(this)->find(id); }
Tag Core::link_of(NodeId id) const {
  const Node* found = node(id);
  return found ? found->link : 0;
}
bool Core::serves(std::uint64_t pilot) const { return !ended_.contains(pilot) && launches_.contains(pilot); }

}  // namespace flotilla::hub
