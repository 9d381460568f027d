#include "daemon/coordinator/hubs.hpp"

#include <fmt/format.h>

#include <boost/asio/post.hpp>

#include "daemon/core/hub_frames.hpp"
#include "proto/base/log.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"
#include "proto/base/clock.hpp"

namespace flotilla::daemon {
namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
// After a lost connection: at once, then growing, so that a laptop that wakes up is back in seconds.
constexpr std::chrono::milliseconds first_retry = 200ms;
constexpr std::chrono::milliseconds longest_retry = 15s;
constexpr std::chrono::milliseconds longest_retry_of_channels = 2s;  // a script waits for an answer
// After a change of this machine's network: so long may a hub's answer take over a slow and busy line.
constexpr auto probe_patience = 4s;
constexpr auto soon_broken_after = 1s;          // a channel's connection that lasts less is made again with a growing wait
constexpr auto retired_channel_patience = 60s;  // for a slow client to read what an ended worker had written
constexpr std::uint64_t round_trip_ping = 2;    // 1 is a probe of the connection

std::int64_t steady_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::chrono::milliseconds retry_after(int failures, std::chrono::milliseconds longest) {
  auto wait = first_retry;
  for (int i = 1; i < failures && wait < longest; ++i) wait *= 2;
  return std::min(wait, longest);
}
}  // namespace

Hubs::Hubs(Coordinator& coordinator)
    : coordinator_(coordinator), notes_(coordinator.journal()), channels_(make_channel_table(coordinator.io())),
      network_(coordinator.io(), [this] { on_network_change(); }) {
  for (const auto& [name, resource] : coordinator.state().resources) notes_.daemon_started(name, wall_ms());
  channels_->send_frame = [this](std::uint64_t channel, v1::Frame frame) {
    const auto it = open_.find(channel);
    if (it != open_.end()) coordinator_.send(it->second.node, std::move(frame));
  };
  channels_->on_broken = [this](std::uint64_t channel) { reopen_channel(channel); };
  channels_->on_user_gone = [this](std::uint64_t channel) { coordinator_.end_worker(JobId{channel}, "its client closed the channel"); };
  channels_->on_failed = [this](std::uint64_t channel, const Error& error) {
    spdlog::warn("the channel of job {} cannot go on: {}", channel, error.text());
    coordinator_.end_worker(JobId{channel}, "its channel was lost: " + error.message);
  };
}

Hubs::~Hubs() = default;

bool Hubs::connected(const std::string& resource) const {
  const auto it = hubs_.find(resource);
  return it != hubs_.end() && it->second.connected && !it->second.left;
}

void Hubs::want(const std::string& resource, bool by_user) {
  const auto it = coordinator_.state().resources.find(resource);
  if (it == coordinator_.state().resources.end() || it->second.local()) return;
  Hub& hub = hubs_[resource];
  if (hub.connection) return;  // connected, on the way, or about to end: on_ended() goes on
  if (!by_user && it->second.hub_state == v1::HUB_FAILED) return;
  hub.ending = false;
  if (by_user) hub.failures = 0;
  connect(resource);
}

HubConnectionServices Hubs::services_for(const v1::ResourceSpec& spec) {
  HubConnectionServices services{coordinator_.io(), coordinator_.prompter(), *channels_, {}};
  if (!spec.gateway().empty()) {
    services.dial_gateway = [this, gateway = spec.gateway()](const std::string& host, int port,
                                                             std::function<void(Result<unique_fd>)> done) {
      const auto it = hubs_.find(gateway);
      if (it != hubs_.end() && it->second.connected) return it->second.connection->open_tcp(host, port, std::move(done));
      // The gateway comes first. Its outcome is told to a follower of its own.
      class Follower final : public OutStream<v1::Progress> {
       public:
        explicit Follower(std::function<void(Status)> done) : done_(std::move(done)) {}
        void send(v1::Progress) override {}
        void finish(Status status) override {
          if (auto done = std::exchange(done_, nullptr)) done(std::move(status));
        }
        std::size_t queued_bytes() const override { return 0; }

       private:
        std::function<void(Status)> done_;
      };
      follow(gateway, std::make_shared<Follower>([this, gateway, host, port, done](Status status) {
               if (!status) {
                 Error error = status.error();
                 error.message = fmt::format("the gateway '{}' cannot be reached: {}", gateway, error.message);
                 return done(fail(std::move(error)));
               }
               hubs_.at(gateway).connection->open_tcp(host, port, done);
             }));
      want(gateway, true);
    };
  }
  return services;
}

HubConnectionConfig Hubs::config_for(const v1::ResourceSpec& spec) {
  HubConnectionConfig config;
  config.spec = spec;
  config.instance = coordinator_.journal().instance();
  config.agent = coordinator_.places().agent;
  config.state_dir = coordinator_.places().state;
  config.hub_id = to_hex(sha256(config.instance + spec.name())).substr(0, 16);
  config.cutoff_ms = coordinator_.config().pilot_cutoff_ms;
  config.traces = traces_of(coordinator_.config());
  auto certificates = hub_certificates(coordinator_.journal(), config.hub_id, wall_ms());
  config.tls_ca = std::move(certificates.ca);
  config.tls_chain = std::move(certificates.chain);
  config.tls_key = std::move(certificates.key);
  return config;
}

void Hubs::connect(const std::string& resource) {
  const v1::ResourceSpec spec = coordinator_.state().resources.at(resource).spec;
  Hub& hub = hubs_[resource];
  hub.retry.reset();
  HubConnectionEvents events;
  events.on_state = [this, resource](v1::HubState state, std::string message, double fraction) {
    on_state(resource, state, message, fraction);
  };
  events.on_connected = [this, resource](const v1::Hello& hello) { on_connected(resource, hello); };
  events.on_frame = [this, resource](v1::Frame frame) { on_frame(resource, std::move(frame)); };
  events.on_room = [this] { coordinator_.pump_blobs(); };
  events.on_hub_lost = [this, resource](const Error& error) { on_hub_lost(resource, error); };
  events.on_ended = [this, resource](const Error& error) { on_ended(resource, error); };
  hub.connection = make_hub_connection(services_for(spec), config_for(spec), std::move(events));
  hub.connection->start();
}

void Hubs::on_state(const std::string& resource, v1::HubState state, const std::string& message, double fraction) {
  if (state == v1::HUB_CONNECTED) return;  // on_connected says that, with all that belongs to it
  coordinator_.core().on_hub_state(resource, state, message, fraction, Coordinator::now(), coordinator_.outbox());
  coordinator_.touch();
  tell(hubs_[resource], message, fraction);
}

void Hubs::on_connected(const std::string& resource, const v1::Hello& hello) {
  Hub& hub = hubs_[resource];
  hub.connected = hub.answers = true;
  hub.said_goodbye = hub.hopeless = false;
  hub.trouble.clear();
  hub.failures = 0;
  notes_.connected(resource);
  spdlog::info("the hub of '{}' on {} (pid {}, build {}) is connected", resource, hello.host(), hello.pid(), hello.build());
  for (const auto& node : hello.hub().nodes()) {
    if (!speaks_for(coordinator_.state(), resource, PilotId{node.pilot()})) continue;
    v1::Frame answer;
    answer.set_peer(format_peer({PilotId{node.pilot()}, node.node()}));
    *answer.mutable_welcome() = coordinator_.join(node, true);
    coordinator_.after_commit([this, resource, answer] { send(resource, answer); });
  }
  coordinator_.core().on_hub_connected(resource, hello, Coordinator::now(), coordinator_.outbox());
  coordinator_.after_commit([this, resource] {
    std::vector<std::pair<std::uint64_t, NodeId>> again;
    for (const auto& [channel, open] : open_)
      if (open.resource == resource) again.emplace_back(channel, open.node);
    for (const auto& [channel, node] : again) open_channel(JobId{channel}, node);
    if (const auto it = hubs_.find(resource); it != hubs_.end() && it->second.connected) settle(it->second, {});
    v1::Frame ping;
    ping.mutable_ping()->set_id(round_trip_ping);
    ping.mutable_ping()->set_sent_us(steady_us());
    send(resource, std::move(ping));
  });
  ask_for_missing(resource, hello.hub());
}

// Of pilots that the hub does not count among those that live, it says what it knows when it is asked: they are not waited for.
void Hubs::ask_for_missing(const std::string& resource, const v1::HubHello& hub) {
  const std::set<std::uint64_t> there(hub.launches().begin(), hub.launches().end());
  for (const auto& [id, pilot] : coordinator_.state().pilots) {
    if (ended(pilot.state) || pilot.spec.resource() != resource || there.contains(id.value)) continue;
    for (const auto& [index, node] : pilot.nodes) {
      if (node.linked || node.gone || node.incarnation.empty()) continue;
      v1::Frame ping;
      ping.set_peer(format_peer({id, index}));
      ping.mutable_ping()->set_sent_us(steady_us());
      coordinator_.after_commit([this, resource, ping] { send(resource, ping); });
    }
  }
}

void Hubs::on_frame(const std::string& resource, v1::Frame frame) {
  if (Hub& hub = hubs_[resource]; true) {
    hub.answers = true;
    if (frame.has_goodbye() && frame.peer().empty()) {
      hub.said_goodbye = true;
      notes_.ended(resource);
    }
    if (hub.left) return;
  }
  if (!may_say(coordinator_.state(), resource, frame)) {
    spdlog::warn("the hub of '{}' spoke for {}, which is none of its own: left out", resource,
                 frame.peer().empty() ? "another pilot" : frame.peer());
    return;
  }
  if (frame.has_node_joined()) {
    v1::Frame answer;
    answer.set_peer(frame.peer());
    *answer.mutable_welcome() = coordinator_.join(frame.node_joined().node(), true);
    const NodeId node = parse_peer(frame.peer());
    coordinator_.after_commit([this, resource, answer, node] {
      send(resource, answer);
      for (const auto& [channel, open] : open_)
        if (open.node == node) channels_->on_link_renewed(channel);
    });
    return;
  }
  if (frame.has_launch_report()) {
    coordinator_.core().on_launch_report(frame.launch_report(), Coordinator::now(), coordinator_.outbox());
    coordinator_.touch();
    return;
  }
  if (frame.has_pong() && frame.pong().id() == round_trip_ping && frame.peer().empty()) {
    coordinator_.core().on_round_trip(resource, steady_us() - frame.pong().sent_us(), coordinator_.outbox());
    coordinator_.touch();
    return;
  }
  if (frame.has_log_data()) return coordinator_.on_log_data(resource, frame.log_data());
  const NodeId node = parse_peer(frame.peer());  // none: the hub's own
  coordinator_.on_node_frame(node, std::move(frame));
}

void Hubs::on_hub_lost(const std::string& resource, const Error& error) {
  const auto it = hubs_.find(resource);
  if (it == hubs_.end() || !std::exchange(it->second.connected, false)) return;
  it->second.trouble = error.text();
  notes_.let_go(resource, wall_ms());
  coordinator_.end_logs(resource, {}, error.text());
  spdlog::warn("the hub of '{}' ended, another one is started in the same login: {}", resource, error.text());
  coordinator_.core().on_hub_lost(resource, error.text(), false, Coordinator::now(), coordinator_.outbox());
  coordinator_.touch();
}

void Hubs::on_ended(const std::string& resource, const Error& error) {
  const auto it = hubs_.find(resource);
  if (it == hubs_.end()) return;
  Hub& hub = it->second;
  const bool was_connected = std::exchange(hub.connected, false);
  if (was_connected) coordinator_.end_logs(resource, {}, error.text());
  hub.trouble = error.text();
  hub.hopeless = !was_connected && error.retry != Retry::yes;
  if (was_connected && !hub.said_goodbye) notes_.let_go(resource, wall_ms());
  // We are inside one of its events: it is destroyed in the next turn.
  asio::post(coordinator_.io(), [old = std::shared_ptr<HubConnection>(std::move(hub.connection))] {});
  if (hub.left) {
    hub.left = hub.ending = false;
    notes_.ended(resource);
    if (coordinator_.state().resources.contains(resource) && (needed(resource) || !hub.followers.empty())) return want(resource, true);
    settle(hub, fail(error));
    hubs_.erase(it);
    return;
  }
  if (hub.ending) {
    coordinator_.core().on_hub_state(resource, v1::HUB_NONE, "", -1, Coordinator::now(), coordinator_.outbox());
    coordinator_.touch();
    settle(hub, fail(error));
    return;
  }
  const bool again = (was_connected || error.retry == Retry::yes) && needed(resource);
  spdlog::warn("the connection to '{}' {}: {}", resource, was_connected ? "ended" : "failed", error.text());
  coordinator_.core().on_hub_lost(resource, error.text(), !again && !was_connected, Coordinator::now(), coordinator_.outbox());
  coordinator_.touch();
  settle(hub, fail(error));
  if (!again) return;
  ++hub.failures;
  const bool somebody_waits = std::ranges::any_of(open_, [&](const auto& each) { return each.second.resource == resource; });
  hub.retry = std::make_unique<asio::steady_timer>(coordinator_.io(),
                                                   retry_after(hub.failures, somebody_waits ? longest_retry_of_channels : longest_retry));
  hub.retry->async_wait([this, resource](boost::system::error_code code) {
    if (!code) want(resource, false);
  });
}

void Hubs::on_network_change() {
  std::vector<std::string> waiting;
  for (auto& [resource, hub] : hubs_) {
    if (hub.connected) hub.connection->probe(probe_patience);
    else if (hub.retry) waiting.push_back(resource);
  }
  for (const auto& resource : waiting) {
    hubs_[resource].failures = 0;
    want(resource, false);
  }
}

// Is there anything there that wants a hub?
bool Hubs::needed(const std::string& resource) const {
  for (const auto& [id, pilot] : coordinator_.state().pilots)
    if (!ended(pilot.state) && pilot.spec.resource() == resource) return true;
  for (const auto& [name, other] : coordinator_.state().resources)
    if (other.spec.gateway() == resource && hubs_.contains(name) && needed(name)) return true;
  return false;
}

void Hubs::send(const std::string& resource, v1::Frame frame) {
  const auto it = hubs_.find(resource);
  if (it != hubs_.end() && it->second.connected && !it->second.left) it->second.connection->send(std::move(frame));
}

bool Hubs::has_room(const std::string& resource) const {
  const auto it = hubs_.find(resource);
  return it != hubs_.end() && it->second.connected && it->second.connection->has_room();
}

void Hubs::follow(const std::string& resource, OutStreamPtr<v1::Progress> stream) {
  Hub& hub = hubs_[resource];
  hub.followers.push_back(stream);
  stream->on_gone = [this, resource, raw = stream.get()] {
    if (const auto it = hubs_.find(resource); it != hubs_.end())
      std::erase_if(it->second.followers, [raw](const auto& s) { return s.get() == raw; });
  };
}

void Hubs::tell(Hub& hub, const std::string& message, double fraction) {
  v1::Progress progress;
  progress.set_message(message);
  progress.set_fraction(fraction);
  for (auto& follower : hub.followers) follower->send(progress);
}

void Hubs::settle(Hub& hub, const Status& status) {
  for (auto& follower : std::exchange(hub.followers, {})) {
    if (status) {
      v1::Progress progress;
      progress.set_message("connected");
      progress.set_fraction(1);
      progress.set_done(true);
      follower->send(progress);
    }
    follower->finish(status);
  }
}

void Hubs::let_go(const std::string& resource, Hub& hub, const std::string& cause) {
  const bool tried = hub.connection || hub.retry;
  hub.retry.reset();
  hub.connection.reset();
  hub.failures = 0;
  if (std::exchange(hub.connected, false)) {
    notes_.let_go(resource, wall_ms());
    coordinator_.end_logs(resource, {}, cause);
  }
  if (tried) coordinator_.core().on_hub_lost(resource, cause, false, Coordinator::now(), coordinator_.outbox());
  coordinator_.touch();
}

void Hubs::disconnect(const std::string& resource) {
  const auto it = hubs_.find(resource);
  if (it == hubs_.end() || it->second.left) return;
  let_go(resource, it->second, "disconnected by the user");
  settle(it->second, fail(Code::canceled, fmt::format("resource '{}' was disconnected by the user", resource),
                          fmt::format("flotilla resource connect {}", resource)));
}

void Hubs::forget(const std::string& resource) {
  const auto it = hubs_.find(resource);
  if (it == hubs_.end() || it->second.left) return;
  Hub& hub = it->second;
  settle(hub, fail(Code::canceled, fmt::format("resource '{}' was removed or changed meanwhile", resource)));
  if (hub.connected) {
    v1::Frame frame;
    frame.mutable_end_hub()->set_stop_pilots(true);
    hub.connection->send(std::move(frame));
    hub.ending = hub.left = true;
    return;
  }
  notes_.ended(resource);
  hubs_.erase(it);
}

void Hubs::go_other_way(const std::string& resource) {
  const auto it = hubs_.find(resource);
  if (it == hubs_.end() || it->second.left) return;
  let_go(resource, it->second, "its description was changed");
  if (needed(resource) || !it->second.followers.empty()) want(resource, true);
}

// ---- the end of everything ------------------------------------------------------------------------------------------

Hubs::Standing Hubs::standing(const std::string& resource) const {
  Standing standing;
  const auto it = hubs_.find(resource);
  if (it == hubs_.end()) return standing;
  const Hub& hub = it->second;
  standing.connected = hub.connected;
  standing.connecting = hub.connection && !hub.connected;
  standing.hopeless = hub.hopeless;
  standing.answers = hub.answers;
  standing.said_goodbye = hub.said_goodbye;
  standing.trouble = hub.trouble;
  return standing;
}

void Hubs::ask(const std::string& resource) {
  hubs_[resource].answers = false;
  v1::Frame frame;
  frame.mutable_ping()->set_sent_us(static_cast<std::uint64_t>(wall_ms()) * 1000);
  send(resource, std::move(frame));
}

void Hubs::reconnect(const std::string& resource) {
  const auto it = hubs_.find(resource);
  if (it == hubs_.end()) return;
  it->second.trouble = "the link was silent";
  let_go(resource, it->second, "the link is silent");
  want(resource, true);
}

void Hubs::end(const std::string& resource) {
  Hub& hub = hubs_[resource];
  hub.ending = true;
  hub.retry.reset();
  v1::Frame frame;
  frame.mutable_end_hub()->set_stop_pilots(true);
  send(resource, std::move(frame));
}

bool Hubs::may_be_there(const std::string& resource) const {
  if (const auto it = hubs_.find(resource); it != hubs_.end() && it->second.connection) return true;
  return notes_.may_be_there(resource, wall_ms());
}

void Hubs::note_end_of_daemon() {
  for (const auto& [name, hub] : hubs_)
    if (hub.connected) notes_.let_go(name, wall_ms());
}

void Hubs::test(const std::string& resource, OutStreamPtr<v1::TestStep> stream) {
  const auto it = coordinator_.state().resources.find(resource);
  if (it == coordinator_.state().resources.end())
    return stream->finish(fail(Code::not_found, fmt::format("there is no resource '{}'", resource), "flotilla resource list shows them"));
  if (it->second.local()) {
    v1::TestStep step;
    step.set_name("name");
    step.set_status(v1::TestStep::OK);
    step.set_message("this machine; nothing to reach");
    stream->send(step);
    return stream->finish({});
  }
  const std::uint64_t id = ++last_test_;
  auto drop = [this, id] {
    const auto test = tests_.find(id);
    if (test == tests_.end()) return;
    asio::post(coordinator_.io(), [old = std::shared_ptr<ResourceTest>(std::move(test->second))] {});
    tests_.erase(test);
  };
  stream->on_gone = drop;
  tests_[id] = start_resource_test(
      services_for(it->second.spec), config_for(it->second.spec), [stream](v1::TestStep step) { stream->send(std::move(step)); },
      [stream, drop] {
        stream->finish({});
        drop();
      });
}

// ---- channels ---------------------------------------------------------------------------------------------------

void Hubs::open_channel(JobId job, NodeId node) {
  const auto pilot = coordinator_.state().pilots.find(node.pilot);
  if (pilot == coordinator_.state().pilots.end()) return;
  OpenChannel& open = open_[job.value];
  open.resource = pilot->second.spec.resource();
  open.node = node;
  const auto hub = hubs_.find(open.resource);
  if (hub == hubs_.end() || !hub->second.connected) return;  // when it is back
  ++open.epoch;
  open.opened = std::chrono::steady_clock::now();
  open.again.reset();
  ChannelRequest request;
  request.channel = job.value;
  request.epoch = open.epoch;
  request.ticket = random_bytes(32);
  request.peer = format_peer(node);
  v1::Frame frame;
  auto* expect = frame.mutable_expect_channel();
  expect->set_channel(request.channel);
  expect->set_epoch(request.epoch);
  expect->set_ticket(request.ticket);
  expect->set_peer(request.peer);
  hub->second.connection->send(std::move(frame));
  hub->second.connection->open_channel(request);
}

void Hubs::reopen_channel(std::uint64_t channel) {
  const auto it = open_.find(channel);
  if (it == open_.end() || !connected(it->second.resource)) return;
  OpenChannel& open = it->second;
  open.soon_broken = std::chrono::steady_clock::now() - open.opened < soon_broken_after ? open.soon_broken + 1 : 0;
  if (open.soon_broken <= 1) return open_channel(JobId{channel}, open.node);
  open.again = std::make_unique<asio::steady_timer>(coordinator_.io(), retry_after(std::min(open.soon_broken - 1, 5), longest_retry));
  open.again->async_wait([this, channel](boost::system::error_code code) {
    if (code) return;
    if (const auto here = open_.find(channel); here != open_.end()) open_channel(JobId{channel}, here->second.node);
  });
}

// The link works, else this would not have come: it takes the bytes. The next connection is tried as ever.
void Hubs::on_channel_refused(const v1::ChannelRefused& refused) {
  const auto it = open_.find(refused.channel());
  if (it == open_.end() || it->second.epoch != refused.epoch() || !connected(it->second.resource)) return;
  OpenChannel& open = it->second;
  spdlog::warn("the channel of job {} goes over the link, slower: {}", refused.channel(), refused.cause());
  ++open.epoch;
  open.opened = std::chrono::steady_clock::now();
  open.again.reset();
  channels_->open_frames(refused.channel(), open.epoch, random_bytes(32));
}

void Hubs::close_channel(JobId job) {
  open_.erase(job.value);
  channels_->remove(job.value);
}

void Hubs::retire_channel(JobId job) {
  const auto it = open_.find(job.value);
  if (it == open_.end()) return;
  // The last bytes are on their way; the client's own end is closed when they are through.
  auto timer = std::make_shared<asio::steady_timer>(coordinator_.io(), retired_channel_patience);
  timer->async_wait([this, job, timer](boost::system::error_code code) {
    if (!code) close_channel(job);
  });
}

std::vector<JobId> Hubs::open_channels() const {
  std::vector<JobId> jobs;
  for (const auto& [channel, open] : open_) jobs.push_back(JobId{channel});
  return jobs;
}

}  // namespace flotilla::daemon
