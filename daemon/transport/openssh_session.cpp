#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <list>
#include <set>

#include "daemon/transport/core/bootstrap.hpp"
#include "daemon/transport/core/ssh_words.hpp"
#include "daemon/transport/session.hpp"
#include "daemon/transport/spawn.hpp"
#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::daemon {
namespace {

namespace fs = std::filesystem;

constexpr auto login_patience = std::chrono::minutes(7);  // people answer questions in it
constexpr auto forward_patience = std::chrono::seconds(15);
constexpr auto first_word_patience = std::chrono::seconds(20);  // of an sshd behind a gateway
constexpr auto quiet_time = std::chrono::milliseconds(200);     // then what is owed on channels is acknowledged
constexpr std::size_t piece_bytes = 64u << 10;
constexpr std::size_t said_kept_bytes = 4096;
constexpr int early_ends_allowed = 3;  // of channels, without a byte

bool is_wait(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

Result<unique_fd> listen_on(const fs::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.string().size() >= sizeof address.sun_path) return fail(Code::failed_precondition, path.string() + " is too long for a socket");
  std::strcpy(address.sun_path, path.c_str());
  unique_fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(fd.get(), 8) != 0)
    return fail(errno_error(Code::internal, "listen on " + path.string()));
  return fd;
}

// A program's stdio, read line by line.
class ProcessCommand final : public RemoteCommand {
 public:
  ProcessCommand(ThreadControl& control, std::shared_ptr<Child> child, std::string place, std::string first_errors)
      : control_(control), child_(std::move(child)), place_(std::move(place)) {
    add_errors(first_errors);
    fcntl(child_->stdio(), F_SETFL, O_NONBLOCK);
  }
  Result<std::string> read_line(Deadline deadline) override {
    for (;;) {
      if (const auto end = in_.find('\n'); end != std::string::npos) {
        auto line = in_.substr(0, end);
        in_.erase(0, end + 1);
        if (!line.empty() && line.back() == '\r') line.pop_back();
        return line;
      }
      if (auto more = turn(POLLIN, deadline); !more) return fail(more.error());
    }
  }
  Status write(std::string_view data, Deadline deadline, const std::function<bool(std::size_t)>& progress) override {
    for (std::size_t done = 0; done < data.size();) {
      const auto count =
          ::send(child_->stdio(), data.data() + done, std::min(data.size() - done, piece_bytes), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count > 0) {
        done += static_cast<std::size_t>(count);
        take_input();
        if (progress && !progress(done)) return {};
      } else if (count < 0 && errno == EINTR) {
        continue;
      } else if (count < 0 && is_wait(errno)) {
        if (auto more = turn(POLLIN | POLLOUT, deadline); !more) return fail(more.error());
      } else {
        return fail(ended());
      }
    }
    return {};
  }
  std::shared_ptr<Child> child() const { return child_; }
  std::string take_rest() { return std::move(in_); }

 private:
  Status turn(short events, Deadline deadline) {
    pollfd polled[3]{{control_.wake_fd(), POLLIN, 0}, {child_->stdio(), events, 0}, {child_->errors(), POLLIN, 0}};
    if (errors_ended_) polled[2].fd = -1;
    const int ready = ::poll(polled, 3, milliseconds_until(deadline));
    if (control_.stopping()) return fail(stopped_error());
    if (ready == 0) return fail(timeout_error("no answer came from " + place_ + " in time"));
    if (ready < 0) return {};
    if (polled[0].revents) control_.run_tasks();
    if (polled[2].revents) take_errors();
    if (polled[1].revents & (POLLIN | POLLHUP | POLLERR))
      if (!take_input()) return fail(ended());
    return {};
  }
  void take_errors() {
    char buffer[4096];
    for (;;) {
      const auto count = ::read(child_->errors(), buffer, sizeof buffer);
      if (count > 0) add_errors({buffer, static_cast<std::size_t>(count)});
      else {
        errors_ended_ = count == 0 || !is_wait(errno);
        return;
      }
    }
  }
  bool take_input() {
    char buffer[4096];
    for (;;) {
      const auto count = ::recv(child_->stdio(), buffer, sizeof buffer, MSG_DONTWAIT);
      if (count > 0) in_.append(buffer, static_cast<std::size_t>(count));
      else return count < 0 && is_wait(errno);
      if (has_line()) return true;  // what follows the line may be for somebody else
    }
  }
  // Its exit status follows the end of its stdout.
  Error ended() {
    pollfd exited{child_->exited_fd(), POLLIN, 0};
    ::poll(&exited, 1, static_cast<int>(std::chrono::milliseconds(last_words_patience).count()));
    if (!errors_ended_) take_errors();
    const auto status = child_->ended();
    const auto said = stderr_tail();
    return {
        Code::unavailable,
        "the command on " + place_ + " ended" + (status ? " (" + describe_status(*status) + ")" : "") + (said.empty() ? "" : ": " + said),
        {},
        Retry::yes,
        {}};
  }

  ThreadControl& control_;
  std::shared_ptr<Child> child_;
  std::string place_;
  bool errors_ended_ = false;
};

// Two sockets joined in both directions; each end of file is passed on.
struct Relay {
  struct Way {
    std::string waiting;
    bool ended = false, passed_on = false;
  };
  unique_fd local;
  std::shared_ptr<Child> child;
  Way up, down;                      // up: local -> child
  std::function<void(Status)> done;  // told at the first byte from the child
  Deadline silent_until = Deadline::max();
  std::string host;  // of a TCP stream
  int port = 0;
  std::string dialer;  // what to try when the child fails before a byte came
  bool over() const { return up.passed_on && down.passed_on; }

  static bool pump(int from, int to, Way& way, bool keep_open = false) {
    char buffer[piece_bytes];
    bool moved = false;
    for (int round = 0; round < 8; ++round) {
      if (way.waiting.empty() && !way.ended) {
        const auto count = ::recv(from, buffer, sizeof buffer, MSG_DONTWAIT);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && is_wait(errno)) break;
        if (count <= 0) way.ended = true;
        else way.waiting.assign(buffer, static_cast<std::size_t>(count));
      }
      while (!way.waiting.empty()) {
        const auto count = ::send(to, way.waiting.data(), way.waiting.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && is_wait(errno)) return moved;
        if (count < 0) {
          way.waiting.clear();
          way.ended = true;
          break;
        }
        moved = true;
        way.waiting.erase(0, static_cast<std::size_t>(count));
      }
      if (way.ended) {
        if (keep_open) break;
        if (!way.passed_on) ::shutdown(to, SHUT_WR);
        way.passed_on = true;
        break;
      }
    }
    return moved;
  }
};

// The wire of a resumable channel, through the master's forwarding.
class SocketWire final : public ChannelWire {
 public:
  SocketWire(std::shared_ptr<UserChannel> user, unique_fd fd, std::shared_ptr<ThreadControl> control)
      : user(std::move(user)), fd(std::move(fd)), control_(std::move(control)) {}
  ~SocketWire() { user->detach(this, "the connection to the resource ended"); }
  long write(const iovec* pieces, int count) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(pieces);
    message.msg_iovlen = static_cast<std::size_t>(count);
    const auto written = ::sendmsg(fd.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (written >= 0) return written;
    if (!is_wait(errno) && errno != EINTR) return -1;
    blocked = true;
    return 0;
  }
  // False: it ended.
  bool read() {
    char buffer[piece_bytes];
    for (int round = 0; round < 8; ++round) {
      if (!rest.empty()) {
        rest.erase(0, user->on_wire_bytes(this, rest));
        if (!rest.empty()) return true;
      }
      const auto count = ::recv(fd.get(), buffer, sizeof buffer, MSG_DONTWAIT);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && is_wait(errno)) return true;
      if (count <= 0) return false;
      came = true;
      const auto taken = user->on_wire_bytes(this, {buffer, static_cast<std::size_t>(count)});
      if (taken < static_cast<std::size_t>(count)) rest.assign(buffer + taken, static_cast<std::size_t>(count) - taken);
    }
    return true;
  }
  short events() const { return static_cast<short>((rest.empty() ? POLLIN : 0) | (blocked ? POLLOUT : 0)); }
  void wake() override { control_->wake(); }

  std::shared_ptr<UserChannel> user;
  unique_fd fd;
  std::string rest;
  bool blocked = false, came = false;

 private:
  std::shared_ptr<ThreadControl> control_;
};

class OpensshSession final : public Session {
 public:
  OpensshSession(SessionServices services, SessionConfig config) : services_(std::move(services)), config_(std::move(config)) {}
  ~OpensshSession() override {
    wires_.clear();
    for (auto& each : relays_)
      if (each.done) each.done(fail(Code::unavailable, "the gateway's connection ended", {}, Retry::yes));
    relays_.clear();
    master_.reset();
    if (!directory_.empty()) {
      std::error_code ignored;
      fs::remove_all(directory_, ignored);
    }
  }

  Status connect(Observer& observer) override {
    if (auto prepared = prepare(); !prepared) return prepared;
    observer.skip(Step::name, "the system's ssh looks it up");
    observer.begin(Step::reachability, "starting ssh");
    std::optional<unique_fd> through;
    if (config_.through_gateway) {
      // The gateway's connection must be there before ssh asks for it.
      auto target = real_target();
      auto stream = dial_through_gateway(services_, target.first, target.second);
      if (!stream) return fail(stream.error());
      through = std::move(*stream);
    }
    auto* prompter = services_.prompter;
    auto accepts =
        services_.control->await<bool>([prompter, resource = config_.resource](
                                           std::function<void(Result<bool>)> done) { done(prompter->accepts_new_host_keys(resource)); },
                                       after(forward_patience));
    if (!accepts) return fail(accepts.error());

    std::vector<std::string> argv = base({"-M",
                                          "-o",
                                          "ControlMaster=yes",
                                          "-o",
                                          "ControlPersist=no",
                                          "-o",
                                          "BatchMode=no",
                                          "-o",
                                          "NumberOfPasswordPrompts=3",
                                          "-o",
                                          "ServerAliveInterval=15",
                                          "-o",
                                          "ServerAliveCountMax=3",
                                          "-o",
                                          "ClearAllForwardings=yes",
                                          "-o",
                                          "ConnectTimeout=20",
                                          "-o",
                                          "TCPKeepAlive=yes",
                                          "-o",
                                          std::string("StrictHostKeyChecking=") + (*accepts ? "accept-new" : "ask")});
    if (through) {
      argv.insert(argv.end(), {"-o", "ProxyUseFdpass=yes", "-o",
                               "ProxyCommand=" + sh_quote(config_.agent.string()) + " pass-fd " + sh_quote((directory_ / "gw").string())});
    }
    finish(argv, "exec /bin/sh");
    std::vector<std::string> env{"SSH_ASKPASS=" + (directory_ / "ask.sh").string(), "SSH_ASKPASS_REQUIRE=force"};
    if (!std::getenv("DISPLAY")) env.push_back("DISPLAY=:0");  // older ones ask for it before they use SSH_ASKPASS
    auto child = Child::start(argv, env, Child::Errors::piped);
    if (!child)
      return fail(Code::not_found, "cannot start the system's ssh: " + child.error().message,
                  "install openssh-client, or use the transport libssh");
    master_ = std::move(*child);
    return log_in(observer, std::move(through));
  }

  Result<std::unique_ptr<RemoteCommand>> run(const std::string& command, Deadline) override {
    // The master itself carries the first command: it ends with its stdin, so it never outlives this program.
    if (!std::exchange(first_taken_, true) && command == "exec /bin/sh")
      return std::make_unique<ProcessCommand>(*services_.control, master_, where(), said_);
    auto child = Child::start(client(command), {}, Child::Errors::piped);
    if (!child) return fail(child.error());
    return std::make_unique<ProcessCommand>(*services_.control, std::shared_ptr<Child>(std::move(*child)), where(), "");
  }

  Error serve(std::unique_ptr<RemoteCommand> connector, unique_fd link, const std::string& channel_socket) override {
    channel_socket_ = channel_socket;
    auto& command = static_cast<ProcessCommand&>(*connector);
    Relay relay;
    relay.local = std::move(link);
    relay.child = command.child();
    relay.down.waiting = command.take_rest();
    relays_.push_front(std::move(relay));
    auto& first = relays_.front();
    std::string said;
    auto quiet_at = Deadline::max();
    bool listens = true;
    for (;;) {
      std::vector<pollfd> polled{
          {services_.control->wake_fd(), POLLIN, 0}, {listens ? first.child->errors() : -1, POLLIN, 0}, {master_->exited_fd(), POLLIN, 0}};
      for (auto& each : relays_) {
        short local = 0, remote = 0;
        if (!each.done && !each.up.ended && each.up.waiting.empty()) local |= POLLIN;
        if (!each.up.waiting.empty()) remote |= POLLOUT;
        if (!each.down.ended && each.down.waiting.empty()) remote |= POLLIN;
        if (!each.down.waiting.empty()) local |= POLLOUT;
        polled.push_back({local ? each.local.get() : -1, local, 0});
        polled.push_back({remote ? each.child->stdio() : -1, remote, 0});
      }
      const auto wires_at = polled.size();
      std::vector<SocketWire*> wires;
      for (auto& each : wires_) {
        wires.push_back(each.get());
        const short user = each->user->user_events(), events = each->events();
        polled.push_back({events ? each->fd.get() : -1, events, 0});
        polled.push_back({user ? each->user->user_fd() : -1, user, 0});
      }
      auto next = quiet_at;
      for (const auto& each : relays_)
        if (each.done) next = std::min(next, each.silent_until);
      const int ready = ::poll(polled.data(), polled.size(), next == Deadline::max() ? -1 : milliseconds_until(next));
      if (services_.control->stopping()) return stopped_error();
      if (ready < 0 && errno != EINTR) return errno_error(Code::internal, "wait for the network");
      if (ready > 0) {
        for (std::size_t i = 0; i < wires.size(); ++i) {
          auto& wire = *wires[i];
          const short from_wire = polled[wires_at + 2 * i].revents, from_user = polled[wires_at + 2 * i + 1].revents;
          if (from_user) wire.user->on_user_ready(from_user);
          if (wire.blocked && (from_wire & POLLOUT)) {
            wire.blocked = false;
            wire.user->on_wire_writable(&wire);
          }
          bool there = true;
          if ((from_wire & (POLLIN | POLLHUP | POLLERR)) || (!wire.rest.empty() && from_user)) there = wire.read();
          // ssh takes the connection before it knows whether the other side forwards, and says so before it closes it. Where it is
          // told to say nothing, several such ends are the sign. The next opening then goes by frames.
          if (!there && !wire.came && !forwarding_worked_) {
            listens = listens && take_errors(*first.child, said);
            forwarding_forbidden_ = says_forwarding_forbidden(said) || ++early_ends_ >= early_ends_allowed;
          }
          if (!there) wire.user->detach(&wire, forwarding_forbidden_ ? "forwarding is refused" : "the hub closed the connection");
          forwarding_worked_ = forwarding_worked_ || wire.came;
        }
        wires_.remove_if([](const auto& each) { return !each->user->attached(each.get()); });
        for (auto& each : relays_) {
          // An sshd speaks first: until it has, another way may have to be found, and nothing is lost.
          if (!each.done) Relay::pump(each.local.get(), each.child->stdio(), each.up);
          const bool came = Relay::pump(each.child->stdio(), each.local.get(), each.down, static_cast<bool>(each.done));
          if (came && each.done) std::exchange(each.done, nullptr)({});
          if (each.down.ended && each.done) try_dialer(each);
        }
        const bool link_over = first.up.ended || first.down.ended;
        if (polled[1].revents) listens = take_errors(*first.child, said);
        if (link_over || polled[2].revents) {
          while (!said.empty() && (said.back() == '\n' || said.back() == '\r')) said.pop_back();
          return {Code::unavailable, "the connection to " + where() + " ended" + (said.empty() ? "" : ": " + said), {}, Retry::yes, {}};
        }
        if (polled[0].revents) services_.control->run_tasks();
      }
      const auto now = std::chrono::steady_clock::now();
      for (auto& each : relays_)
        if (each.done && now >= each.silent_until) refuse(each, gateway_cannot_reach(where(), each.host, each.port, said_nothing));
      relays_.remove_if([&](const Relay& each) { return &each != &first && each.over(); });
      const bool owes = std::any_of(wires_.begin(), wires_.end(), [](const auto& each) { return each->user->owes(); });
      if (!owes) quiet_at = Deadline::max();
      else if (quiet_at == Deadline::max()) quiet_at = now + quiet_time;
      else if (now >= quiet_at) {
        for (auto& each : wires_)
          if (each->user->owes()) each->user->on_quiet();
        quiet_at = Deadline::max();
      }
    }
  }

  // The master carries the connector itself and ends with it.
  bool outlived_its_hub() const override { return false; }

  void open_channel(std::shared_ptr<UserChannel> channel, std::uint32_t epoch, const std::string& ticket) override {
    const auto local = directory_ / "ch";
    if (forwarding_forbidden_) return channel->forwarding_failed(epoch, ticket);
    if (!forwarded_) {
      auto forwarded = forward(local);
      if (!forwarded) {
        spdlog::info("{}: channels cannot be forwarded: {}", where(), forwarded.error().text());
        return channel->forwarding_failed(epoch, ticket);
      }
      forwarded_ = true;
    }
    auto fd = channel::connect_unix(local);
    if (!fd) {
      spdlog::info("{}: channel {} cannot be forwarded: {}", where(), channel->number(), fd.error().text());
      return channel->forwarding_failed(epoch, ticket);
    }
    wires_.push_back(std::make_unique<SocketWire>(channel, std::move(*fd), services_.control));
    if (auto status = channel->attach(wires_.back().get(), epoch, ticket); !status) wires_.pop_back();
  }

  void open_tcp(const std::string& host, int port, const std::string& dialer, unique_fd local, std::function<void(Status)> done) override {
    auto argv = base({"-o", "ControlMaster=no", "-o", "BatchMode=yes", "-o", "ProxyCommand=false", "-W",
                      (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(port)});
    finish(argv, "");
    auto child = Child::start(argv, {}, Child::Errors::dropped);
    if (!child) return done(fail(child.error()));
    Relay relay;
    relay.local = std::move(local);
    relay.child = std::move(*child);
    relay.done = std::move(done);
    relay.silent_until = after(first_word_patience);
    relay.host = host;
    relay.port = port;
    relay.dialer = dialer;
    relays_.push_back(std::move(relay));
  }

 private:
  std::string where() const { return config_.resource + " (" + format_location(config_.location) + ")"; }

  Status prepare() {
    if (auto made = make_private_dir(runtime_dir()); !made) return made;
    auto pattern = (runtime_dir() / "ssh-XXXXXX").string();
    if (!mkdtemp(pattern.data())) return fail(errno_error(Code::permission_denied, "make a directory in " + runtime_dir().string()));
    directory_ = pattern;
    const auto script =
        "#!/bin/sh\nexec " + sh_quote(config_.agent.string()) + " ask " + sh_quote((directory_ / "ask").string()) + " \"$1\"\n";
    if (auto written = write_file(directory_ / "ask.sh", script, 0700); !written) return written;
    auto ask = listen_on(directory_ / "ask");
    if (!ask) return fail(ask.error());
    ask_ = std::move(*ask);
    auto gateway = listen_on(directory_ / "gw");
    if (!gateway) return fail(gateway.error());
    gateway_ = std::move(*gateway);
    return {};
  }

  std::vector<std::string> base(const std::vector<std::string>& options) const {
    std::vector<std::string> argv{"ssh", "-T",
                                  "-S",  (directory_ / "ctl").string(),
                                  "-o",  "RequestTTY=no",
                                  "-o",  "RemoteCommand=none",
                                  "-o",  "PermitLocalCommand=no",
                                  "-o",  "EscapeChar=none",
                                  "-o",  "StreamLocalBindMask=0177"};
    if (!config_.ssh_config.empty()) argv.insert(argv.end(), {"-F", config_.ssh_config});
    argv.insert(argv.end(), options.begin(), options.end());
    return argv;
  }
  void finish(std::vector<std::string>& argv, const std::string& command) const {
    if (!config_.location.user.empty()) argv.insert(argv.end(), {"-l", config_.location.user});
    if (config_.location.port) argv.insert(argv.end(), {"-p", std::to_string(config_.location.port)});
    argv.insert(argv.end(), {"--", config_.location.host});
    if (!command.empty()) argv.push_back(command);
  }
  // A command through the master; without the master it must fail, not log in by itself.
  std::vector<std::string> client(const std::string& command) const {
    auto argv = base({"-o", "ControlMaster=no", "-o", "BatchMode=yes", "-o", "ProxyCommand=false"});
    finish(argv, command);
    return argv;
  }

  // What ~/.ssh/config makes of the location: the gateway is told the real name.
  std::pair<std::string, int> real_target() {
    std::pair<std::string, int> target{config_.location.host, config_.location.port ? config_.location.port : 22};
    auto argv = base({"-G"});
    finish(argv, "");
    auto child = Child::start(argv, {}, Child::Errors::dropped);
    if (!child) return target;
    ProcessCommand out(*services_.control, std::shared_ptr<Child>(std::move(*child)), where(), "");
    for (auto line = out.read_line(after(forward_patience)); line; line = out.read_line(after(forward_patience))) {
      if (line->starts_with("hostname ")) target.first = line->substr(9);
      if (line->starts_with("port ")) target.second = std::atoi(line->c_str() + 5);
    }
    return target;
  }

  // Waits for the master's control socket, which it makes when it is logged in, and answers its questions meanwhile.
  Status log_in(Observer& observer, std::optional<unique_fd> through) {
    unique_fd watch(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!watch || inotify_add_watch(watch.get(), directory_.c_str(), IN_CREATE | IN_MOVED_TO) < 0)
      return fail(errno_error(Code::internal, "watch " + directory_.string()));
    const auto deadline = after(login_patience);
    bool listens = true;
    auto& control = *services_.control;
    std::error_code ignored;
    while (!fs::exists(directory_ / "ctl", ignored)) {
      pollfd polled[]{{control.wake_fd(), POLLIN, 0},    {watch.get(), POLLIN, 0}, {listens ? master_->errors() : -1, POLLIN, 0},
                      {master_->exited_fd(), POLLIN, 0}, {ask_.get(), POLLIN, 0},  {gateway_.get(), POLLIN, 0}};
      const int ready = ::poll(polled, std::size(polled), milliseconds_until(deadline));
      if (control.stopping()) return fail(stopped_error());
      if (ready < 0 && errno != EINTR) return fail(errno_error(Code::internal, "wait for ssh"));
      if (ready < 0) continue;
      if (ready == 0) return fail(timeout_error("the login on " + where() + " took too long"));
      if (polled[0].revents) control.run_tasks();
      if (polled[1].revents) {
        alignas(inotify_event) char events[4096];
        [[maybe_unused]] auto got = ::read(watch.get(), events, sizeof events);
      }
      if (polled[2].revents) listens = take_errors(*master_, said_);
      if (polled[4].revents)
        if (auto answered = answer_question(observer); !answered) return answered;
      if (polled[5].revents) {
        unique_fd asker(accept4(gateway_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (asker && through && channel::check_peer_uid(asker.get())) {
          (void)channel::send_fds(asker.get(), "f", {through->get()});
          through.reset();
        }
      }
      if (polled[3].revents && master_->ended()) {
        if (listens) take_errors(*master_, said_);
        return fail(explain(observer));
      }
    }
    tick_off(observer, Step::reachability);
    tick_off(observer, Step::host_key);
    observer.done(Step::authentication, "logged in by the system's ssh");
    return {};
  }

  // What must have gone well, as ssh is further than that; said once.
  void tick_off(Observer& observer, Step step) {
    if (ticked_off_.insert(step).second) observer.done(step, step == Step::reachability ? "ssh has connected" : "ssh has checked it");
  }

  Error explain(Observer& observer) {
    if (question_error_) return *question_error_;
    auto verdict = judge_ssh_failure(said_, where(), config_.resource);
    const auto until = static_cast<int>(verdict.where);
    if (until > static_cast<int>(SshFailure::reachability)) tick_off(observer, Step::reachability);
    if (verdict.where == SshFailure::authentication) tick_off(observer, Step::host_key);
    switch (verdict.where) {
      case SshFailure::name: observer.begin(Step::name, "looking up the host"); break;
      case SshFailure::host_key: observer.begin(Step::host_key, "checking the host key"); break;
      case SshFailure::authentication: observer.begin(Step::authentication, "logging in"); break;
      default: break;
    }
    return verdict.error;
  }

  // All that is there. False: no more will come.
  static bool take_errors(Child& child, std::string& said) {
    char buffer[4096];
    for (;;) {
      const auto count = ::read(child.errors(), buffer, sizeof buffer);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return count < 0 && is_wait(errno);
      said.append(buffer, static_cast<std::size_t>(count));
      if (said.size() > said_kept_bytes) said.erase(0, said.size() - said_kept_bytes);
    }
  }

  Status answer_question(Observer& observer) {
    unique_fd asker(accept4(ask_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!asker) return {};
    if (!channel::check_peer_uid(asker.get())) return {};
    std::string text;
    for (;;) {
      auto ready = services_.control->wait(asker.get(), POLLIN, after(forward_patience));
      if (!ready) return fail(ready.error());
      char buffer[4096];
      const auto count = ::recv(asker.get(), buffer, sizeof buffer, MSG_DONTWAIT);
      if (count > 0) text.append(buffer, static_cast<std::size_t>(count));
      else if (*ready == 0 || count == 0 || !is_wait(errno)) break;
    }
    const auto newline = text.find('\n');
    const auto kind = text.substr(0, newline);
    text = newline == std::string::npos ? "" : text.substr(newline + 1);
    if (kind == "none") return {};  // it only tells something
    auto prompt = parse_ssh_question(kind, text, config_.resource);
    tick_off(observer, Step::reachability);
    if (prompt.kind() != v1::PROMPT_HOST_KEY) tick_off(observer, Step::host_key);
    observer.begin(prompt.kind() == v1::PROMPT_HOST_KEY ? Step::host_key : Step::authentication, "waiting for an answer");
    if (prompt.kind() != v1::PROMPT_HOST_KEY) prompt.set_text(where() + ": " + text);
    auto answer = ask_user(services_, prompt);
    if (!answer) {
      if (services_.control->stopping()) return fail(answer.error());
      auto error = answer.error();
      if (prompt.kind() == v1::PROMPT_HOST_KEY) {
        error.code = Code::host_key_unknown;
        error.message = "the host key of " + where() + " is not known (" + prompt.fingerprint() + "): " + error.message;
        error.hint = accept_key_hint(config_.resource);
      }
      question_error_ = error;
      return {};  // the asker sees the end of its socket: refused
    }
    const auto reply = "y" + *answer;
    [[maybe_unused]] auto sent = ::send(asker.get(), reply.data(), reply.size(), MSG_NOSIGNAL);
    return {};
  }

  Status forward(const fs::path& local) {
    auto argv = base({"-O", "forward", "-L", local.string() + ":" + channel_socket_});
    finish(argv, "");
    auto child = Child::start(argv, {}, Child::Errors::piped);
    if (!child) return fail(child.error());
    auto ready = services_.control->wait((*child)->exited_fd(), POLLIN, after(forward_patience));
    if (!ready) return fail(ready.error());
    const auto status = (*child)->ended();
    if (!status) return fail(timeout_error("ssh does not answer"));
    if (*status == 0) return {};
    char buffer[1024];
    const auto count = ::read((*child)->errors(), buffer, sizeof buffer);
    return fail(Code::unavailable,
                "ssh refuses: " + (count > 0 ? std::string(buffer, static_cast<std::size_t>(count)) : describe_status(*status)));
  }

  void refuse(Relay& relay, Error error) {
    std::exchange(relay.done, nullptr)(fail(std::move(error)));
    relay.up.passed_on = relay.down.passed_on = true;
  }
  // Forwarding may be forbidden: the agent there dials.
  void try_dialer(Relay& relay) {
    auto dialer = std::exchange(relay.dialer, {});
    if (dialer.empty()) {
      std::string said;
      take_errors(*relay.child, said);
      return refuse(relay, gateway_cannot_reach(where(), relay.host, relay.port, said));
    }
    auto child = Child::start(client(dialer), {}, Child::Errors::piped);
    if (!child) return refuse(relay, child.error());
    relay.child = std::move(*child);
    relay.down = {};
    relay.silent_until = after(first_word_patience);
  }

  SessionServices services_;
  SessionConfig config_;
  fs::path directory_;
  unique_fd ask_, gateway_;
  std::shared_ptr<Child> master_;
  std::string said_, channel_socket_;
  std::optional<Error> question_error_;
  std::set<Step> ticked_off_;
  int early_ends_ = 0;
  bool first_taken_ = false, forwarded_ = false, forwarding_worked_ = false, forwarding_forbidden_ = false;
  std::list<Relay> relays_;
  std::list<std::unique_ptr<SocketWire>> wires_;
};

}  // namespace

std::unique_ptr<Session> make_openssh_session(SessionServices services, SessionConfig config) {
  return std::make_unique<OpensshSession>(std::move(services), std::move(config));
}

}  // namespace flotilla::daemon
