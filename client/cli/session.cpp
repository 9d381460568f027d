#include "client/cli/session.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "client/cli/core/kept_input.hpp"
#include "client/cli/core/terminal_modes.hpp"
#include "client/cli/core/units.hpp"
#include "client/cli/daemon_start.hpp"
#include "client/cli/prompts.hpp"
#include "client/cli/terminal.hpp"

namespace flotilla::cli {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds why_after{500};          // shorter waits are not worth a line
constexpr milliseconds why_last_pause{60'000};  // without a terminal; doubled up to this
constexpr milliseconds why_every{2000};
constexpr milliseconds why_limit{1000};
constexpr milliseconds second_interrupt{2000};  // two Ctrl-C within this cancel the job
constexpr milliseconds held_key{300};           // a Ctrl-P alone goes on after this
constexpr milliseconds background_check{1000};  // does the terminal belong to us again?
constexpr milliseconds reconnect_step{50};
constexpr std::size_t stdin_piece = 64 * 1024;

constexpr int session_signals[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT};

sigset_t signal_set() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : session_signals) sigaddset(&set, number);
  return set;
}

void ring(const unique_fd& bell) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto n = write(bell.get(), &one, sizeof one);
}

// For a slot: in the queue, or at a pilot that has none free yet.
bool waits(const v1::Job& job) { return job.state() <= v1::JOB_QUEUED || (job.state() == v1::JOB_DISPATCHED && job.prefilled()); }

// One stream with its two threads. What it learns is read under its lock by the session.
class Connection {
 public:
  struct Offsets {
    std::uint64_t next[3] = {};  // by stream number: 1 stdout, 2 stderr
    bool known[3] = {};
  };
  Connection(DaemonClient& client, const v1::AttachOpen& open, const SessionOptions& options, Offsets& offsets, TerminalModes& modes,
             StatusLine& line, const unique_fd& bell)
      : options_(options), offsets_(offsets), modes_(modes), line_(line), bell_(bell), from_end_(open.from_end()),
        stream_(client.attach()) {
    v1::AttachInput first;
    *first.mutable_open() = open;
    stream_->write(first);  // when it fails, read() fails too, and finish() says why
    reader_ = std::thread([this] { read(); });
  }
  ~Connection() {
    {
      const std::scoped_lock lock(mutex_);
      closing_ = true;
    }
    stream_->cancel();
    changed_.notify_all();
    reader_.join();
    if (writer_.joinable()) writer_.join();
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void send(v1::AttachInput message) {
    const std::scoped_lock lock(mutex_);
    if (closing_) return;
    queued_bytes_ += message.stdin().size();
    queue_.push_back(std::move(message));
    if (!writer_.joinable()) writer_ = std::thread([this] { write(); });
    changed_.notify_all();
  }
  std::size_t queued_bytes() {
    const std::scoped_lock lock(mutex_);
    return queued_bytes_;
  }
  struct Seen {
    std::optional<v1::Job> job;
    std::optional<v1::ExitReason> exit;
    bool over = false;  // nothing more comes
    Status status;      // of the end
    bool lost = false;  // the connection broke
    bool output_closed = false;
    std::optional<std::uint64_t> stdin_next;
    std::uint64_t stdin_taken = 0;
  };
  Seen look() {
    const std::scoped_lock lock(mutex_);
    return seen_;
  }

 private:
  void read() {
    v1::AttachOutput message;
    while (stream_->read(message)) {
      if (message.has_output()) {
        if (!show(message.output())) {
          stream_->cancel();  // else the end would wait for what nobody reads
          const std::scoped_lock lock(mutex_);
          seen_.output_closed = true;
          break;
        }
        continue;
      }
      if (message.has_job() && std::exchange(from_end_, false)) {
        // Earlier output is not wanted: not after a reconnect either.
        offsets_.next[1] = message.job().stdout_bytes();
        offsets_.next[2] = message.job().stderr_bytes();
      }
      {
        const std::scoped_lock lock(mutex_);
        if (message.has_job()) seen_.job = message.job();
        if (message.has_end()) seen_.exit = message.end();
        if (message.body_case() == v1::AttachOutput::kStdinNext) seen_.stdin_next = message.stdin_next();
        if (message.body_case() == v1::AttachOutput::kStdinTaken) seen_.stdin_taken = message.stdin_taken();
        if (message.has_job() && !waits(message.job())) line_.clear();
      }
      ring(bell_);
    }
    const Status status = stream_->finish();
    {
      const std::scoped_lock lock(mutex_);
      seen_.over = true;
      seen_.status = status;
      seen_.lost = stream_->connection_lost();
      closing_ = true;
    }
    changed_.notify_all();
    ring(bell_);
  }

  bool show(const v1::OutputChunk& chunk) {
    const unsigned number = chunk.stream();
    if (number != 1 && number != 2) return true;
    std::string_view data = chunk.data();
    std::uint64_t& next = offsets_.next[number];
    if (offsets_.known[number] && chunk.offset() < next) {  // sent again after a reconnect
      const std::uint64_t twice = next - chunk.offset();
      if (twice >= data.size()) return true;
      data.remove_prefix(twice);
    }
    next = chunk.offset() + chunk.data().size();
    offsets_.known[number] = true;
    if (number == 1 ? !options_.want_stdout : !options_.want_stderr) return true;
    line_.clear();
    if (options_.raw_terminal) modes_.feed(data);
    return write_all(number == 1 ? STDOUT_FILENO : STDERR_FILENO, data);
  }

  void write() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return closing_ || !queue_.empty(); });
      if (closing_) return;
      const v1::AttachInput message = std::move(queue_.front());
      queue_.pop_front();
      const std::size_t bytes = message.stdin().size();
      lock.unlock();
      const bool taken = stream_->write(message);
      lock.lock();
      queued_bytes_ -= bytes;
      if (!taken) return;
    }
  }

  const SessionOptions& options_;
  Offsets& offsets_;
  TerminalModes& modes_;
  StatusLine& line_;
  const unique_fd& bell_;
  bool from_end_;  // until the first message; of the reader
  std::unique_ptr<AttachStream> stream_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::AttachInput> queue_;
  std::size_t queued_bytes_ = 0;
  bool closing_ = false;
  Seen seen_;
  std::thread reader_, writer_;
};

class Session {
 public:
  Session(std::unique_ptr<DaemonClient>& client, v1::AttachOpen open, const SessionOptions& options)
      : client_(client), open_(std::move(open)), options_(options), bell_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    result_.job.set_id(open_.job());
    if (options_.pass_signals) {
      const sigset_t set = signal_set();
      signals_.reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    }
    if (options_.pass_stdin && isatty(STDIN_FILENO))
      guard_.emplace(STDIN_FILENO, options_.raw_terminal ? TerminalGuard::Mode::raw : TerminalGuard::Mode::line_detach);
    stdin_open_ = options_.pass_stdin;
    if (open_.has_submit()) kept_.begins_at(0);  // also if the daemon dies before it has said so
  }

  Result<SessionResult> run() {
    connect();
    if (options_.accept_new_host_keys) open_prompter();  // for that answer no terminal is needed
    for (;;) {
      wait();
      const auto seen = connection_->look();
      if (seen.job) take(*seen.job);
      follow_input(seen);
      if (seen.exit) {
        result_.ended = true;
        result_.exit = *seen.exit;
      }
      if (seen.over) {
        if (seen.output_closed) {
          result_.output_closed = true;
          return done();
        }
        if (result_.ended || result_.detached) return done();
        if (seen.status && !result_.ended && open_.no_follow()) return done();
        const bool again = (seen.lost || (!seen.status && seen.status.error().code == Code::unavailable)) && result_.job.id() != 0;
        if (!again) {
          if (!seen.status) return fail_with(seen.status.error());
          return fail_with(Error{Code::internal,
                                 "the daemon ended the connection to job " + id_text() + " without its end",
                                 "see 'flotilla logs daemon'",
                                 Retry::yes,
                                 {}});
        }
        if (auto back = reconnect(); !back) return fail_with(back.error());
        if (result_.left) return done();
      } else if (result_.left) {
        return done();
      }
    }
  }

 private:
  std::string id_text() const { return std::to_string(result_.job.id()); }

  void connect() {
    connection_ = std::make_unique<Connection>(*client_, open_, options_, offsets_, modes_, line_, bell_);
    if (options_.redraw && !redrawn_) redraw();
    redrawn_ = true;
  }

  // A program redraws when its window changes: one row less, and back.
  void redraw() {
    auto size = window_size();
    if (!size || !options_.raw_terminal) return;
    v1::AttachInput message;
    *message.mutable_window() = *size;
    if (size->rows() > 1) {
      message.mutable_window()->set_rows(size->rows() - 1);
      connection_->send(message);
    }
    *message.mutable_window() = *size;
    connection_->send(message);
  }

  void take(const v1::Job& job) {
    // The window may have changed while it waited.
    if (job.state() == v1::JOB_RUNNING && result_.job.state() < v1::JOB_RUNNING && options_.raw_terminal && !options_.redraw) send_window();
    if (!waits(job)) prompter_.reset();
    result_.job = job;
  }

  void send_window() {
    const auto size = window_size();
    if (!options_.raw_terminal || !size) return;
    v1::AttachInput message;
    *message.mutable_window() = *size;
    connection_->send(message);
  }

  bool waiting() const { return waits(result_.job) && !result_.ended; }

  // Until something happened; handles signals, input and timers itself.
  void wait() {
    const auto now = Clock::now();
    std::optional<Clock::time_point> next;
    const auto at = [&](Clock::time_point moment) {
      if (!next || moment < *next) next = moment;
    };
    const bool why = options_.show_why && waiting();
    if (why) at(next_why_);
    if (keys_.holding()) at(held_since_ + held_key);
    pollfd fds[3] = {{bell_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}, {-1, POLLIN, 0}};
    if (stdin_open_ && !kept_.full() && !question()) {  // the bell rings when a question ends
      if (stdin_is_ours()) fds[2].fd = STDIN_FILENO;
      else at(now + background_check);
    }
    int timeout = -1;
    if (next) timeout = static_cast<int>(std::max<std::int64_t>(0, std::chrono::ceil<milliseconds>(*next - now).count()));
    if (poll(fds, 3, timeout) < 0) return;  // EINTR
    if (fds[0].revents) {
      std::uint64_t rung = 0;
      [[maybe_unused]] const auto n = read(bell_.get(), &rung, sizeof rung);
    }
    if (fds[1].revents) {
      // What the user has seen before the key was pressed counts: the job may have begun meanwhile.
      if (const auto seen = connection_->look(); seen.job) take(*seen.job);
      take_signals();
    }
    if (fds[2].revents) take_input();
    if (keys_.holding() && Clock::now() - held_since_ >= held_key) send_input(keys_.release());
    if (why && Clock::now() >= next_why_) tell_why();
  }

  // One that takes its answer from the terminal that is the job's input.
  bool question() const { return prompter_ && prompter_->asks() && isatty(STDIN_FILENO); }

  // Reading the terminal from the background would stop us.
  bool stdin_is_ours() const { return !isatty(STDIN_FILENO) || tcgetpgrp(STDIN_FILENO) == getpgrp(); }

  void tell_why() {
    next_why_ = Clock::now() + why_every;
    if (!line_.visible()) return tell_why_once();
    open_prompter();
    if (result_.job.id() == 0) {
      line_.show("waiting for the daemon");
      return;
    }
    v1::WhyJobRequest request;
    request.set_id(result_.job.id());
    const auto reply = client_->why_job(request, why_limit);
    const auto seen = connection_->look();  // it may have started meanwhile
    if (seen.job) take(*seen.job);
    if (!waiting() || seen.over) {
      line_.clear();
      return;
    }
    const std::string reason = reply ? reply->sentence() : result_.job.message();
    line_.show("job " + id_text() + ": " + (reason.empty() ? "waiting" : reason));
    const auto after = connection_->look();
    if (after.over || (after.job && !waits(*after.job))) line_.clear();
  }

  void open_prompter() {
    if (prompter_ || !(can_ask() || options_.accept_new_host_keys)) return;
    prompter_.emplace(*client_, "", options_.accept_new_host_keys, line_, [this] { ring(bell_); });
  }

  // Without a terminal: a line for each reason, when it does not pass by itself.
  void tell_why_once() {
    why_pause_ = std::min(2 * why_pause_, why_last_pause);
    next_why_ = Clock::now() + why_pause_;
    if (result_.job.id() == 0) return;
    v1::WhyJobRequest request;
    request.set_id(result_.job.id());
    const auto reply = client_->why_job(request, why_limit);
    if (!reply || reply->state() > v1::JOB_QUEUED || reply->transient() || reply->sentence() == told_why_) return;
    told_why_ = reply->sentence();
    std::fprintf(stderr, "flotilla: job %s waits: %s\n", id_text().c_str(), told_why_.c_str());
  }

  void take_signals() {
    signalfd_siginfo info{};
    while (read(signals_.get(), &info, sizeof info) == sizeof info) {
      const int number = static_cast<int>(info.ssi_signo);
      if (number == SIGWINCH || number == SIGCONT) {
        if (number == SIGCONT && guard_ && !question()) guard_->apply_again();
        send_window();
      } else if (number == SIGINT) {
        interrupt();
      } else if (number == SIGHUP && options_.hang_up_detaches) {
        hang_up();
      } else if (waiting()) {
        cancel();  // nothing runs that could take a signal
      } else {
        pass(number);
      }
    }
  }

  void pass(int number) {
    v1::AttachInput message;
    message.set_signal(number);
    // Behind input that nobody takes a signal would wait.
    if (connection_->queued_bytes() == 0) {
      connection_->send(message);
      return;
    }
    v1::SignalJobsRequest request;
    request.add_ids(result_.job.id());
    request.set_signal(number);
    if (const auto sent = client_->signal_jobs(request); !sent) say(sent.error().text());
  }

  void interrupt() {
    const auto now = Clock::now();
    if (canceling_) {
      say("not waiting for the end of job " + id_text() + ", which is being canceled");
      result_.left = true;
      return;
    }
    if (result_.job.id() == 0) {
      result_.left = true;
      return;
    }
    if (waiting() || (last_interrupt_ && now - *last_interrupt_ < second_interrupt)) {
      cancel();
      return;
    }
    last_interrupt_ = now;
    pass(SIGINT);
    if (isatty(STDERR_FILENO) && !options_.raw_terminal) say("sent SIGINT to job " + id_text() + "; Ctrl-C again cancels it");
  }

  void cancel() {
    if (result_.job.id() == 0) {
      result_.left = true;
      return;
    }
    canceling_ = true;
    line_.clear();
    say("canceling job " + id_text());
    v1::CancelJobsRequest request;
    request.add_ids(result_.job.id());
    if (const auto done = client_->cancel_jobs(request); !done) say(done.error().text());
  }

  void say(const std::string& text) {
    line_.clear();
    const bool raw = guard_ && guard_->active() && options_.raw_terminal;
    write_all(STDERR_FILENO, (raw ? "\r\nflotilla: " : "flotilla: ") + text + (raw ? "\r\n" : "\n"));
  }

  void take_input() {
    std::unique_lock<std::mutex> keys;
    if (prompter_ && isatty(STDIN_FILENO)) {
      keys = prompter_->take_keys();
      pollfd still{STDIN_FILENO, POLLIN, 0};  // a question that came between flushed what was typed before it
      if (!keys || poll(&still, 1, 0) != 1) return;
    }
    char buffer[stdin_piece];
    const ssize_t n = read(STDIN_FILENO, buffer, sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n <= 0) {
      stdin_open_ = false;
      const bool on_terminal = guard_ && guard_->active();
      if (on_terminal && (options_.raw_terminal || n < 0)) {  // its window was closed; a Ctrl-D is a key like others
        hang_up();
        return;
      }
      if (input_flows_) send_end_of_input();
      return;
    }
    const std::string_view typed(buffer, static_cast<std::size_t>(n));
    if (!guard_ || !guard_->active()) {
      send_input(std::string(typed));
      return;
    }
    std::string on;
    const bool leave = keys_.feed(typed, on);
    if (keys_.holding()) held_since_ = Clock::now();
    send_input(std::move(on));
    if (leave) {
      result_.detached = true;
      stdin_open_ = false;
      v1::AttachInput message;
      message.set_detach(true);
      connection_->send(message);
    }
  }

  void hang_up() {
    if (!options_.hang_up_detaches || result_.detached) return;
    result_.detached = true;
    v1::AttachInput message;
    message.set_detach(true);
    connection_->send(message);
  }

  void send_input(std::string data) {
    if (data.empty()) return;
    kept_.add(data);
    if (input_flows_) pass_input(std::move(data));
  }

  void pass_input(std::string data) {
    v1::AttachInput message;
    message.set_stdin(std::move(data));
    connection_->send(std::move(message));
  }

  void send_end_of_input() {
    v1::AttachInput message;
    message.set_stdin_eof(true);
    connection_->send(message);
  }

  void follow_input(const Connection::Seen& seen) {
    if (!seen.stdin_next) return;
    if (!input_flows_) {
      input_flows_ = true;
      const std::string_view again = kept_.again_from(*seen.stdin_next);
      for (std::size_t at = 0; at < again.size(); at += stdin_piece) pass_input(std::string(again.substr(at, stdin_piece)));
      // Beyond our end: it has got a terminal's end of input, which is a character.
      if (!stdin_open_ && options_.pass_stdin && !result_.detached && *seen.stdin_next <= kept_.end()) send_end_of_input();
    }
    kept_.begins_at(*seen.stdin_next);
    kept_.on_taken(seen.stdin_taken);
  }

  std::string come_back() const {
    const bool stopped = access(stopped_marker().c_str(), F_OK) == 0;
    const bool ends_without_us = open_.comes_back() || (open_.has_submit() && open_.submit().cancel_with_client());
    return "come back to it with 'flotilla attach " + id_text() + "'" +
           (ends_without_us && !stopped ? ": a minute after the daemon's return it is canceled if nobody is there" : "");
  }

  // The daemon has gone, the job has not.
  Status reconnect() {
    prompter_.reset();
    connection_.reset();
    const auto since = Clock::now();
    const bool remembered = open_.has_submit();
    for (;;) {
      auto client = DaemonClient::connect_again(since);
      if (client) {
        client_ = std::move(*client);
        break;
      }
      if (client.error().code != Code::not_found)
        return fail(client.error().code, "job " + id_text() + " goes on, but " + client.error().message, come_back());
      line_.show("job " + id_text() + ": waiting for the daemon to come back");
      pollfd wait{signals_.get(), POLLIN, 0};
      if (poll(&wait, 1, static_cast<int>(reconnect_step.count())) > 0) {
        signalfd_siginfo info{};
        while (read(signals_.get(), &info, sizeof info) == sizeof info)
          if (info.ssi_signo == SIGINT || info.ssi_signo == SIGTERM || info.ssi_signo == SIGHUP) {
            say("job " + id_text() + " goes on; " + come_back());
            result_.left = true;
            return {};
          }
      }
    }
    line_.clear();
    if (remembered) {
      // Canceled with us again, if it was before.
      open_.set_comes_back(open_.submit().cancel_with_client());
      open_.clear_submit();
      open_.set_job(result_.job.id());
    }
    open_.set_stdout_offset(offsets_.next[1]);
    open_.set_stderr_offset(offsets_.next[2]);
    open_.set_from_end(false);
    open_.set_tail_bytes(0);
    input_flows_ = false;  // until the daemon says how far it has come
    connect();
    return {};
  }

  void leave_terminal() {
    prompter_.reset();
    line_.clear();
    if (guard_) {
      const bool raw = guard_->active() && options_.raw_terminal;
      if (raw) {
        const std::string undo = modes_.undo();
        if (isatty(STDOUT_FILENO)) write_all(STDOUT_FILENO, undo);
      }
      guard_->restore();
      if (raw && !result_.ended) write_all(STDERR_FILENO, "\n");
    }
  }

  SessionResult done() {
    connection_.reset();
    leave_terminal();
    return result_;
  }
  tl::unexpected<Error> fail_with(const Error& error) {
    connection_.reset();
    leave_terminal();
    return fail(error);
  }

  std::unique_ptr<DaemonClient>& client_;
  v1::AttachOpen open_;
  const SessionOptions options_;
  unique_fd bell_;  // eventfd: the reader saw something
  unique_fd signals_;
  StatusLine line_;
  Connection::Offsets offsets_;
  TerminalModes modes_;
  std::unique_ptr<Connection> connection_;
  std::optional<Prompter> prompter_;
  std::optional<TerminalGuard> guard_;
  DetachKeys keys_;
  Clock::time_point held_since_;
  Clock::time_point next_why_ = Clock::now() + why_after;
  milliseconds why_pause_ = why_after;
  std::string told_why_;
  std::optional<Clock::time_point> last_interrupt_;
  bool canceling_ = false;
  bool stdin_open_ = false;
  KeptInput kept_;
  bool input_flows_ = true;  // goes to the daemon as it comes
  bool redrawn_ = false;
  SessionResult result_;
};

}  // namespace

void block_session_signals() {
  const sigset_t set = signal_set();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

bool end_signal_pending() {
  sigset_t pending;
  if (sigpending(&pending) != 0) return false;
  for (const int number : {SIGINT, SIGTERM, SIGQUIT, SIGHUP}) {
    struct sigaction now {};
    sigaction(number, nullptr, &now);
    if (sigismember(&pending, number) == 1 && now.sa_handler != SIG_IGN) return true;  // nohup: ignored, but pending
  }
  return false;
}

Result<SessionResult> run_session(std::unique_ptr<DaemonClient>& client, v1::AttachOpen open, const SessionOptions& options) {
  Session session(client, std::move(open), options);
  return session.run();
}

}  // namespace flotilla::cli
