#include "daemon/transport/hub_connection.hpp"

#include <pthread.h>
#include <sys/socket.h>

#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <set>
#include <thread>

#include "daemon/transport/bring_agent.hpp"
#include "daemon/transport/channel_table_internal.hpp"
#include "daemon/transport/session.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/log.hpp"
#include "proto/base/random.hpp"
#include "proto/base/trial_hub.hpp"
#include "proto/base/version.hpp"
#include "proto/link/link.hpp"
#include "proto/tls/certificate.hpp"

namespace flotilla::daemon {
namespace {

constexpr auto hello_patience = std::chrono::seconds(20);
constexpr auto refusal_patience = std::chrono::seconds(2);    // for the hub to read why
constexpr auto farewell_patience = std::chrono::seconds(10);  // a hub of the test ends its things
// A hub that ended is started again in the session that is open, unless it does not live long: then with growing pauses.
constexpr auto early_end = std::chrono::seconds(10);
constexpr int early_ends_allowed = 3;
constexpr auto last_frames_patience = std::chrono::seconds(5);  // for the io thread to have read what the hub had said

// Remembers what was asked, so that the questions end with the connection.
class OwnPrompter final : public Prompter {
 public:
  explicit OwnPrompter(Prompter& to) : to_(to) {}
  ~OwnPrompter() {
    for (const auto token : open_) to_.withdraw(token);
  }
  std::uint64_t ask(v1::Prompt prompt, Answer answer) override {
    auto known = std::make_shared<std::uint64_t>(0);
    auto over = std::make_shared<bool>(false);
    std::weak_ptr<int> alive = alive_;
    *known = to_.ask(std::move(prompt), [this, known, over, alive, answer = std::move(answer)](Result<std::string> result) {
      *over = true;
      if (alive.lock()) open_.erase(*known);
      answer(std::move(result));
    });
    if (!*over) open_.insert(*known);
    return *known;
  }
  void withdraw(std::uint64_t token) override {
    if (open_.erase(token)) to_.withdraw(token);
  }
  bool accepts_new_host_keys(const std::string& resource) const override { return to_.accepts_new_host_keys(resource); }

 private:
  Prompter& to_;
  std::set<std::uint64_t> open_;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

std::thread start_thread(std::function<void()> body) {
  // Signals are the business of the program's other threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(body));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

// Shared by the connection and the test: the session's thread, and the link on the other side.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  struct Events {
    std::function<void(const v1::Hello&)> on_hello;
    std::function<void(v1::Frame)> on_frame;
    std::function<void()> on_room;
    std::function<void(const Error&)> on_hub_lost;  // may be empty: then the connection ends with its hub
    std::function<void(const Error&)> on_ended;
  };

  Connection(HubConnectionServices& services, std::shared_ptr<ThreadControl> control, HubConnectionConfig config, Events events,
             std::unique_ptr<Observer> observer, bool test)
      : io_(services.io), prompter_(services.prompter), control_(std::move(control)), config_(std::move(config)),
        events_(std::move(events)), observer_(std::move(observer)), test_(test), token_(random_hex(16)), timer_(services.io),
        dial_gateway_(services.dial_gateway) {}
  ~Connection() {
    timer_.cancel();
    server_.reset();
    link_.reset();
    control_->stop();
    if (!thread_.joinable()) return;
    if (control_->uninterruptible()) thread_.detach();  // it waits for a name server; it owns all that it uses
    else thread_.join();
  }

  bool connected() const { return !ended_ && hello_seen_ && link_ && link_->open(); }
  bool has_room() const { return connected() && link_->queued_bytes() < link::room_bytes; }
  void send(v1::Frame frame) {
    to_end_ = to_end_ || frame.has_end_hub();
    if (link_) link_->send(std::move(frame));
  }
  void abort_link() {
    if (link_) link_->abort();
  }

  void probe(std::chrono::milliseconds patience) {
    if (!hello_seen_ || ended_) return;
    if (const auto gone = control_->vanished_address(); !gone.empty())
      return give_up("this machine no longer has the address " + gone + " that the connection used");
    if (probing_) return;
    probing_ = true;
    heard_ = false;
    v1::Frame frame;
    frame.mutable_ping()->set_id(1);
    send(std::move(frame));
    timer_.expires_after(patience);
    timer_.async_wait([weak = weak_from_this()](boost::system::error_code canceled) {
      const auto self = weak.lock();
      if (canceled || !self) return;
      self->probing_ = false;
      if (!self->heard_) self->give_up("the hub does not answer since this machine's network changed");
    });
  }

  void start() {
    SessionConfig session;
    session.resource = config_.spec.name();
    auto location = parse_location(config_.spec.location());
    session.through_gateway = !config_.spec.gateway().empty();
    session.agent = config_.agent;
    if (const auto file = config_.spec.options().find("ssh_config"); file != config_.spec.options().end())
      session.ssh_config = file->second;
    if (location) session.location = *location;
    Status checked;
    if (!location) checked = fail(location.error());
    const bool openssh = config_.spec.transport() == "openssh";
    if (checked && !openssh && !config_.spec.transport().empty() && config_.spec.transport() != "libssh")
      checked = fail(Code::invalid_argument, "resource " + session.resource + ": there is no transport '" + config_.spec.transport() + "'",
                     "use libssh or openssh");

    auto job = std::make_shared<Job>();
    job->control = control_;
    job->services = {control_, &prompter_, dial_gateway_};
    job->session = session;
    job->openssh = openssh;
    job->checked = checked;
    job->observer = std::move(observer_);
    job->bring = {session.resource, config_.spec.scratch_dir(),   to_hex(config_.instance),
                  config_.agent,    config_.state_dir / "agents", test_};
    job->start.set_instance(config_.instance);
    job->start.set_hub_id(config_.hub_id);
    job->start.set_tls_ca(config_.tls_ca);
    job->start.set_tls_chain(config_.tls_chain);
    job->start.set_tls_key(config_.tls_key);
    job->start.set_scratch_dir(config_.spec.scratch_dir());
    job->start.set_link_token(token_);
    job->start.set_debug(config_.spec.debug());
    job->start.set_resource(session.resource);
    *job->start.mutable_env() = config_.spec.env();
    job->start.set_cutoff_ms(config_.cutoff_ms);
    *job->start.mutable_traces() = config_.traces;
    job->test = test_;
    job->owner = this;
    job_ = job;
    thread_ = start_thread([job] { job->run(); });
  }

  // Runs `task` on the thread with the session, while it serves; else it is dropped.
  void with_session(std::function<void(Session&, const std::string& agent)> task) {
    control_->post([job = job_, task = std::move(task)] {
      if (job->serving) task(*job->serving, job->agent);
    });
  }

 private:
  // What the thread owns.
  struct Job {
    std::shared_ptr<ThreadControl> control;
    SessionServices services;
    SessionConfig session;
    bool openssh = false, test = false;
    Status checked;
    std::unique_ptr<Observer> observer;
    BringRequest bring;
    v1::HubStart start;
    Connection* owner = nullptr;  // io thread only
    Session* serving = nullptr;
    std::string agent;  // its path there

    void run() {
      auto error = work();
      control->end_tasks();
      control->to_io([owner = owner, error] { owner->thread_ended(error); });
    }
    Error work() {
      if (!checked) return checked.error();
      auto session_owner = openssh ? make_openssh_session(services, session) : make_libssh_session(services, session);
      auto& ssh = *session_owner;
      if (auto status = ssh.connect(*observer); !status) return status.error();
      for (int early_ends = 0;;) {
        const auto began = std::chrono::steady_clock::now();
        auto error = serve_one_hub(ssh);
        if (!ssh.outlived_its_hub() || control->stopping()) return error;
        early_ends = std::chrono::steady_clock::now() - began < early_end ? early_ends + 1 : 0;
        if (early_ends >= early_ends_allowed) return error;
        const auto again = control->await<bool>(
            [owner = owner, error](std::function<void(Result<bool>)> answer) { owner->hub_lost(error, std::move(answer)); },
            after(last_frames_patience));
        if (!again || !*again) return error;
      }
    }
    Error serve_one_hub(Session& ssh) {
      auto brought = bring_agent(ssh, *control, *observer, bring);
      if (!brought) return brought.error();
      agent = brought->agent;
      auto hub = start_hub(*brought->connector, *observer, start);
      // A test leaves nothing there. What runs does not need its file, and with the connector the system's ssh ends.
      if (test && brought->uploaded && !control->stopping())
        if (auto removal = ssh.run(build_removal_command(agent), after(farewell_patience)); removal)
          (void)(*removal)->read_line(after(farewell_patience));
      Error error;
      if (hub) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
          return errno_error(Code::resource_exhausted, "make a socket pair");
        auto upper = std::make_shared<unique_fd>(pair[0]);
        unique_fd lower(pair[1]);
        serving = &ssh;
        control->to_io([owner = owner, upper, answer = *hub] { owner->hub_answered(answer, std::move(*upper)); });
        error = ssh.serve(std::move(brought->connector), std::move(lower), hub->channel_socket);
        serving = nullptr;
      } else {
        error = hub.error();
        brought->connector.reset();
      }
      return error;
    }
  };

  void hub_answered(const HubAnswer& answer, unique_fd upper) {
    hub_host_ = answer.host;
    link::Handlers handlers;
    handlers.on_open = [this](const link::LinkPtr& link) { link_ = link; };
    handlers.on_frame = [this](const link::LinkPtr&, v1::Frame frame) { on_frame(std::move(frame)); };
    handlers.on_closed = [this](const link::LinkPtr&, const std::string& cause) {
      spdlog::debug("resource {}: link closed: {}", config_.spec.name(), cause);
      link_closed_ = true;
      settle_lost_hub();
    };
    handlers.on_room = [this](const link::LinkPtr&) {
      if (events_.on_room) events_.on_room();
    };
    link_closed_ = to_end_ = false;
    server_ = std::make_unique<link::Server>(io_, std::move(handlers), link::keepalive_remote);
    server_->add_fd(std::move(upper));
    timer_.expires_after(hello_patience);
    timer_.async_wait([weak = weak_from_this()](boost::system::error_code error) {
      const auto self = weak.lock();
      if (error || !self || self->hello_seen_) return;
      self->refuse(timeout_error("the hub on " + self->hub_host_ + " said no hello in time"));
    });
  }

  void on_frame(v1::Frame frame) {
    heard_ = true;
    if (hello_seen_) {
      to_end_ = to_end_ || (frame.has_goodbye() && frame.peer().empty());
      events_.on_frame(std::move(frame));
      return;
    }
    if (refusal_) return;
    const auto& hello = frame.hello();
    if (!frame.has_hello() || !hello.has_hub() || !frame.peer().empty())
      return refuse({Code::internal, "the hub on " + hub_host_ + " did not begin with a hello", {}, Retry::yes, {}});
    if (hello.instance() != config_.instance || !equal_secret(hello.link_token(), token_))
      return refuse({Code::permission_denied, "what answers on " + hub_host_ + " is not the hub that was started", {}, Retry::yes, {}});
    if (hello.protocol() < protocol_minimum || hello.protocol_min() > protocol_version)
      return refuse({Code::version_mismatch,
                     "the hub on " + hub_host_ + " (build " + hello.build() + ") and this daemon (build " + build_version() +
                         ") have no protocol in common",
                     "stop its pilots, then end it with: flotilla resource remove " + config_.spec.name(),
                     Retry::no,
                     {}});
    hello_seen_ = true;
    timer_.cancel();
    v1::Frame answer;
    auto* welcome = answer.mutable_welcome();
    welcome->set_protocol(std::min(hello.protocol(), protocol_version));
    welcome->set_build(build_version());
    welcome->set_instance(config_.instance);
    welcome->set_debug(config_.spec.debug());
    send(std::move(answer));
    events_.on_hello(hello);
  }

  void refuse(Error error) {
    refusal_ = error;
    if (link_) {
      v1::Frame frame;
      frame.mutable_welcome()->set_error(error.message);
      frame.mutable_welcome()->set_build(build_version());
      link_->send(std::move(frame));
      link_->close();
    }
    // The hub ends with this, and its connection then; if not, it is ended from here.
    timer_.expires_after(refusal_patience);
    timer_.async_wait([weak = weak_from_this(), error](boost::system::error_code canceled) {
      const auto self = weak.lock();
      if (canceled || !self) return;
      self->control_->stop();
      self->thread_ended(error);
    });
  }

  void give_up(const std::string& cause) {
    control_->stop();
    thread_ended({Code::unavailable, cause, {}, Retry::yes, {}});
  }

  // The hub's end came before the session's. `answer`: whether another one is to be started in that, known when the last frame is read.
  void hub_lost(const Error& error, std::function<void(Result<bool>)> answer) {
    lost_.emplace(error, std::move(answer));
    settle_lost_hub();
  }
  void settle_lost_hub() {
    if (!lost_ || !link_closed_) return;
    auto [error, answer] = std::move(*lost_);
    lost_.reset();
    // Without a hello it never served.
    if (ended_ || refusal_ || !hello_seen_ || to_end_ || !events_.on_hub_lost) return answer(false);
    timer_.cancel();
    hello_seen_ = probing_ = false;
    link_.reset();
    events_.on_hub_lost(error);
    answer(true);
  }

  void thread_ended(const Error& error) {
    if (std::exchange(ended_, true)) return;
    timer_.cancel();
    auto on_ended = events_.on_ended;
    on_ended(refusal_ ? *refusal_ : error);
  }

  boost::asio::io_context& io_;
  OwnPrompter prompter_;
  std::shared_ptr<ThreadControl> control_;
  HubConnectionConfig config_;
  Events events_;
  std::unique_ptr<Observer> observer_;
  bool test_;
  std::string token_, hub_host_;
  boost::asio::steady_timer timer_;
  std::function<void(const std::string&, int, std::function<void(Result<unique_fd>)>)> dial_gateway_;
  std::unique_ptr<link::Server> server_;
  link::LinkPtr link_;
  bool hello_seen_ = false, ended_ = false;
  bool link_closed_ = false, to_end_ = false;
  std::optional<std::pair<Error, std::function<void(Result<bool>)>>> lost_;
  bool probing_ = false, heard_ = false;
  std::optional<Error> refusal_;
  std::shared_ptr<Job> job_;
  std::thread thread_;
};

// ---- the hub's connection -----------------------------------------------------------------------------------

class StateObserver final : public Observer {
 public:
  using Tell = std::function<void(v1::HubState, std::string, double)>;
  explicit StateObserver(Tell tell) : tell_(std::move(tell)) {}
  void begin(Step step, const std::string& message, double fraction) override {
    auto state = v1::HUB_CONNECTING;
    if (step == Step::authentication) state = v1::HUB_AUTHENTICATING;
    else if (step == Step::agent && fraction >= 0) state = v1::HUB_UPLOADING;
    else if (step > Step::authentication) state = v1::HUB_STARTING;
    tell_(state, message, fraction);
  }
  void done(Step step, const std::string& message) override { spdlog::debug("{}: {}", step_name(step), message); }
  void warn(Step step, const std::string& message, const std::string&) override { spdlog::warn("{}: {}", step_name(step), message); }
  void skip(Step, const std::string&) override {}

 private:
  Tell tell_;
};

class HubConnectionImpl final : public HubConnection {
 public:
  HubConnectionImpl(HubConnectionServices services, HubConnectionConfig config, HubConnectionEvents events)
      : io_(services.io), channels_(static_cast<ChannelTableInternal&>(services.channels)), name_(config.spec.name()) {
    Connection::Events inner;
    inner.on_hello = [on_state = events.on_state, on_connected = events.on_connected](const v1::Hello& hello) {
      if (on_state) on_state(v1::HUB_CONNECTED, "hub on " + hello.host() + ", build " + hello.build(), -1);
      if (on_connected) on_connected(hello);
    };
    inner.on_frame = [on_frame = events.on_frame](v1::Frame frame) {
      if (on_frame) on_frame(std::move(frame));
    };
    inner.on_room = events.on_room;
    if (events.on_hub_lost)
      inner.on_hub_lost = [this, on_hub_lost = events.on_hub_lost](const Error& error) {
        drop_frames(error.message);
        on_hub_lost(error);
      };
    inner.on_ended = [this, on_ended = events.on_ended](const Error& error) {
      drop_frames(error.message);
      if (on_ended) on_ended(error);
    };
    auto control = std::make_shared<ThreadControl>(services.io);
    // Called by the connection's thread.
    auto tell = [control, on_state = events.on_state](v1::HubState state, std::string message, double fraction) {
      control->to_io([on_state, state, message = std::move(message), fraction] {
        if (on_state) on_state(state, message, fraction);
      });
    };
    connection_ = std::make_shared<Connection>(services, control, std::move(config), std::move(inner),
                                               std::make_unique<StateObserver>(std::move(tell)), false);
  }
  ~HubConnectionImpl() override { drop_frames("the connection was closed"); }

  void start() override { connection_->start(); }
  void send(v1::Frame frame) override { connection_->send(std::move(frame)); }
  bool connected() const override { return connection_->connected(); }
  bool has_room() const override { return connection_->has_room(); }

  void open_channel(const ChannelRequest& request) override {
    auto channel = channels_.find(request.channel);
    if (!channel) return;
    opened_.insert(request.channel);
    connection_->with_session([channel, epoch = request.epoch, ticket = request.ticket](Session& session, const std::string&) {
      session.open_channel(channel, epoch, ticket);
    });
  }

  void probe(std::chrono::milliseconds patience) override { connection_->probe(patience); }

  void open_tcp(const std::string& host, int port, std::function<void(Result<unique_fd>)> done) override {
    const auto answer = [&](Error error) { boost::asio::post(io_, [done, error = std::move(error)] { done(fail(error)); }); };
    if (!connection_->connected())
      return answer({Code::unavailable, "the gateway " + name_ + " is not connected", "flotilla resource test " + name_, Retry::yes, {}});
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
      return answer(errno_error(Code::resource_exhausted, "make a socket pair"));
    auto ours = std::make_shared<unique_fd>(pair[0]);
    auto answered = std::make_shared<OneAnswer>(io_, unique_fd(pair[1]), done);
    connection_->with_session([=](Session& session, const std::string& agent) {
      const auto dialer = sh_quote(agent) + " dial " + sh_quote(host) + " " + std::to_string(port);
      session.open_tcp(host, port, dialer, std::move(*ours), [answered](Status status) { answered->give(std::move(status)); });
    });
  }

 private:
  // Tells `done` once, on the io thread, also when whoever was to say it is gone with its connection: nobody waits in vain.
  class OneAnswer {
   public:
    OneAnswer(boost::asio::io_context& io, unique_fd socket, std::function<void(Result<unique_fd>)> done)
        : io_(io), socket_(std::move(socket)), done_(std::move(done)) {}
    ~OneAnswer() { give(fail(Code::unavailable, "the gateway's connection ended", {}, Retry::yes)); }
    // From any thread, but from one at a time.
    void give(Status status) {
      if (!done_) return;
      auto socket = std::make_shared<unique_fd>(std::move(socket_));
      boost::asio::post(io_, [socket, done = std::exchange(done_, nullptr), status] {
        if (status) done(std::move(*socket));
        else done(fail(status.error()));
      });
    }

   private:
    boost::asio::io_context& io_;
    unique_fd socket_;
    std::function<void(Result<unique_fd>)> done_;
  };

  void drop_frames(const std::string& cause) {
    for (const auto number : opened_)
      if (auto channel = channels_.find(number)) channel->detach_frames(cause);
    opened_.clear();
  }

  boost::asio::io_context& io_;
  ChannelTableInternal& channels_;
  std::string name_;
  std::set<std::uint64_t> opened_;
  std::shared_ptr<Connection> connection_;
};

// ---- the test -------------------------------------------------------------------------------------------------

class TestObserver final : public Observer {
 public:
  TestObserver(std::shared_ptr<ThreadControl> control, std::function<void(v1::TestStep)> tell)
      : control_(std::move(control)), tell_(std::move(tell)) {}
  void begin(Step step, const std::string& message, double fraction) override {
    if (step != step_ || !began_) began_ = std::chrono::steady_clock::now();
    step_ = step;
    report(step, v1::TestStep::RUNNING, fraction < 0 ? message : message + " " + std::to_string(static_cast<int>(fraction * 100)) + " %",
           {});
  }
  void done(Step step, const std::string& message) override { report(step, v1::TestStep::OK, message, {}); }
  void warn(Step step, const std::string& message, const std::string& hint) override { report(step, v1::TestStep::WARNING, message, hint); }
  void skip(Step step, const std::string& message) override { report(step, v1::TestStep::SKIPPED, message, {}); }

 private:
  void report(Step step, v1::TestStep::Status status, const std::string& message, const std::string& hint) {
    v1::TestStep out;
    out.set_name(step_name(step));
    out.set_status(status);
    out.set_message(message);
    out.set_hint(hint);
    if (began_ && status != v1::TestStep::RUNNING && step == step_)
      out.set_took_ms(std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - *began_).count());
    control_->to_io([tell = tell_, out] { tell(out); });
  }
  std::shared_ptr<ThreadControl> control_;
  std::function<void(v1::TestStep)> tell_;
  Step step_ = Step::name;
  std::optional<std::chrono::steady_clock::time_point> began_;
};

class ResourceTestImpl final : public ResourceTest {
 public:
  ResourceTestImpl(HubConnectionServices services, HubConnectionConfig config, std::function<void(v1::TestStep)> on_step,
                   std::function<void()> on_done)
      : timer_(services.io), on_step_(std::move(on_step)), on_done_(std::move(on_done)) {
    // A hub of its own, which nobody else's pilots or daemon know, and whose files are not those of the resource's hub.
    config.instance = random_bytes(16);
    config.hub_id = std::string(trial_hub_prefix) + random_hex(8);
    const auto ca = tls::make_ca(config.instance, wall_ms());
    const auto hub = ca ? tls::issue_intermediate(*ca, config.hub_id, wall_ms()) : ca;
    if (hub) {
      config.tls_ca = ca->chain;
      config.tls_chain = hub->chain;
      config.tls_key = hub->key;
    } else {
      spdlog::error("no certificates for the test's hub: {}", hub.error().text());
    }
    Connection::Events inner;
    inner.on_hello = [this](const v1::Hello& hello) {
      hub_ = "started on " + hello.host() + " (build " + hello.build() + "), and ended again";
      v1::Frame frame;
      frame.mutable_end_hub()->set_stop_pilots(true);
      connection_->send(std::move(frame));
      timer_.expires_after(farewell_patience);
      timer_.async_wait([this, alive = std::weak_ptr(connection_)](boost::system::error_code error) {
        if (error || alive.expired()) return;
        late_ = true;
        connection_->abort_link();
      });
    };
    inner.on_frame = [](v1::Frame) {};
    inner.on_ended = [this](const Error& error) { ended(error); };
    auto control = std::make_shared<ThreadControl>(services.io);
    auto tell = [this](v1::TestStep step) {
      if (step.status() == v1::TestStep::RUNNING) running_ = step.name();
      else over_.insert(step.name());
      on_step_(std::move(step));
    };
    connection_ = std::make_shared<Connection>(services, control, std::move(config), std::move(inner),
                                               std::make_unique<TestObserver>(control, tell), true);
    connection_->start();
  }

 private:
  void ended(const Error& error) {
    timer_.cancel();
    v1::TestStep step;
    if (!hub_.empty()) {
      step.set_name(step_name(Step::hub));
      step.set_status(late_ ? v1::TestStep::WARNING : v1::TestStep::OK);
      step.set_message(late_ ? "the hub started, but did not end in time" : hub_);
      on_step_(step);
    } else {
      step.set_name(running_.empty() ? step_name(Step::name) : running_);
      step.set_status(v1::TestStep::FAILED);
      std::string message = error.message;
      for (const auto& fault : error.faults) message += "\n" + fault;
      step.set_message(message);
      step.set_hint(error.hint);
      over_.insert(step.name());
      on_step_(step);
      bool after_failure = false;
      for (int each = 0; each <= static_cast<int>(Step::hub); ++each) {
        const std::string name = step_name(static_cast<Step>(each));
        if (name == step.name()) after_failure = true;
        if (!after_failure || over_.count(name)) continue;
        v1::TestStep skipped;
        skipped.set_name(name);
        skipped.set_status(v1::TestStep::SKIPPED);
        on_step_(skipped);
      }
    }
    auto done = on_done_;
    done();
  }

  boost::asio::steady_timer timer_;
  std::function<void(v1::TestStep)> on_step_;
  std::function<void()> on_done_;
  std::string hub_, running_;
  std::set<std::string> over_;
  bool late_ = false;
  std::shared_ptr<Connection> connection_;
};

}  // namespace

std::unique_ptr<HubConnection> make_hub_connection(HubConnectionServices services, HubConnectionConfig config, HubConnectionEvents events) {
  return std::make_unique<HubConnectionImpl>(std::move(services), std::move(config), std::move(events));
}

std::unique_ptr<ResourceTest> start_resource_test(HubConnectionServices services, HubConnectionConfig config,
                                                  std::function<void(v1::TestStep)> on_step, std::function<void()> on_done) {
  return std::make_unique<ResourceTestImpl>(std::move(services), std::move(config), std::move(on_step), std::move(on_done));
}

}  // namespace flotilla::daemon
