#include "hub/starter.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/utsname.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>

#include "hub/places.hpp"
#include "hub/spawn.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"

namespace flotilla::hub {
namespace {

namespace asio = boost::asio;
using asio::posix::stream_descriptor;
using boost::system::error_code;
using namespace std::chrono_literals;

constexpr std::size_t starts_at_once = 32;  // ssh clients on a front end that others use too
constexpr int ssh_connect_timeout_s = 3;    // three hosts that are silent, one after the other, are told of within 10 s
// A pilot that cannot start is reported within 10 s (a host that is down: the first of these).
constexpr auto login_limit = 8s;
constexpr auto pilot_limit = 12s;   // the pilot itself gives up after 10 s
constexpr auto store_limit = 120s;  // 14 MB to a node over a slow network
constexpr std::size_t output_limit = 64u << 10;
constexpr std::size_t stderr_tail_bytes = 4096;

}  // namespace

// One start of one node: a chain of one to four processes, one at a time.
class Starter::Attempt : public std::enable_shared_from_this<Starter::Attempt> {
 public:
  Attempt(Starter& owner, StartOrder order)
      : owner_(owner), order_(std::move(order)), in_(owner.io_), out_(owner.io_), err_(owner.io_), process_(owner.io_), timer_(owner.io_) {}
  ~Attempt() { kill_child(); }

  void begin() {
    if (order_.host.empty()) begin_beside();
    else if (auto good = check_host(order_.host); !good) finish_failed(good.error().message, false);
    else begin_login();
  }
  void cancel() { finish_failed("it was stopped while it started", false); }
  void leave() {  // the owner goes
    over_ = true;
    kill_child();
    close_all();
  }

 private:
  enum class Step { beside, login, store, pilot };

  void begin_beside() {
    step_ = Step::beside;
    auto text = owner_.services_.make_start(order_, {});
    if (!text) return finish_failed(text.error().text(), false);
    if (!run(own_program().string(), {"flotilla-agent", "pilot"}, {}, pilot_limit)) return;
    feed(std::move(*text));
  }
  void begin_login() {
    step_ = Step::login;
    run("ssh", ssh_argv(order_.host, ssh_connect_timeout_s, start_command(owner_.agent())), {}, login_limit);
  }
  void begin_store() {
    step_ = Step::store;
    spdlog::info("the agent is carried to {}", order_.host);
    unique_fd program(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    if (!program) return finish_failed(errno_error(Code::unavailable, "read the agent's own file").message, false);
    stored_ = true;
    run("ssh", ssh_argv(order_.host, ssh_connect_timeout_s, store_command(owner_.agent())), std::move(program), store_limit);
  }

  // `stdin_fd`: what the child reads; none = a pipe that is fed. False: it has failed, and that was reported.
  bool run(const std::string& program, std::vector<std::string> argv, unique_fd stdin_fd, std::chrono::milliseconds limit) {
    close_all();
    out_text_.clear();
    err_text_.clear();
    out_seen_ = 0;
    auto in = make_pipe();
    auto out = make_pipe();
    auto err = make_pipe();
    if (!in || !out || !err) {
      finish_failed("the hub has no descriptors left", false);
      return false;
    }
    Spawn what;
    what.program = program;
    what.argv = std::move(argv);
    what.env = owner_.services_.env;
    what.in = stdin_fd ? stdin_fd.get() : in->read.get();
    what.out = out->write.get();
    what.err = err->write.get();
    auto child = spawn(what);
    if (!child) {
      finish_failed(child.error().message + " on " + host_name(), false);
      return false;
    }
    child_ = std::move(*child);
    ++run_;
    if (!stdin_fd) in_.assign(in->write.release());
    out_.assign(out->read.release());
    err_.assign(err->read.release());
    process_.assign(dup_fd(child_.pidfd.get()));
    read(out_, out_text_);
    read(err_, err_text_);
    wait_for_exit();
    set_limit(limit);
    return true;
  }
  static int dup_fd(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 3); }

  void set_limit(std::chrono::milliseconds limit) {
    timer_.expires_after(limit);
    timer_.async_wait([self = shared_from_this(), limit](const error_code& error) {
      if (error || self->over_) return;
      const auto seconds = std::to_string(limit.count() / 1000);
      const bool no_login = self->step_ == Step::login;
      self->finish_failed(no_login ? self->order_.host + " did not let us in within " + seconds + " s"
                                   : "nothing came from " + self->place() + " for " + seconds + " s while its pilot was started",
                          no_login);
    });
  }

  void read(stream_descriptor& from, std::string& into) {
    auto buffer = std::make_shared<std::array<char, 4096>>();
    from.async_read_some(asio::buffer(*buffer),
                         [self = shared_from_this(), &from, &into, buffer, run = run_](const error_code& error, std::size_t size) {
                           if (self->over_ || run != self->run_ || error) return;
                           into.append(buffer->data(), size);
                           if (into.size() > 2 * output_limit) into.erase(0, into.size() - output_limit);
                           if (&into == &self->out_text_) self->on_output();
                           if (!self->over_ && run == self->run_) self->read(from, into);
                         });
  }
  // What is there now; the pipes may stay open in processes that live on.
  void drain(stream_descriptor& from, std::string& into) {
    if (!from.is_open()) return;
    error_code error;
    from.non_blocking(true, error);
    char buffer[4096];
    for (;;) {
      const std::size_t size = from.read_some(asio::buffer(buffer), error);
      if (error || size == 0) return;
      into.append(buffer, size);
      if (into.size() > 2 * output_limit) into.erase(0, into.size() - output_limit);
    }
  }

  void on_output() {
    if (step_ == Step::beside || step_ == Step::pilot) return on_setup_lines();
    if (step_ != Step::login) return;
    for (;;) {
      const std::size_t end = out_text_.find('\n', out_seen_);
      if (end == std::string::npos) return;
      const auto line = parse_node_line(std::string_view(out_text_).substr(out_seen_, end - out_seen_));
      out_seen_ = end + 1;
      if (!line) continue;
      on_node_line(*line);
      return;
    }
  }
  void on_setup_lines() {
    for (std::size_t end; (end = out_text_.find('\n', out_seen_)) != std::string::npos;) {
      const auto setup = parse_setup_line(std::string_view(out_text_).substr(out_seen_, end - out_seen_));
      if (!setup) {
        out_seen_ = end + 1;
        continue;
      }
      out_text_.erase(out_seen_, end + 1 - out_seen_);  // there may be many
      const auto limit = std::chrono::milliseconds(setup->limit_ms);
      if (limit != setup_limit_) set_limit(pilot_limit + limit);
      setup_limit_ = limit;
      if (!setup->text.empty()) owner_.services_.on_progress(order_.node, setup->text + " on " + place());
    }
  }
  void on_node_line(const NodeLine& line) {
    utsname own{};
    uname(&own);
    if (line.machine != own.machine)
      return finish_failed(
          order_.host + " is a machine of another kind (" + line.machine + ") than " + host_name() + " (" + own.machine + ")", false);
    if (!line.have) {
      need_ = true;  // the session ends by itself; then the agent is carried there
      return;
    }
    auto text = owner_.services_.make_start(order_, line);
    if (!text) return finish_failed(text.error().text(), false);
    step_ = Step::pilot;
    set_limit(pilot_limit);
    feed(std::string(go_line) + *text);
  }

  void feed(std::string text) {
    auto kept = std::make_shared<std::string>(std::move(text));
    asio::async_write(in_, asio::buffer(*kept), [self = shared_from_this(), kept, run = run_](const error_code&, std::size_t) {
      if (run != self->run_) return;
      error_code ignored;
      self->in_.close(ignored);  // the end of file is part of the message; a child that died says more with its exit
    });
  }

  void wait_for_exit() {
    process_.async_wait(stream_descriptor::wait_read, [self = shared_from_this(), run = run_](const error_code& error) {
      if (error || self->over_ || run != self->run_) return;
      const ExitStatus status = reap(self->child_);
      self->child_ = {};
      self->drain(self->out_, self->out_text_);
      self->drain(self->err_, self->err_text_);
      if (self->step_ == Step::login) {
        self->on_output();
        if (self->over_) return;
      }
      self->on_exit(status);
    });
  }
  void on_exit(const ExitStatus& status) {
    timer_.cancel();
    if (step_ == Step::login && need_ && status.code == 0) {
      need_ = false;
      if (stored_) return finish_failed("the agent was brought to " + order_.host + " but does not run there", false, status);
      return begin_store();
    }
    if (step_ == Step::store) {
      if (status.code == 0 && out_text_.find("STORED ") != std::string::npos) return begin_login();
      return finish_failed("the agent could not be brought to " + order_.host + ": " + tail_of(err_text_, stderr_tail_bytes), false,
                           status);
    }
    if (status.code == 0) {
      for (std::size_t at = 0; at < out_text_.size();) {
        const std::size_t end = std::min(out_text_.find('\n', at), out_text_.size());
        if (const auto started = parse_started(std::string_view(out_text_).substr(at, end - at))) {
          StartResult result;
          result.ok = true;
          result.guard_pid = started->guard_pid;
          result.pid = started->pid;
          return finish(result);
        }
        at = end + 1;
      }
    }
    const bool ssh_failed = !order_.host.empty() && status.code == ssh_failed_code;
    finish_failed(describe_failure(place(), status.code, status.signal, err_text_), ssh_failed && step_ == Step::login, status);
  }
  std::string place() const { return order_.host.empty() ? host_name() : order_.host; }

  void finish_failed(std::string message, bool unreachable, ExitStatus status = {-1, 0}) {
    if (over_) return;
    drain(err_, err_text_);
    StartResult result;
    result.unreachable = unreachable;
    result.message = std::move(message);
    result.stderr_tail = tail_of(err_text_, stderr_tail_bytes);
    result.exit_code = status.code;
    finish(result);
  }
  void finish(const StartResult& result) {
    if (over_) return;
    over_ = true;
    const auto self = shared_from_this();
    kill_child();
    close_all();
    // In a turn of its own: begin() may fail inside the caller's start().
    asio::post(owner_.io_, [weak = std::weak_ptr(self), &owner = owner_, node = order_.node, result] {
      if (!weak.expired()) owner.done(node, result);
    });
  }
  void kill_child() {
    if (child_.pid == 0) return;
    kill(-child_.pid, SIGKILL);  // its group: ssh and what it started for a proxy
    reap(child_);
    child_ = {};
  }
  void close_all() {
    error_code ignored;
    timer_.cancel();
    for (auto* descriptor : {&in_, &out_, &err_, &process_}) descriptor->close(ignored);
  }

  Starter& owner_;
  StartOrder order_;
  Step step_ = Step::beside;
  Child child_;
  stream_descriptor in_, out_, err_, process_;
  asio::steady_timer timer_;
  std::string out_text_, err_text_;
  std::size_t out_seen_ = 0;
  std::chrono::milliseconds setup_limit_{0};  // while the setup lines run
  unsigned run_ = 0;                          // counts processes: handlers of an earlier one do nothing
  bool need_ = false, stored_ = false, over_ = false;
};

Starter::Starter(asio::io_context& io, StarterServices services) : io_(io), services_(std::move(services)) {}
Starter::~Starter() {
  for (auto& [node, attempt] : running_) attempt->leave();
}

void Starter::start(const StartOrder& order) {
  waiting_.push_back(order);
  next();
}

void Starter::next() {
  while (!waiting_.empty() && running_.size() < starts_at_once) {
    StartOrder order = std::move(waiting_.front());
    waiting_.pop_front();
    const NodeId node = order.node;
    auto attempt = std::make_shared<Attempt>(*this, std::move(order));
    running_[node] = attempt;
    attempt->begin();
  }
}

void Starter::cancel(NodeId node) {
  if (const auto it = running_.find(node); it != running_.end()) {
    it->second->cancel();
    return;
  }
  const auto it = std::find_if(waiting_.begin(), waiting_.end(), [&](const StartOrder& order) { return order.node == node; });
  if (it == waiting_.end()) return;
  waiting_.erase(it);
  StartResult result;
  result.message = "it was stopped before it started";
  services_.on_result(node, result);
}

void Starter::done(NodeId node, const StartResult& result) {
  running_.erase(node);
  services_.on_result(node, result);
  next();
}

const Agent& Starter::agent() {
  if (!agent_) {
    Agent agent;
    agent.path = own_program().string();
    agent.build = build_version();
    // Once in a hub's life, 14 MB: some 10 ms.
    if (auto bytes = read_file("/proc/self/exe")) agent.sha256 = to_hex(sha256(*bytes));
    agent_ = std::move(agent);
  }
  return *agent_;
}

}  // namespace flotilla::hub
