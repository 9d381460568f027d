#include "daemon/monitor/monitor.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <charconv>
#include <cstring>
#include <unordered_set>

#include "daemon/monitor/core/change_log.hpp"
#include "daemon/monitor/json.hpp"
#include "daemon/monitor/page.hpp"
#include "daemon/monitor/request.hpp"
#include "proto/base/log.hpp"
#include "proto/base/random.hpp"
#include "proto/base/socket_diag.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using asio::ip::tcp;
using boost::system::error_code;
using Steady = std::chrono::steady_clock;
using namespace monitor;

constexpr std::size_t most_batch = 256;                        // changes in one event
constexpr std::size_t most_batch_bytes = 128u << 10;           // a batch is closed when it is longer
constexpr int stream_send_buffer = 256 << 10;                  // bytes in the kernel: old news must not pile up there
constexpr auto retry_accept = std::chrono::milliseconds(100);  // out of descriptors: others must close first

constexpr std::string_view json_type = "application/json";

bool has_ended(v1::JobState state) { return state == v1::JOB_FINISHED || state == v1::JOB_FAILED || state == v1::JOB_CANCELED; }

// The present state as it is sent to one watcher, slice by slice.
struct Snapshot {
  std::vector<v1::Change> changes;
  std::size_t next = 0;
  std::uint64_t omitted_jobs = 0;
};

// Keeps the `most` jobs that matter: those that have not ended, then the newest.
void keep_most(std::vector<v1::Change>& jobs, std::size_t most) {
  if (jobs.size() <= most) return;
  std::nth_element(jobs.begin(), jobs.begin() + static_cast<std::ptrdiff_t>(most), jobs.end(),
                   [](const v1::Change& a, const v1::Change& b) {
                     bool ended_a = has_ended(a.job().state()), ended_b = has_ended(b.job().state());
                     return ended_a != ended_b ? ended_b : a.job().id() > b.job().id();
                   });
  jobs.resize(most);
}

Snapshot take_snapshot(MonitorSource& source, std::size_t most_jobs) {
  Snapshot snapshot;
  std::vector<v1::Change> jobs;
  std::uint64_t seen_jobs = 0;
  source.for_each([&](const v1::Change& change) {
    if (change.has_job()) {
      ++seen_jobs;
      jobs.push_back(slim(change));
      if (jobs.size() >= 2 * most_jobs) keep_most(jobs, most_jobs);
    } else if (!key_of(change).empty()) {
      snapshot.changes.push_back(slim(change));
    }
  });
  keep_most(jobs, most_jobs);
  std::sort(jobs.begin(), jobs.end(), [](const v1::Change& a, const v1::Change& b) { return a.job().id() < b.job().id(); });
  snapshot.omitted_jobs = seen_jobs - jobs.size();
  std::move(jobs.begin(), jobs.end(), std::back_inserter(snapshot.changes));
  return snapshot;
}

// Appends "[{...},{...}]" of at most a batch from [from, end); returns how many.
template <class At>
std::size_t append_batch(std::string& out, std::size_t count, At at) {
  auto start = out.size();
  std::size_t done = 0;
  while (done < count && done < most_batch && out.size() - start < most_batch_bytes) {
    if (done != 0) out += ',';
    append_json(out, at(done));
    ++done;
  }
  return done;
}

}  // namespace

// One connection of a browser.
class MonitorSession;

struct Monitor::Impl : std::enable_shared_from_this<Monitor::Impl> {
  Impl(asio::io_context& io, MonitorSource& source, MonitorOptions options)
      : io(io), source(&source), limits(options.limits), listener(io), retry(io), flush_timer(io),
        log(options.limits.log_entries, options.limits.log_bytes), epoch(random_hex(4)) {
    access.port = options.port != 0 ? options.port : options.last_port;
    any_port = options.port == 0;
    admit_user = options.admit_user;
    access.token = options.token.empty() ? random_hex(32) : std::move(options.token);
  }

  Status start();
  void accept_next();
  void on_readable();
  bool wanted();
  void changed(const v1::Change& change);
  void flush();
  void end();

  std::string event_id(std::uint64_t version) const { return epoch + "." + std::to_string(version); }
  // The position that an id stands for, if it can be taken up from there.
  std::optional<std::uint64_t> resume_from(std::string_view id) const;
  std::string info_json();
  void leave(MonitorSession* session);

  asio::io_context& io;
  MonitorSource* source;  // null after end()
  const MonitorLimits limits;
  Access access;
  bool any_port = false;
  bool admit_user = false;
  tcp::acceptor listener;
  asio::steady_timer retry;
  asio::steady_timer flush_timer;
  bool flush_pending = false;
  Steady::time_point last_flush{};
  ChangeLog log;
  std::uint64_t released = 0;  // watchers are told what is up to this version
  const std::string epoch;     // ids of an earlier daemon are not taken for ours
  std::unordered_set<MonitorSession*> sessions;
  std::unordered_set<MonitorSession*> watchers;  // of sessions, those with an event stream
  bool was_watched = false;
  Steady::time_point last_watched{};
};

class MonitorSession : public std::enable_shared_from_this<MonitorSession> {
 public:
  MonitorSession(std::shared_ptr<Monitor::Impl> impl, tcp::socket socket, bool known_user)
      : impl_(std::move(impl)), stream_(std::move(socket)), known_user_(known_user), raw_(impl_->io), tick_(impl_->io) {
    impl_->sessions.insert(this);
  }
  ~MonitorSession() { impl_->leave(this); }

  void read() {
    parser_.emplace();
    prepare(*parser_);
    stream_.expires_after(impl_->limits.request);
    http::async_read(stream_, buffer_, *parser_, [self = shared_from_this()](error_code error, std::size_t) { self->on_read(error); });
  }

  void close() {
    error_code ignored;
    tick_.cancel();
    stream_.close();
    raw_.close(ignored);
    ended_ = true;
  }

  // A watcher: sends what it has not been told yet. One write at a time; continues when that is done.
  void pump();

 private:
  enum class Phase { request, begin, snapshot, live, closing };

  void on_read(error_code error);
  void answer(const Route& route);
  void send(Response response);
  void begin_stream(const Route& route);
  void watch_for_end();
  void tick();
  void write_out();
  void append_snapshot();
  void append_changes();

  std::shared_ptr<Monitor::Impl> impl_;
  beast::tcp_stream stream_;
  const bool known_user_;
  beast::flat_buffer buffer_{most_header_bytes * 2};
  std::optional<Parser> parser_;
  std::optional<Response> response_;
  bool ended_ = false;

  // streams
  tcp::socket raw_;
  asio::steady_timer tick_;
  Phase phase_ = Phase::request;
  bool events_ = false;  // server-sent events, else one JSON document
  Snapshot snapshot_;
  bool resumed_ = false;
  std::uint64_t version_ = 0;  // it knows everything up to here
  std::string out_;
  bool writing_ = false;
  std::uint64_t writes_ = 0;  // finished ones
  std::uint64_t writes_at_tick_ = 0;
  bool heartbeat_due_ = false;
  char unread_[256];  // what a client sends into its stream is thrown away
};

// ---- one connection -------------------------------------------------------------------------------------

void MonitorSession::on_read(error_code error) {
  if (ended_ || impl_->source == nullptr) return;
  if (!error) {
    auto request = view_of(parser_->get());
    request.known_user = known_user_;
    return answer(route(request, impl_->access));
  }
  if (error == http::error::end_of_stream || error == beast::error::timeout) return close();
  if (error.category() == make_error_code(http::error::bad_method).category()) return send(make_bad_request(error));
  close();
}

void MonitorSession::answer(const Route& route) {
  const auto& request = parser_->get();
  auto& source = *impl_->source;
  auto refuse = [&](unsigned status, const char* code, std::string message, std::string hint = {}) {
    Route refused = route;
    refused.status = status;
    refused.code = code;
    refused.message = std::move(message);
    refused.hint = std::move(hint);
    send(make_refusal(request, refused));
  };

  switch (route.target) {
    case Target::refused: return send(make_refusal(request, route));

    case Target::login: {
      auto response = make_response(request, 303, "text/plain; charset=utf-8", "");
      response.set(http::field::location, "/");
      response.set(http::field::set_cookie,
                   impl_->access.cookie_name() + "=" + impl_->access.token + "; HttpOnly; SameSite=Strict; Path=/");
      return send(std::move(response));
    }

    case Target::page: {
      const auto* file = find_page_file(route.path);
      if (file == nullptr) return refuse(404, "NOT_FOUND", "there is no such page", "go to /");
      return send(make_response(request, 200, file->type, std::string(file->content)));
    }

    case Target::info: return send(make_response(request, 200, json_type, impl_->info_json() + "\n"));

    case Target::job: {
      auto job = source.job(route.job);
      if (!job) return refuse(404, "NOT_FOUND", "there is no job " + std::to_string(route.job));
      std::string body;
      append_json(body, detail(*job));
      body += '\n';
      return send(make_response(request, 200, json_type, std::move(body)));
    }

    case Target::output: {
      auto output = source.output(route.job, route.stream, route.tail_bytes);
      if (!output) {
        const auto& error = output.error();
        auto code = static_cast<v1::ErrorCode>(error.code);
        return refuse(error.code == Code::not_found ? 404 : 503, v1::ErrorCode_Name(code).c_str(), error.message, error.hint);
      }
      return send(make_response(request, 200, "text/plain; charset=utf-8", std::move(*output)));
    }

    case Target::snapshot:
    case Target::events:
      if (route.head) return send(make_response(request, 200, route.target == Target::events ? "text/event-stream" : json_type, ""));
      if (route.target == Target::events && impl_->watchers.size() >= impl_->limits.watchers)
        return refuse(503, "RESOURCE_EXHAUSTED", "this page is open " + std::to_string(impl_->limits.watchers) + " times already",
                      "close one of the others");
      return begin_stream(route);
  }
}

void MonitorSession::send(Response response) {
  response_.emplace(std::move(response));
  stream_.expires_after(impl_->limits.request);
  http::async_write(stream_, *response_, [self = shared_from_this()](error_code error, std::size_t) {
    if (error || self->ended_ || self->impl_->source == nullptr) return self->close();
    if (self->response_->keep_alive()) return self->read();
    error_code ignored;
    self->stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    self->close();
  });
}

// ---- streams --------------------------------------------------------------------------------------------

void MonitorSession::begin_stream(const Route& route) {
  stream_.expires_never();
  raw_ = stream_.release_socket();
  error_code ignored;
  raw_.set_option(asio::socket_base::send_buffer_size(stream_send_buffer), ignored);
  events_ = route.target == Target::events;
  phase_ = Phase::begin;
  // Also who takes one snapshot gets a position, from which a stream may go on.
  impl_->was_watched = true;
  impl_->last_watched = Steady::now();
  if (events_) impl_->watchers.insert(this);
  auto from = events_ ? impl_->resume_from(route.last_event_id) : std::nullopt;
  resumed_ = from.has_value();
  version_ = from.value_or(impl_->log.version());
  if (!resumed_) snapshot_ = take_snapshot(*impl_->source, impl_->limits.snapshot_jobs);
  impl_->released = impl_->log.version();
  watch_for_end();
  tick();
  pump();
}

void MonitorSession::watch_for_end() {
  raw_.async_read_some(asio::buffer(unread_), [self = shared_from_this()](error_code error, std::size_t) {
    if (error) return self->close();
    self->watch_for_end();
  });
}

void MonitorSession::tick() {
  tick_.expires_after(impl_->limits.heartbeat);
  tick_.async_wait([self = shared_from_this()](error_code error) {
    if (error || self->ended_) return;
    // The same write was under way a heartbeat ago: nobody reads. A browser that comes back gets what it missed.
    if (self->writing_ && self->writes_ == self->writes_at_tick_) return self->close();
    self->writes_at_tick_ = self->writes_;
    if (self->events_) {
      self->heartbeat_due_ = true;
      self->pump();
    }
    self->tick();
  });
}

void MonitorSession::append_snapshot() {
  auto left = snapshot_.changes.size() - snapshot_.next;
  if (events_ && left != 0) out_ += "event: changes\ndata: [";
  if (!events_ && snapshot_.next != 0 && left != 0) out_ += ",\n";
  snapshot_.next += append_batch(out_, left, [&](std::size_t i) -> const v1::Change& { return snapshot_.changes[snapshot_.next + i]; });
  if (events_ && left != 0) out_ += "]\n\n";
  if (snapshot_.next < snapshot_.changes.size()) return;
  // Only now an id: a stream that is cut within the snapshot starts over.
  out_ += events_ ? "id: " + impl_->event_id(version_) + "\nevent: snapshot_end\ndata: {}\n\n" : "]}\n";
  phase_ = events_ ? Phase::live : Phase::closing;
  snapshot_ = {};
}

void MonitorSession::append_changes() {
  if (!impl_->log.reaches(version_)) {
    out_ += "event: reset\ndata: {\"reason\":\"this page did not keep up and starts afresh\"}\n\n";
    phase_ = Phase::closing;
    return;
  }
  if (version_ >= impl_->released) return;
  std::string batch;
  auto from = version_;
  auto changes = impl_->log.after(from, most_batch);
  auto sent = append_batch(batch, changes.size(), [&](std::size_t i) -> const v1::Change& { return *changes[i]; });
  if (sent < changes.size()) {  // it was cut by its bytes: the position is behind the last one that is in it
    from = version_;
    impl_->log.after(from, sent);
  }
  version_ = from;
  if (sent == 0) return;
  out_ += "id: " + impl_->event_id(version_) + "\nevent: changes\ndata: [" + batch + "]\n\n";
}

void MonitorSession::pump() {
  if (writing_ || ended_ || impl_->source == nullptr) return;
  out_.clear();
  switch (phase_) {
    case Phase::request: return;
    case Phase::begin: {
      out_ = stream_head(events_ ? "text/event-stream" : json_type);
      auto about = "\"id\":\"" + impl_->event_id(version_) + "\",\"info\":" + impl_->info_json();
      auto omitted = ",\"omitted_jobs\":" + std::to_string(snapshot_.omitted_jobs);
      if (!events_) {
        out_ += "{" + about + omitted + ",\"changes\":[";
        phase_ = Phase::snapshot;
      } else if (resumed_) {
        out_ += "retry: 1000\nevent: resumed\ndata: {" + about + "}\n\n";
        phase_ = Phase::live;
      } else {
        out_ += "retry: 1000\nevent: snapshot\ndata: {" + about + omitted + "}\n\n";
        phase_ = Phase::snapshot;
      }
      break;
    }
    case Phase::snapshot: append_snapshot(); break;
    case Phase::live: append_changes(); break;
    case Phase::closing: {
      error_code ignored;
      raw_.shutdown(tcp::socket::shutdown_send, ignored);
      return close();
    }
  }
  if (heartbeat_due_) {
    heartbeat_due_ = false;
    if (out_.empty()) out_ = ": heartbeat\n\n";
  }
  if (!out_.empty()) write_out();
}

void MonitorSession::write_out() {
  writing_ = true;
  asio::async_write(raw_, asio::buffer(out_), [self = shared_from_this()](error_code error, std::size_t) {
    self->writing_ = false;
    ++self->writes_;
    if (error) return self->close();
    self->pump();
  });
}

// ---- the server -----------------------------------------------------------------------------------------

Status Monitor::Impl::start() {
  unique_fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail(errno_error(Code::unavailable, "cannot make the web page's socket"));
  int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(access.port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  int bound = ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length);
  if (bound != 0 && any_port && access.port != 0) {
    access.port = 0;
    address.sin_port = 0;
    bound = ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length);
  }
  if (bound != 0 || ::listen(fd.get(), 64) != 0 || ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    auto error = errno_error(Code::unavailable, "cannot listen for the web page on 127.0.0.1:" + std::to_string(access.port));
    error.hint = "choose another port for the web page in the configuration, or 0 for any that is free";
    return fail(std::move(error));
  }
  access.port = ntohs(address.sin_port);
  error_code error;
  listener.assign(tcp::v4(), fd.get(), error);
  if (error) return fail(Code::internal, "cannot watch the web page's socket: " + error.message());
  fd.release();
  accept_next();
  return {};
}

void Monitor::Impl::accept_next() {
  listener.async_wait(tcp::acceptor::wait_read, [self = shared_from_this()](error_code error) {
    if (!error && self->source != nullptr) self->on_readable();
  });
}

void Monitor::Impl::on_readable() {
  // Not by Asio: it opens descriptors that a started process would inherit.
  unique_fd fd(::accept4(listener.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      spdlog::warn("the web page cannot take a connection: {}", std::strerror(errno));
      retry.expires_after(retry_accept);
      retry.async_wait([self = shared_from_this()](error_code error) {
        if (!error && self->source != nullptr) self->accept_next();
      });
      return;
    }
    return accept_next();
  }
  if (sessions.size() >= limits.connections) {
    static constexpr std::string_view busy =
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 5\r\n\r\n";
    [[maybe_unused]] auto sent = ::send(fd.get(), busy.data(), busy.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  } else {
    int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    bool known_user = false;
    if (admit_user) {  // asked while the other end is there: its address is nobody else's meanwhile
      const auto peer = peer_end(fd.get());
      known_user = peer && peer->uid == ::getuid();
    }
    tcp::socket socket(io);
    error_code error;
    socket.assign(tcp::v4(), fd.get(), error);
    if (!error) {
      fd.release();
      std::make_shared<MonitorSession>(shared_from_this(), std::move(socket), known_user)->read();
    }
  }
  accept_next();
}

void Monitor::Impl::leave(MonitorSession* session) {
  sessions.erase(session);
  if (watchers.erase(session) != 0 && watchers.empty()) last_watched = Steady::now();
}

bool Monitor::Impl::wanted() {
  if (source == nullptr) return false;
  if (!watchers.empty()) return true;
  if (!was_watched) return false;
  if (Steady::now() - last_watched <= limits.unwatched) return true;
  // From here on there is a gap: positions from before it are no longer good.
  was_watched = false;
  log.skip();
  return false;
}

void Monitor::Impl::changed(const v1::Change& change) {
  if (!wanted()) return;
  log.add(slim(change));
  if (flush_pending || watchers.empty()) return;
  flush_pending = true;
  // At once when it has been quiet (the rest of the present handler's changes go with it), else when it is time.
  flush_timer.expires_at(last_flush + limits.flush);
  flush_timer.async_wait([self = shared_from_this()](error_code error) {
    if (!error) self->flush();
  });
}

void Monitor::Impl::flush() {
  flush_pending = false;
  if (source == nullptr) return;
  last_flush = Steady::now();
  released = log.version();
  for (auto* watcher : std::vector<MonitorSession*>(watchers.begin(), watchers.end())) watcher->pump();
}

std::optional<std::uint64_t> Monitor::Impl::resume_from(std::string_view id) const {
  if (!id.starts_with(epoch) || id.size() < epoch.size() + 2 || id[epoch.size()] != '.') return std::nullopt;
  auto number = id.substr(epoch.size() + 1);
  std::uint64_t version = 0;
  auto [rest, error] = std::from_chars(number.data(), number.data() + number.size(), version);
  if (error != std::errc() || rest != number.data() + number.size() || !log.reaches(version)) return std::nullopt;
  return version;
}

std::string Monitor::Impl::info_json() {
  auto info = source->info();
  info.clear_web_url();  // it holds the token
  std::string out;
  append_json(out, info);
  return out;
}

void Monitor::Impl::end() {
  if (source == nullptr) return;
  source = nullptr;
  error_code ignored;
  listener.close(ignored);
  retry.cancel();
  flush_timer.cancel();
  for (auto* session : std::vector<MonitorSession*>(sessions.begin(), sessions.end())) session->close();
}

Monitor::Monitor(asio::io_context& io, MonitorSource& source, MonitorOptions options)
    : impl_(std::make_shared<Impl>(io, source, std::move(options))) {}
Monitor::~Monitor() { end(); }

Status Monitor::start() { return impl_->start(); }
std::uint16_t Monitor::port() const { return impl_->listener.is_open() ? impl_->access.port : 0; }
std::string Monitor::url() const {
  if (!impl_->listener.is_open()) return {};
  return "http://127.0.0.1:" + std::to_string(impl_->access.port) + "/?token=" + impl_->access.token;
}
bool Monitor::wanted() { return impl_->wanted(); }
void Monitor::changed(const v1::Change& change) { impl_->changed(change); }
void Monitor::end() { impl_->end(); }

}  // namespace flotilla
