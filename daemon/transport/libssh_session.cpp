#include <fcntl.h>
#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <list>
#include <mutex>

#include "daemon/transport/core/bootstrap.hpp"
#include "daemon/transport/core/known_hosts.hpp"
#include "daemon/transport/core/ssh_words.hpp"
#include "daemon/transport/session.hpp"
#include "daemon/transport/spawn.hpp"
#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"

namespace flotilla::daemon {
namespace {

constexpr auto handshake_patience = std::chrono::seconds(20);  // key exchange over a bad line; sshd may be slow to answer
constexpr auto auth_patience = std::chrono::seconds(60);       // one step of it, without people; PAM may wait on purpose
constexpr auto channel_patience = std::chrono::seconds(15);    // opening one
constexpr auto quiet_time = std::chrono::milliseconds(200);    // then what is owed on channels is acknowledged
constexpr int wrong_secrets = 3;                               // as ssh asks
constexpr std::size_t piece_bytes = 64u << 10;
constexpr std::size_t libssh_reads_bytes = 4096;
constexpr int pieces_per_turn = 16;             // two packets of bulk data, between two looks at everything else
constexpr std::size_t proxy_kept_bytes = 2048;  // of what a ProxyCommand says: its last lines
// AES-GCM first: it moves 1.2 to 1.4 times what chacha20-poly1305 does.
constexpr const char* ciphers =
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr";
// A dead network is noticed by the kernel after this long with unacknowledged bytes; the link's own pings notice silence.
constexpr unsigned tcp_user_timeout_ms = 60'000;

void wipe(std::string& secret) { OPENSSL_cleanse(secret.data(), secret.size()); }

void initialise_libssh() {
  static std::once_flag once;
  std::call_once(once, [] { ssh_init(); });
}

class LibsshSession;

// One ssh channel and what hangs on it. Callbacks come from inside libssh's calls, at any of them; channels are freed between turns.
class Stream {
 public:
  explicit Stream(LibsshSession& session) : session_(session) {}
  virtual ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  enum class Phase { opening, open, dead };
  Phase phase = Phase::opening;
  Deadline open_until{};
  Deadline silent_until = Deadline::max();  // after_turn() has something to do then

  bool create();
  // One try of what opens it: SSH_OK, SSH_AGAIN, SSH_ERROR.
  virtual int try_open() = 0;
  virtual void opened() {}
  virtual void open_failed(const Error&) {}
  virtual std::size_t on_data(std::string_view data) = 0;
  virtual void on_errors(std::string_view) {}
  virtual int fd() const { return -1; }
  virtual short events() { return 0; }
  virtual void on_ready(short) {}
  virtual void after_turn() {}
  virtual void on_session_end(const std::string&) {}
  virtual bool owes() const { return false; }
  virtual void on_quiet() {}

 protected:
  // Bytes that the channel takes now without piling up in memory.
  std::size_t writable() const;
  long write_channel(const char* data, std::size_t size);
  // What libssh holds because on_data did not take it.
  long read_held(char* to, std::size_t size);

  LibsshSession& session_;
  ssh_channel channel_ = nullptr;
  ssh_channel_callbacks_struct callbacks_{};
  bool held_ = false, remote_eof_ = false, remote_closed_ = false;
  std::optional<int> exit_status_;
  std::string exit_signal_;  // as ssh names it: ABRT
};

// A channel joined with a socket here; without one (yet) what comes is kept.
class PipeStream : public Stream {
 public:
  using Stream::Stream;
  std::size_t on_data(std::string_view data) override;
  int fd() const override { return local_.get(); }
  short events() override;
  void on_ready(short revents) override;
  void after_turn() override;

  void join(unique_fd local, std::string first);
  bool joined() const { return static_cast<bool>(local_); }
  std::string received;  // while nothing is joined
  std::string errors;
  void on_errors(std::string_view text) override { errors.append(text); }
  bool ended() const { return remote_closed_ || (remote_eof_ && !held_); }
  bool closed() const { return remote_closed_; }
  // " with exit code 3"; empty as long as nothing is known.
  std::string how_it_ended() const {
    if (!exit_signal_.empty()) return " by signal " + exit_signal_;
    return exit_status_ ? " with exit code " + std::to_string(*exit_status_) : "";
  }
  std::size_t write_now(std::string_view data) {
    const auto room = std::min(writable(), data.size());
    const long count = room ? write_channel(data.data(), room) : 0;
    return count > 0 ? static_cast<std::size_t>(count) : 0;
  }
  bool can_write() const { return writable() > 0; }
  bool local_ended() const { return local_eof_; }

 private:
  bool flush_local();
  void pump_local();
  unique_fd local_;
  std::string to_local_, to_remote_;
  bool local_eof_ = false, eof_sent_ = false, shut_ = false;
};

class ExecStream final : public PipeStream {
 public:
  ExecStream(LibsshSession& session, std::string command) : PipeStream(session), command_(std::move(command)) {}
  int try_open() override;
  void open_failed(const Error& error) override { failure = error; }
  std::optional<Error> failure;

 private:
  std::string command_;
  bool channel_open_ = false;
};

class TcpStream final : public PipeStream {
 public:
  TcpStream(LibsshSession& session, std::string host, int port, std::string dialer, unique_fd local, std::function<void(Status)> done)
      : PipeStream(session), host_(std::move(host)), port_(port), dialer_(std::move(dialer)), waiting_(std::move(local)),
        done_(std::move(done)) {}
  int try_open() override;
  void opened() override;
  void open_failed(const Error& error) override;
  void on_session_end(const std::string& cause) override;
  bool wants_dialer() const { return wants_dialer_; }

 private:
  friend class DialStream;
  std::string host_;
  int port_;
  std::string dialer_;
  unique_fd waiting_;
  std::function<void(Status)> done_;
  bool wants_dialer_ = false;
};

// The wire of a resumable channel.
class ChannelStream final : public Stream, public ChannelWire {
 public:
  ChannelStream(LibsshSession& session, std::shared_ptr<UserChannel> channel, std::uint32_t epoch, std::string ticket, std::string socket)
      : Stream(session), user_(std::move(channel)), epoch_(epoch), ticket_(std::move(ticket)), socket_(std::move(socket)) {}
  ~ChannelStream() { user_->detach(this, "the connection to the resource ended"); }
  int try_open() override;
  void opened() override;
  void open_failed(const Error& error) override;
  std::size_t on_data(std::string_view data) override;
  int fd() const override { return attached_ ? user_->user_fd() : -1; }
  short events() override { return attached_ ? user_->user_events() : 0; }
  void on_ready(short revents) override;
  void after_turn() override;
  bool owes() const override { return attached_ && user_->owes(); }
  void on_quiet() override { user_->on_quiet(); }

  long write(const iovec* pieces, int count) override;
  void wake() override;

 private:
  void take_rest();
  std::shared_ptr<UserChannel> user_;
  std::uint32_t epoch_;
  std::string ticket_, socket_;
  std::string rest_;  // taken from libssh, not yet taken by the channel
  bool attached_ = false, blocked_ = false, in_data_ = false;
};

class LibsshSession final : public Session {
 public:
  LibsshSession(SessionServices services, SessionConfig config) : services_(std::move(services)), config_(std::move(config)) {}
  ~LibsshSession() override;

  Status connect(Observer& observer) override;
  Result<std::unique_ptr<RemoteCommand>> run(const std::string& command, Deadline deadline) override;
  Error serve(std::unique_ptr<RemoteCommand> connector, unique_fd link, const std::string& channel_socket) override;
  bool outlived_its_hub() const override { return outlived_its_hub_ && alive(); }
  void open_channel(std::shared_ptr<UserChannel> channel, std::uint32_t epoch, const std::string& ticket) override;
  void open_tcp(const std::string& host, int port, const std::string& dialer, unique_fd local, std::function<void(Status)> done) override;

  ssh_session session() const { return session_; }
  // Waits for the network, the streams' sockets, or a task, and does what there is to do. False: the time is over.
  Result<bool> turn(Deadline deadline);

  // A channel writes. What comes meanwhile is taken in the next turn, which does not wait.
  class Writing {
   public:
    explicit Writing(LibsshSession& session) : session_(session) { session_.writes_ = true; }
    ~Writing() { session_.writes_ = false; }
    Writing(const Writing&) = delete;
    Writing& operator=(const Writing&) = delete;

   private:
    LibsshSession& session_;
  };
  // Asked by who then leaves what came.
  bool writes() {
    data_waits_ = data_waits_ || writes_;
    return writes_;
  }
  void heard(std::size_t bytes) { handed_on_ += bytes; }
  bool write_pending() const { return ssh_get_status(session_) & SSH_WRITE_PENDING; }
  std::string error_text() const;
  Error broken();
  Stream* add(std::unique_ptr<Stream> stream);
  void remove(Stream* stream);
  ThreadControl& control() { return *services_.control; }
  std::string where() const { return config_.resource + " (" + format_location(config_.location) + ")"; }

 private:
  Status configure();
  Status reach(Observer& observer);
  Status hand_shake(Observer& observer);
  Status check_host_key(Observer& observer);
  Status authenticate(Observer& observer);
  Result<int> keyboard_interactive(bool again);
  Result<int> with_password(bool again);
  template <class Call>
  Result<int> repeat(Call&& call, int again, Deadline deadline);
  static int on_key_passphrase(const char* prompt, char* buffer, size_t size, int echo, int verify, void* self);
  bool alive() const { return ssh_is_connected(session_) && !(ssh_get_status(session_) & (SSH_CLOSED | SSH_CLOSED_ERROR)); }
  void advance();
  bool take_from_network();
  void hear_proxy();
  std::string proxy_words();

  SessionServices services_;
  SessionConfig config_;
  ssh_session session_ = nullptr;
  ssh_event event_ = nullptr;
  ssh_callbacks_struct callbacks_{};
  std::string host_, user_, proxy_command_, address_;
  int port_ = 22;
  std::optional<Error> prompt_error_;  // from inside a callback
  std::unique_ptr<Child> proxy_;
  std::string proxy_said_;
  std::list<std::unique_ptr<Stream>> streams_;
  bool writes_ = false, data_waits_ = false;
  std::size_t handed_on_ = 0;  // bytes of the channels' data, since take_from_network() last looked
  std::vector<pollfd> polled_;
  std::vector<Stream*> polled_streams_;
  std::string channel_socket_;
  bool outlived_its_hub_ = false, proxy_listens_ = false;
};

// ---- streams -----------------------------------------------------------------------------------------------

Stream::~Stream() {
  if (!channel_) return;
  ssh_remove_channel_callbacks(channel_, &callbacks_);  // libssh may go on to hear of it for a while
  ssh_channel_free(channel_);
}

bool Stream::create() {
  channel_ = ssh_channel_new(session_.session());
  if (!channel_) return false;
  ssh_callbacks_init(&callbacks_);
  callbacks_.userdata = this;
  callbacks_.channel_data_function = [](ssh_session, ssh_channel, void* data, uint32_t size, int is_stderr, void* self) -> int {
    auto* stream = static_cast<Stream*>(self);
    const std::string_view bytes(static_cast<char*>(data), size);
    stream->session_.heard(size);
    if (is_stderr) {
      stream->on_errors(bytes);
      return static_cast<int>(size);
    }
    const auto taken = stream->on_data(bytes);
    stream->held_ = taken < size;
    return static_cast<int>(taken);
  };
  callbacks_.channel_eof_function = [](ssh_session, ssh_channel, void* self) { static_cast<Stream*>(self)->remote_eof_ = true; };
  callbacks_.channel_close_function = [](ssh_session, ssh_channel, void* self) { static_cast<Stream*>(self)->remote_closed_ = true; };
  callbacks_.channel_exit_status_function = [](ssh_session, ssh_channel, int status, void* self) {
    static_cast<Stream*>(self)->exit_status_ = status;
  };
  callbacks_.channel_exit_signal_function = [](ssh_session, ssh_channel, const char* signal, int, const char*, const char*, void* self) {
    static_cast<Stream*>(self)->exit_signal_ = signal;
  };
  ssh_add_channel_callbacks(channel_, &callbacks_);
  open_until = after(channel_patience);
  return true;
}

std::size_t Stream::writable() const {
  if (phase != Phase::open || remote_closed_ || session_.write_pending()) return 0;
  return ssh_channel_window_size(channel_);
}

long Stream::write_channel(const char* data, std::size_t size) { return ssh_channel_write(channel_, data, static_cast<uint32_t>(size)); }

long Stream::read_held(char* to, std::size_t size) {
  const int count = ssh_channel_read_nonblocking(channel_, to, static_cast<uint32_t>(size), 0);
  if (count <= 0) held_ = false;
  return count;
}

std::size_t PipeStream::on_data(std::string_view data) {
  if (!local_) {
    if (shut_) return data.size();  // the socket is gone: nobody wants it
    received.append(data);
    return data.size();
  }
  if (!to_local_.empty()) return 0;
  std::size_t taken = 0;
  while (taken < data.size()) {
    const auto count = ::send(local_.get(), data.data() + taken, data.size() - taken, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
      local_eof_ = true;
      return data.size();
    }
    if (count < 0) break;
    taken += static_cast<std::size_t>(count);
  }
  return taken;
}

bool PipeStream::flush_local() {
  char piece[piece_bytes];
  for (;;) {
    while (!to_local_.empty()) {
      const auto count = ::send(local_.get(), to_local_.data(), to_local_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
      if (count < 0) {
        local_eof_ = true;
        to_local_.clear();
      } else {
        to_local_.erase(0, static_cast<std::size_t>(count));
      }
    }
    if (!held_) return true;
    if (const long count = read_held(piece, sizeof piece); count > 0) to_local_.assign(piece, static_cast<std::size_t>(count));
  }
}

void PipeStream::join(unique_fd local, std::string first) {
  local_ = std::move(local);
  to_local_ = std::move(first) + received;
  received.clear();
}

short PipeStream::events() {
  if (!local_) return 0;
  short events = 0;
  if (!local_eof_ && to_remote_.empty() && writable() > 0) events |= POLLIN;
  if (!to_local_.empty() || held_) events |= POLLOUT;
  return events;
}

void PipeStream::pump_local() {
  char piece[piece_bytes];
  while (!local_eof_ && to_remote_.empty()) {
    const auto room = std::min(writable(), sizeof piece);
    if (room == 0) return;
    const auto count = ::recv(local_.get(), piece, room, MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (count <= 0) {
      local_eof_ = true;
      return;
    }
    // While keys are exchanged anew the channel takes nothing for a moment.
    const long written = write_channel(piece, static_cast<std::size_t>(count));
    if (written < count) to_remote_.assign(piece + std::max(written, 0L), static_cast<std::size_t>(count - std::max(written, 0L)));
    if (count < static_cast<long>(room)) return;
  }
}

void PipeStream::on_ready(short revents) {
  if (!local_) return;
  if (revents & (POLLOUT | POLLERR | POLLHUP)) flush_local();
  if (revents & (POLLIN | POLLERR | POLLHUP)) pump_local();
}

void PipeStream::after_turn() {
  if (phase != Phase::open || !local_) return;
  if (!to_remote_.empty() && writable() > 0) {
    const long written = write_channel(to_remote_.data(), std::min(writable(), to_remote_.size()));
    if (written > 0) to_remote_.erase(0, static_cast<std::size_t>(written));
  }
  if (local_eof_ && !eof_sent_ && to_remote_.empty()) {
    eof_sent_ = true;
    ssh_channel_send_eof(channel_);
  }
  const bool drained = to_local_.empty() && !held_;
  if (remote_eof_ && drained && !shut_) {
    shut_ = true;
    ::shutdown(local_.get(), SHUT_WR);
  }
  if (remote_closed_ && drained) {
    shut_ = true;
    local_.reset();
    phase = Phase::dead;
  } else if (local_eof_ && shut_) {
    local_.reset();
    phase = Phase::dead;
  }
}

int ExecStream::try_open() {
  if (!channel_open_) {
    const int rc = ssh_channel_open_session(channel_);
    if (rc != SSH_OK) return rc;
    channel_open_ = true;
  }
  return ssh_channel_request_exec(channel_, command_.c_str());
}

int TcpStream::try_open() { return ssh_channel_open_forward(channel_, host_.c_str(), port_, "127.0.0.1", 0); }

void TcpStream::opened() {
  join(std::move(waiting_), {});
  if (auto done = std::exchange(done_, nullptr)) done({});
}

void TcpStream::open_failed(const Error& error) {
  // Code 1: administratively prohibited. The dialer then does it (LibsshSession::advance).
  if (error.message.find("error (1)") != std::string::npos && !dialer_.empty()) {
    wants_dialer_ = true;
    return;
  }
  if (auto done = std::exchange(done_, nullptr)) done(fail(gateway_cannot_reach(session_.where(), host_, port_, error.message)));
}

void TcpStream::on_session_end(const std::string& cause) {
  if (auto done = std::exchange(done_, nullptr)) done(fail(Code::unavailable, "the gateway's connection ended: " + cause, {}, Retry::yes));
}

// `flotilla-agent dial` in the place of a forbidden direct-tcpip.
class DialStream final : public PipeStream {
 public:
  DialStream(LibsshSession& session, TcpStream& from)
      : PipeStream(session), host_(from.host_), port_(from.port_), command_(from.dialer_), waiting_(std::move(from.waiting_)),
        done_(std::exchange(from.done_, nullptr)) {}
  int try_open() override {
    if (!channel_open_) {
      const int rc = ssh_channel_open_session(channel_);
      if (rc != SSH_OK) return rc;
      channel_open_ = true;
    }
    return ssh_channel_request_exec(channel_, command_.c_str());
  }
  void opened() override { silent_until = after(handshake_patience); }
  // An sshd speaks first: until it has, the dialer may fail.
  void after_turn() override {
    if (done_ && received.empty() && !closed() && std::chrono::steady_clock::now() >= silent_until) {
      std::exchange(done_, nullptr)(fail(gateway_cannot_reach(session_.where(), host_, port_, said_nothing)));
      phase = Phase::dead;
    }
    if (!done_ || !received.empty() || closed()) silent_until = Deadline::max();
    if (done_ && !received.empty()) {
      join(std::move(waiting_), {});
      std::exchange(done_, nullptr)({});
    } else if (done_ && closed()) {
      std::exchange(done_, nullptr)(fail(gateway_cannot_reach(session_.where(), host_, port_, errors)));
      phase = Phase::dead;
    }
    PipeStream::after_turn();
  }
  void open_failed(const Error& error) override {
    if (auto done = std::exchange(done_, nullptr))
      done(fail(Code::unavailable,
                "the gateway " + session_.where() + " forbids forwarding, and cannot run what would dial " + host_ + ": " + error.message));
  }
  void on_session_end(const std::string& cause) override {
    if (auto done = std::exchange(done_, nullptr))
      done(fail(Code::unavailable, "the gateway's connection ended: " + cause, {}, Retry::yes));
  }

 private:
  std::string host_;
  int port_;
  std::string command_;
  unique_fd waiting_;
  std::function<void(Status)> done_;
  bool channel_open_ = false;
};

int ChannelStream::try_open() { return ssh_channel_open_forward_unix(channel_, socket_.c_str(), "127.0.0.1", 0); }

void ChannelStream::opened() {
  attached_ = true;
  if (auto status = user_->attach(this, epoch_, ticket_); !status) {
    attached_ = false;
    phase = Phase::dead;
  }
}

void ChannelStream::open_failed(const Error& error) {
  spdlog::info("{}: channel {} cannot be forwarded: {}", session_.where(), user_->number(), error.message);
  user_->forwarding_failed(epoch_, ticket_);
}

void ChannelStream::wake() { session_.control().wake(); }

long ChannelStream::write(const iovec* pieces, int count) {
  if (in_data_) {  // inside libssh's callback nothing is written: it would move the bytes that are being read
    blocked_ = true;
    return 0;
  }
  long sum = 0;
  const LibsshSession::Writing writing(session_);
  for (int i = 0; i < count; ++i) {
    const auto room = std::min(writable(), pieces[i].iov_len);
    if (room == 0) break;
    const long written = write_channel(static_cast<const char*>(pieces[i].iov_base), room);
    if (written < 0) return sum > 0 ? sum : -1;
    sum += written;
    if (static_cast<std::size_t>(written) < pieces[i].iov_len) break;
  }
  blocked_ = sum == 0;
  return sum;
}

std::size_t ChannelStream::on_data(std::string_view data) {
  if (!attached_) return data.size();
  // libssh may hand on packets from inside a write, of this channel or another, under that one's mutex: they wait for after_turn().
  if (session_.writes() || !rest_.empty()) return 0;
  in_data_ = true;
  const auto taken = user_->on_wire_bytes(this, data);
  in_data_ = false;
  return taken;
}

void ChannelStream::take_rest() {
  char piece[piece_bytes];
  while (attached_) {
    if (!rest_.empty()) {
      const auto taken = user_->on_wire_bytes(this, rest_);
      rest_.erase(0, taken);
      if (!rest_.empty()) return;
    }
    if (!held_) return;
    if (const long count = read_held(piece, sizeof piece); count > 0) rest_.assign(piece, static_cast<std::size_t>(count));
  }
}

void ChannelStream::on_ready(short revents) { user_->on_user_ready(revents); }

void ChannelStream::after_turn() {
  if (!attached_) return;
  if (!user_->attached(this)) {  // displaced, ended or lost
    phase = Phase::dead;
    return;
  }
  if (!rest_.empty() || held_) {
    if (!(user_->user_events() & POLLOUT)) take_rest();
  }
  if (blocked_ && writable() > 0) {
    blocked_ = false;
    user_->on_wire_writable(this);
  }
  if ((remote_eof_ || remote_closed_) && rest_.empty() && !held_) {
    user_->detach(this, "the hub closed the connection");
    phase = Phase::dead;
  }
}

// ---- the session ------------------------------------------------------------------------------------------

LibsshSession::~LibsshSession() {
  for (auto& each : streams_) each->on_session_end("it was closed");
  streams_.clear();
  if (event_ && session_) ssh_event_remove_session(event_, session_);
  if (event_) ssh_event_free(event_);
  if (session_) {
    // libssh leaves a socket open that it was given, when it says goodbye.
    const unique_fd fd(ssh_is_connected(session_) ? ssh_get_fd(session_) : -1);
    if (fd) ssh_disconnect(session_);
    ssh_free(session_);
  }
  services_.control->set_socket(-1);
}

std::string LibsshSession::error_text() const {
  const char* text = ssh_get_error(session_);
  return text && *text ? text : "the connection was closed";
}

Error LibsshSession::broken() {
  return {Code::unavailable, "the connection to " + where() + " ended: " + error_text() + proxy_words(), {}, Retry::yes, {}};
}

// It must not wait for us to read what it says.
void LibsshSession::hear_proxy() {
  char buffer[4096];
  for (;;) {
    const auto count = proxy_ ? ::read(proxy_->errors(), buffer, sizeof buffer) : 0;
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      proxy_listens_ = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
      return;
    }
    proxy_said_.append(buffer, static_cast<std::size_t>(count));
    if (proxy_said_.size() > proxy_kept_bytes) proxy_said_.erase(0, proxy_said_.size() - proxy_kept_bytes);
  }
}

// "; PROGRAM said: ..."; empty without such a program. Its last words follow the end of the connection.
std::string LibsshSession::proxy_words() {
  if (!proxy_) return {};
  pollfd exited{proxy_->exited_fd(), POLLIN, 0};
  ::poll(&exited, 1, static_cast<int>(std::chrono::milliseconds(last_words_patience).count()));
  hear_proxy();
  auto said = proxy_said_;
  while (!said.empty() && (said.back() == '\n' || said.back() == '\r')) said.pop_back();
  return said.empty() ? "" : "; " + proxy_command_ + " said: " + said;
}

Stream* LibsshSession::add(std::unique_ptr<Stream> stream) {
  if (!stream->create()) {
    stream->open_failed({Code::resource_exhausted, "no memory for another ssh channel", {}, Retry::no, {}});
    return nullptr;
  }
  streams_.push_back(std::move(stream));
  return streams_.back().get();
}

void LibsshSession::remove(Stream* stream) {
  streams_.remove_if([&](const auto& each) { return each.get() == stream; });
}

// Opens what is to be opened, lets each stream do what the last turn made possible, and frees what has ended.
void LibsshSession::advance() {
  for (auto i = streams_.begin(); i != streams_.end();) {
    auto& stream = **i;
    if (stream.phase == Stream::Phase::opening) {
      const int rc = stream.try_open();
      const bool late = rc == SSH_AGAIN && std::chrono::steady_clock::now() >= stream.open_until;
      if (rc == SSH_OK) {
        stream.phase = Stream::Phase::open;
        stream.opened();
      } else if (rc != SSH_AGAIN || late) {
        stream.phase = Stream::Phase::dead;
        stream.open_failed({Code::unavailable, late ? "no answer came in time" : error_text(), {}, Retry::yes, {}});
        if (auto* tcp = dynamic_cast<TcpStream*>(&stream); tcp && tcp->wants_dialer()) add(std::make_unique<DialStream>(*this, *tcp));
      }
    }
    if (stream.phase == Stream::Phase::open) stream.after_turn();
    if (stream.phase == Stream::Phase::dead) i = streams_.erase(i);
    else ++i;
  }
}

// libssh takes 4 KiB at a time, an eighth of a packet of bulk data. Goes on while more is likely to be there.
bool LibsshSession::take_from_network() {
  for (int pieces = 0; pieces < pieces_per_turn; ++pieces) {
    handed_on_ = 0;
    const int rc = ssh_event_dopoll(event_, 0);
    if (rc == SSH_ERROR && !alive()) return false;
    const bool was_all = handed_on_ > 0 && handed_on_ < libssh_reads_bytes;
    if (rc != SSH_OK || was_all) break;
  }
  return true;
}

Result<bool> LibsshSession::turn(Deadline deadline) {
  if (control().stopping()) return fail(stopped_error());
  advance();
  if (!alive()) return fail(broken());
  const int flags = ssh_get_poll_flags(session_);
  const short events = static_cast<short>((flags & SSH_READ_PENDING ? POLLIN : 0) | (flags & SSH_WRITE_PENDING ? POLLOUT : 0));
  polled_.clear();
  polled_streams_.clear();
  polled_.push_back({control().wake_fd(), POLLIN, 0});
  polled_.push_back({ssh_get_fd(session_), events, 0});
  polled_.push_back({proxy_listens_ ? proxy_->errors() : -1, POLLIN, 0});
  const auto streams_at = polled_.size();
  for (auto& each : streams_) {
    deadline = std::min(deadline, each->phase == Stream::Phase::opening ? each->open_until : each->silent_until);
    const short wanted = each->events();
    if (!wanted || each->fd() < 0) continue;  // without a wish no poll: a hung-up peer would wake us again and again
    polled_.push_back({each->fd(), wanted, 0});
    polled_streams_.push_back(each.get());
  }
  const bool at_once = std::exchange(data_waits_, false);
  const int ready = ::poll(polled_.data(), polled_.size(), at_once ? 0 : deadline == Deadline::max() ? -1 : milliseconds_until(deadline));
  if (ready < 0 && errno != EINTR) return fail(errno_error(Code::internal, "wait for the network"));
  if (ready <= 0) return ready < 0 || at_once;
  if (polled_[2].revents) hear_proxy();
  if (polled_[1].revents && !take_from_network()) return fail(broken());
  for (std::size_t i = 0; i < polled_streams_.size(); ++i)
    if (const short revents = polled_[streams_at + i].revents; revents && polled_streams_[i]->phase == Stream::Phase::open)
      polled_streams_[i]->on_ready(revents);
  if (polled_[0].revents) control().run_tasks();
  advance();
  return true;
}

template <class Call>
Result<int> LibsshSession::repeat(Call&& call, int again, Deadline deadline) {
  for (;;) {
    const int rc = call();
    if (rc != again) return rc;
    const int flags = ssh_get_poll_flags(session_);
    const short events = static_cast<short>(POLLIN | (flags & SSH_WRITE_PENDING ? POLLOUT : 0));
    auto ready = control().wait(ssh_get_fd(session_), events, deadline);
    if (!ready) return fail(ready.error());
    if (*ready == 0) return fail(timeout_error("no answer came from " + where() + " in time"));
  }
}

Status LibsshSession::configure() {
  initialise_libssh();
  ssh_set_log_level(SSH_LOG_NOLOG);
  session_ = ssh_new();
  event_ = ssh_event_new();
  if (!session_ || !event_) return fail(Code::resource_exhausted, "no memory for an ssh connection");
  ssh_set_blocking(session_, 0);
  const auto ssh_dir = (home_dir() / ".ssh").string();
  ssh_options_set(session_, SSH_OPTIONS_SSH_DIR, ssh_dir.c_str());
  ssh_options_set(session_, SSH_OPTIONS_CIPHERS_C_S, ciphers);
  ssh_options_set(session_, SSH_OPTIONS_CIPHERS_S_C, ciphers);
  ssh_options_set(session_, SSH_OPTIONS_HOST, config_.location.host.c_str());
  if (ssh_options_parse_config(session_, config_.ssh_config.empty() ? nullptr : config_.ssh_config.c_str()) != 0)
    return fail(
        Code::failed_precondition,
        "cannot read " + (config_.ssh_config.empty() ? "~/.ssh/config" : config_.ssh_config) + " for " + where() + ": " + error_text(),
        "correct it, or set the resource's transport to openssh");
  const int no = 0;
  ssh_options_set(session_, SSH_OPTIONS_PROCESS_CONFIG, &no);
  if (!config_.location.user.empty()) ssh_options_set(session_, SSH_OPTIONS_USER, config_.location.user.c_str());
  if (config_.location.port) ssh_options_set(session_, SSH_OPTIONS_PORT, &config_.location.port);
  const auto text = [&](ssh_options_e option) {
    char* value = nullptr;
    std::string out;
    if (ssh_options_get(session_, option, &value) == SSH_OK && value) out = value;
    ssh_string_free_char(value);
    return out;
  };
  host_ = text(SSH_OPTIONS_HOST);
  user_ = text(SSH_OPTIONS_USER);
  proxy_command_ = text(SSH_OPTIONS_PROXYCOMMAND);
  unsigned port = 0;
  if (ssh_options_get_port(session_, &port) == SSH_OK && port) port_ = static_cast<int>(port);
  callbacks_.userdata = this;
  callbacks_.auth_function = &LibsshSession::on_key_passphrase;
  ssh_callbacks_init(&callbacks_);
  ssh_set_callbacks(session_, &callbacks_);
  return {};
}

// What ~/.ssh/config says to go through: a program whose stdin and stdout are the connection.
std::string expand_proxy_command(const std::string& command, const std::string& host, int port, const std::string& user,
                                 const std::string& original) {
  std::string out;
  for (std::size_t i = 0; i < command.size(); ++i) {
    if (command[i] != '%' || i + 1 == command.size()) {
      out += command[i];
      continue;
    }
    switch (command[++i]) {
      case 'h': out += host; break;
      case 'p': out += std::to_string(port); break;
      case 'r': out += user; break;
      case 'n': out += original; break;
      case '%': out += '%'; break;
      default: out += '%'; out += command[i];
    }
  }
  return out;
}

Status LibsshSession::reach(Observer& observer) {
  unique_fd fd;
  if (config_.through_gateway) {
    observer.skip(Step::name, "the gateway looks up " + host_);
    observer.begin(Step::reachability, "connecting to " + host_ + " through the gateway");
    auto stream = dial_through_gateway(services_, host_, port_);
    if (!stream) return fail(stream.error());
    fd = std::move(*stream);
    address_ = host_;
  } else if (!proxy_command_.empty() && proxy_command_ != "none") {
    const auto command = expand_proxy_command(proxy_command_, host_, port_, user_, config_.location.host);
    observer.skip(Step::name, "~/.ssh/config goes through: " + command);
    observer.begin(Step::reachability, "starting " + command);
    auto child = Child::start({"/bin/sh", "-c", "exec " + command}, {}, Child::Errors::piped);
    if (!child) return fail(child.error());
    proxy_ = std::move(*child);
    proxy_listens_ = true;
    fd = proxy_->take_stdio();
    address_ = host_;
  } else {
    auto dialled = dial_tcp(control(), observer, config_.resource, host_, port_);
    if (!dialled) return fail(dialled.error());
    fd = std::move(dialled->fd);
    address_ = dialled->address;
    const int on = 1, idle = 20, between = 10, times = 4;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPINTVL, &between, sizeof between);
    setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof times);
    setsockopt(fd.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &tcp_user_timeout_ms, sizeof tcp_user_timeout_ms);
  }
  control().set_socket(fd.get());
  const socket_t raw = fd.release();  // libssh closes it from here on
  ssh_options_set(session_, SSH_OPTIONS_FD, &raw);
  return {};
}

Status LibsshSession::hand_shake(Observer& observer) {
  auto rc = repeat([&] { return ssh_connect(session_); }, SSH_AGAIN, after(handshake_patience));
  if (!rc && rc.error().code == Code::timeout)
    return fail(Code::timeout,
                host_ + " port " + std::to_string(port_) + " (" + where() + ") accepted the connection, but does not speak ssh",
                "is " + std::to_string(port_) + " sshd's port?", Retry::yes);
  if (!rc) return fail(rc.error());
  if (*rc != SSH_OK) {
    const auto text = error_text();
    if (text.find("kex error") != std::string::npos || text.find("no match for method") != std::string::npos)
      return fail(Code::unsupported, "no common algorithm with " + where() + ": " + text, "set the resource's transport to openssh");
    std::string hint = "the server may refuse connections from here, or be overloaded";
    if (proxy_) hint = "the program that ~/.ssh/config goes through (" + proxy_command_ + ") may have failed";
    return fail(Code::unavailable, "cannot start ssh with " + where() + ": " + text + proxy_words(), hint, Retry::yes);
  }
  // libssh makes it blocking; it writes after POLLOUT only, so that what does not fit waits in its buffer.
  const int fd = ssh_get_fd(session_);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  ssh_event_add_session(event_, session_);
  const char* banner = ssh_get_serverbanner(session_);
  observer.done(Step::reachability, address_ + " port " + std::to_string(port_) + " answers" + (banner ? std::string(": ") + banner : ""));
  return {};
}

Status LibsshSession::check_host_key(Observer& observer) {
  observer.begin(Step::host_key, "checking the host key");
  ssh_key key = nullptr;
  if (ssh_get_server_publickey(session_, &key) != SSH_OK)
    return fail(Code::unavailable, "no host key came from " + where() + ": " + error_text());
  const std::string type = ssh_key_type_to_char(ssh_key_type(key));
  unsigned char* hash = nullptr;
  std::size_t size = 0;
  std::string fingerprint;
  if (ssh_get_publickey_hash(key, SSH_PUBLICKEY_HASH_SHA256, &hash, &size) == 0) {
    if (char* text = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, size)) {
      fingerprint = text;
      ssh_string_free_char(text);
    }
    ssh_clean_pubkey_hash(&hash);
  }
  ssh_key_free(key);
  const auto option = [&](ssh_options_e which) {
    char* value = nullptr;
    std::string out;
    if (ssh_options_get(session_, which, &value) == SSH_OK && value) out = value;
    ssh_string_free_char(value);
    return out;
  };
  const auto state = ssh_session_is_known_server(session_);
  switch (state) {
    case SSH_KNOWN_HOSTS_OK: observer.done(Step::host_key, type + " " + fingerprint + " is known"); return {};
    case SSH_KNOWN_HOSTS_CHANGED:
    case SSH_KNOWN_HOSTS_OTHER: {
      std::string places;
      for (const auto which : {SSH_OPTIONS_KNOWNHOSTS, SSH_OPTIONS_GLOBAL_KNOWNHOSTS}) {
        const auto file = option(which);
        auto content = read_file(file);
        if (!content) continue;
        for (const int line : find_known_host_lines(*content, host_, port_))
          places += (places.empty() ? "" : ", ") + file + " line " + std::to_string(line);
      }
      const auto name = port_ == 22 ? host_ : "[" + host_ + "]:" + std::to_string(port_);
      return fail(Code::host_key_changed,
                  "the host key of " + where() + " is not the one that is known (" + (places.empty() ? "known_hosts" : places) +
                      "): it shows " + type + " " + fingerprint + ". Somebody may be in between, or the machine was set up anew",
                  "ask its administrator; if the new key is right, run: ssh-keygen -R '" + name + "'");
    }
    case SSH_KNOWN_HOSTS_NOT_FOUND:
    case SSH_KNOWN_HOSTS_UNKNOWN: break;
    case SSH_KNOWN_HOSTS_ERROR: return fail(Code::failed_precondition, "cannot check the host key of " + where() + ": " + error_text());
  }
  auto* prompter = services_.prompter;
  const auto resource = config_.resource;
  auto accepts = control().await<bool>(
      [prompter, resource](std::function<void(Result<bool>)> done) { done(prompter->accepts_new_host_keys(resource)); },
      after(handshake_patience));
  if (!accepts) return fail(accepts.error());
  if (!*accepts) {
    v1::Prompt prompt;
    prompt.set_kind(v1::PROMPT_HOST_KEY);
    prompt.set_resource(resource);
    prompt.set_fingerprint(fingerprint);
    prompt.set_text("The host key of " + where() + (address_ == host_ ? "" : " at " + address_) + " is not known yet: " + type + " " +
                    fingerprint + ". Is it the right one?");
    auto answer = ask_user(services_, prompt);
    const auto refused = [&](const std::string& why) {
      return fail(Code::host_key_unknown, "the host key of " + where() + " is not known (" + type + " " + fingerprint + ")" + why,
                  accept_key_hint(resource));
    };
    if (!answer && answer.error().code == Code::canceled && control().stopping()) return fail(answer.error());
    if (!answer) return refused(": " + answer.error().message);
    if (*answer != "yes" && *answer != "y") return refused(" and was not accepted");
  }
  if (ssh_session_update_known_hosts(session_) != SSH_OK)
    observer.warn(Step::host_key, "cannot write the accepted key to known_hosts: " + error_text(), "it will be asked about again");
  else observer.done(Step::host_key, type + " " + fingerprint + " was accepted and written to " + option(SSH_OPTIONS_KNOWNHOSTS));
  return {};
}

int LibsshSession::on_key_passphrase(const char* prompt, char* buffer, size_t size, int echo, int, void* self) {
  auto& session = *static_cast<LibsshSession*>(self);
  v1::Prompt question;
  question.set_kind(echo ? v1::PROMPT_TEXT : v1::PROMPT_SECRET);
  question.set_resource(session.config_.resource);
  question.set_text(std::string(prompt && *prompt ? prompt : "Passphrase of your ssh key") + " (for " + session.where() + ")");
  auto answer = ask_user(session.services_, question);
  if (!answer) {
    session.prompt_error_ = answer.error();
    return -1;
  }
  if (answer->size() + 1 > size) return -1;
  std::memcpy(buffer, answer->c_str(), answer->size() + 1);
  return 0;
}

Result<int> LibsshSession::keyboard_interactive(bool again) {
  const auto step = [&] {
    return repeat([&] { return ssh_userauth_kbdint(session_, nullptr, nullptr); }, SSH_AUTH_AGAIN, after(auth_patience));
  };
  auto rc = step();
  while (rc && *rc == SSH_AUTH_INFO) {
    const int count = ssh_userauth_kbdint_getnprompts(session_);
    const char* instruction = ssh_userauth_kbdint_getinstruction(session_);
    for (int i = 0; i < count; ++i) {
      char echo = 0;
      const char* text = ssh_userauth_kbdint_getprompt(session_, static_cast<unsigned>(i), &echo);
      v1::Prompt prompt;
      prompt.set_kind(echo ? v1::PROMPT_TEXT : v1::PROMPT_SECRET);
      prompt.set_resource(config_.resource);
      prompt.set_text((again ? "That was not accepted. " : "") + where() + ": " +
                      (instruction && *instruction ? std::string(instruction) + " " : "") + (text ? text : ""));
      auto answer = ask_user(services_, prompt);
      if (!answer) return fail(answer.error());
      ssh_userauth_kbdint_setanswer(session_, static_cast<unsigned>(i), answer->c_str());
      wipe(*answer);
    }
    rc = step();
  }
  return rc;
}

Result<int> LibsshSession::with_password(bool again) {
  v1::Prompt prompt;
  prompt.set_kind(v1::PROMPT_SECRET);
  prompt.set_resource(config_.resource);
  prompt.set_text((again ? "That was not accepted. " : "") + std::string("Password of ") + (user_.empty() ? "" : user_ + " at ") + where() +
                  ":");
  auto answer = ask_user(services_, prompt);
  if (!answer) return fail(answer.error());
  auto rc = repeat([&] { return ssh_userauth_password(session_, nullptr, answer->c_str()); }, SSH_AUTH_AGAIN, after(auth_patience));
  wipe(*answer);
  return rc;
}

Status LibsshSession::authenticate(Observer& observer) {
  observer.begin(Step::authentication, "logging in");
  auto rc = repeat([&] { return ssh_userauth_none(session_, nullptr); }, SSH_AUTH_AGAIN, after(auth_patience));
  if (!rc) return fail(rc.error());
  std::string how = "without any proof";
  bool keys_tried = false;
  int interactive = 0, passwords = 0;
  while (*rc != SSH_AUTH_SUCCESS) {
    if (!alive())
      return fail(Code::unavailable, where() + " closed the connection during the login: " + error_text(),
                  "it allows a limited time and number of tries", Retry::yes);
    const int methods = ssh_userauth_list(session_, nullptr);
    if ((methods & SSH_AUTH_METHOD_PUBLICKEY) && !keys_tried) {
      keys_tried = true;
      how = "with a key";
      rc = repeat([&] { return ssh_userauth_publickey_auto(session_, nullptr, nullptr); }, SSH_AUTH_AGAIN, after(auth_patience));
    } else if ((methods & SSH_AUTH_METHOD_INTERACTIVE) && interactive < wrong_secrets) {
      how = "by keyboard-interactive";
      rc = keyboard_interactive(interactive++ > 0);
    } else if ((methods & SSH_AUTH_METHOD_PASSWORD) && passwords < wrong_secrets) {
      how = "with a password";
      rc = with_password(passwords++ > 0);
    } else {
      std::string offered;
      const std::pair<int, const char*> names[] = {{SSH_AUTH_METHOD_PUBLICKEY, "publickey"},
                                                   {SSH_AUTH_METHOD_INTERACTIVE, "keyboard-interactive"},
                                                   {SSH_AUTH_METHOD_PASSWORD, "password"},
                                                   {SSH_AUTH_METHOD_GSSAPI_MIC, "gssapi-with-mic"},
                                                   {SSH_AUTH_METHOD_HOSTBASED, "hostbased"}};
      for (const auto& [bit, name] : names)
        if (methods & bit) offered += (offered.empty() ? "" : ", ") + std::string(name);
      const bool kerberos = (methods & SSH_AUTH_METHOD_GSSAPI_MIC) && !(methods & (SSH_AUTH_METHOD_INTERACTIVE | SSH_AUTH_METHOD_PASSWORD));
      return fail(Code::authentication_failed,
                  where() + " did not let " + (user_.empty() ? "you" : user_) +
                      " in (it takes: " + (offered.empty() ? "nothing" : offered) + ")" +
                      (prompt_error_ ? "; a key's passphrase was not given: " + prompt_error_->message : ""),
                  kerberos ? "it takes Kerberos: set the resource's transport to openssh"
                           : "put your public key into ~/.ssh/authorized_keys there, load your key with ssh-add, or check the user's name");
    }
    if (!rc) return fail(rc.error());
    if (*rc == SSH_AUTH_ERROR && !alive()) continue;  // named above
  }
  observer.done(Step::authentication, std::string("logged in") + (user_.empty() ? "" : " as " + user_) + " " + how);
  return {};
}

Status LibsshSession::connect(Observer& observer) {
  for (const auto step :
       {&LibsshSession::reach, &LibsshSession::hand_shake, &LibsshSession::check_host_key, &LibsshSession::authenticate}) {
    if (!session_)
      if (auto configured = configure(); !configured) return configured;
    if (auto status = (this->*step)(observer); !status) return status;
  }
  return {};
}

// ---- commands ---------------------------------------------------------------------------------------------

class LibsshCommand final : public RemoteCommand {
 public:
  LibsshCommand(LibsshSession& session, ExecStream* stream) : session_(session), stream_(stream) {}
  ~LibsshCommand() override {
    if (stream_) session_.remove(stream_);
  }
  Result<std::string> read_line(Deadline deadline) override {
    for (;;) {
      take();
      if (const auto end = in_.find('\n'); end != std::string::npos) {
        auto line = in_.substr(0, end);
        in_.erase(0, end + 1);
        if (!line.empty() && line.back() == '\r') line.pop_back();
        return line;
      }
      if (stream_->ended()) return fail(ended());
      auto more = session_.turn(deadline);
      if (!more) return fail(more.error());
      if (!*more && std::chrono::steady_clock::now() >= deadline)
        return fail(timeout_error("no answer came from " + session_.where() + " in time"));
    }
  }
  Status write(std::string_view data, Deadline deadline, const std::function<bool(std::size_t)>& progress) override {
    std::size_t done = 0;
    while (done < data.size()) {
      take();
      if (stream_->ended()) return fail(ended());
      const auto count = stream_->write_now(data.substr(done, piece_bytes));
      done += count;
      if (count && progress && !progress(done)) return {};
      auto more = session_.turn(stream_->can_write() ? after(std::chrono::milliseconds(0)) : deadline);
      if (!more) return fail(more.error());
      if (!*more && std::chrono::steady_clock::now() >= deadline) return fail(timeout_error(session_.where() + " takes no more data"));
    }
    return {};
  }
  // What is left of stdout goes with it.
  ExecStream* release(std::string& rest) {
    take();
    rest = std::move(in_);
    return std::exchange(stream_, nullptr);
  }

 private:
  void take() {
    in_ += stream_->received;
    stream_->received.clear();
    add_errors(stream_->errors);
    stream_->errors.clear();
  }
  // Its exit status and its last words follow the end of its stdout.
  Error ended() {
    const auto until = after(last_words_patience);
    while (!stream_->closed() && std::chrono::steady_clock::now() < until) {
      auto more = session_.turn(until);
      if (!more) break;
    }
    take();
    const auto said = stderr_tail();
    return {Code::unavailable,
            "the command on " + session_.where() + " ended" + stream_->how_it_ended() + (said.empty() ? "" : ": " + said),
            {},
            Retry::yes,
            {}};
  }
  LibsshSession& session_;
  ExecStream* stream_;
};

Result<std::unique_ptr<RemoteCommand>> LibsshSession::run(const std::string& command, Deadline deadline) {
  auto* stream = static_cast<ExecStream*>(add(std::make_unique<ExecStream>(*this, command)));
  if (!stream) return fail(Code::resource_exhausted, "no memory for an ssh channel");
  const auto until = std::min(deadline, after(channel_patience));
  // Not through advance(): its failure is this call's, and frees it here.
  for (;;) {
    const int rc = stream->try_open();
    if (rc == SSH_OK) {
      stream->phase = Stream::Phase::open;
      return std::make_unique<LibsshCommand>(*this, stream);
    }
    if (rc != SSH_AGAIN) {
      auto text = error_text();
      remove(stream);
      if (!alive()) return fail(broken());
      return fail(Code::permission_denied, where() + " does not run commands: " + text,
                  "the account needs a login shell there; a session limit (MaxSessions) may be reached");
    }
    const int flags = ssh_get_poll_flags(session_);
    auto ready = control().wait(ssh_get_fd(session_), static_cast<short>(POLLIN | (flags & SSH_WRITE_PENDING ? POLLOUT : 0)), until);
    if (!ready || *ready == 0) {
      remove(stream);
      if (!ready) return fail(ready.error());
      return fail(timeout_error("no answer came from " + where() + " in time"));
    }
  }
}

Error LibsshSession::serve(std::unique_ptr<RemoteCommand> connector, unique_fd link, const std::string& channel_socket) {
  channel_socket_ = channel_socket;
  outlived_its_hub_ = false;
  std::string rest;
  auto* stream = static_cast<LibsshCommand&>(*connector).release(rest);
  connector.reset();
  stream->join(std::move(link), std::move(rest));
  std::string said;
  auto quiet_at = Deadline::max();
  const auto end_all = [&](Error error) {
    for (auto& each : streams_) each->on_session_end(error.message);
    return error;
  };
  for (;;) {
    auto turned = turn(quiet_at);
    if (!turned) return end_all(turned.error());
    const bool there = std::any_of(streams_.begin(), streams_.end(), [&](const auto& each) { return each.get() == stream; });
    if (there && !stream->errors.empty()) {
      said += stream->errors;
      stream->errors.clear();
      if (said.size() > 4096) said.erase(0, said.size() - 4096);
      spdlog::debug("{}: the connector says: {}", where(), said);
    }
    if (!there || stream->local_ended()) {
      while (!said.empty() && said.back() == '\n') said.pop_back();
      Error error{Code::unavailable, "the hub's link on " + where() + " ended" + (said.empty() ? "" : ": " + said), {}, Retry::yes, {}};
      outlived_its_hub_ = !there || stream->ended();
      if (!outlived_its_hub_) return end_all(std::move(error));
      if (there) remove(stream);
      return error;  // what else goes through the connection goes on
    }
    const auto now = std::chrono::steady_clock::now();
    const bool owes = std::any_of(streams_.begin(), streams_.end(), [](const auto& each) { return each->owes(); });
    if (!owes) quiet_at = Deadline::max();
    else if (quiet_at == Deadline::max()) quiet_at = now + quiet_time;
    else if (now >= quiet_at) {
      for (auto& each : streams_)
        if (each->owes()) each->on_quiet();
      quiet_at = Deadline::max();
    }
  }
}

void LibsshSession::open_channel(std::shared_ptr<UserChannel> channel, std::uint32_t epoch, const std::string& ticket) {
  add(std::make_unique<ChannelStream>(*this, std::move(channel), epoch, ticket, channel_socket_));
}

void LibsshSession::open_tcp(const std::string& host, int port, const std::string& dialer, unique_fd local,
                             std::function<void(Status)> done) {
  add(std::make_unique<TcpStream>(*this, host, port, dialer, std::move(local), std::move(done)));
}

}  // namespace

std::unique_ptr<Session> make_libssh_session(SessionServices services, SessionConfig config) {
  return std::make_unique<LibsshSession>(std::move(services), std::move(config));
}

}  // namespace flotilla::daemon
