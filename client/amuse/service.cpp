#include "client/amuse/service.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>

#include "client/amuse/python_files.hpp"
#include "client/amuse/output_follower.hpp"
#include "client/amuse/core/home_line.hpp"
#include "client/amuse/core/own_words.hpp"
#include "client/amuse/relay.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/socket_diag.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::amuse {
namespace {

constexpr int greeting_patience_ms = 10'000;  // a connection that says nothing keeps nobody waiting, and does not stay

constexpr auto own_end_limit = std::chrono::seconds(5);      // for a worker that was stopped, to end by itself
constexpr auto own_pilots_limit = std::chrono::seconds(30);  // for each of the script's pilots in a daemon that stays
constexpr auto cause_limit = std::chrono::seconds(2);        // the call that a death ends waits for its cause
constexpr auto look_again = std::chrono::milliseconds(250);  // at the other pilots, and the script, while one is waited for

constexpr const char* pending = "PENDING";

[[noreturn]] void fail_with(ErrorCode code, std::string message, std::string hint = {}) {
  FlotillaError::Details details;
  details.code = code;
  details.message = std::move(message);
  details.hint = std::move(hint);
  throw FlotillaError(details);
}

template <class Map>
auto& find(Map& map, int id, const char* what) {
  const auto it = map.find(id);
  if (it == map.end()) fail_with(ErrorCode::not_found, std::string("there is no ") + what + " " + std::to_string(id));
  return it->second;
}

std::string reply_with(const wire::Header& asked, bool error, std::string_view text) {
  wire::Header header{wire::native_big_endian, error, asked.call_id, asked.function_id, asked.call_count};
  wire::PackedStrings strings;
  header.counts[wire::string_type] = 1;
  strings.add(text);
  unsigned char head[wire::header_size];
  wire::format_header(header, head);
  std::string reply(reinterpret_cast<const char*>(head), sizeof head);
  reply.append(reinterpret_cast<const char*>(strings.lengths.data()), strings.lengths.size() * 4);
  return reply + strings.text;
}

void send_reply(int to, const wire::Header& asked, bool error, std::string_view text) {
  const auto reply = reply_with(asked, error, text);
  iovec parts[] = {{const_cast<char*>(reply.data()), reply.size()}};
  wire::FdStream(to).write(parts, 1);
}

std::string last_lines(const std::optional<ExitReason>& exit) {
  const auto tail = exit ? without_home_line(exit->stderr_tail) : std::string();
  return tail.empty() ? "" : "\nlast lines of its stderr:\n" + tail;
}

// "worker hermite_worker on node1 was killed by signal 9 (SIGKILL)" and the last lines of its stderr.
std::string words_of(const FlotillaError& error) {
  return error.message() + (error.hint().empty() ? "" : "; " + error.hint()) + last_lines(error.exit());
}

std::string cause_of(const Worker& worker) {
  constexpr std::string_view heading = "\nlast lines of its stderr:\n";
  auto text = without_home_line(worker.explain_end(cause_limit));
  if (text.ends_with(heading)) text.resize(text.size() - heading.size());
  return text.empty() ? "the connection to worker " + std::to_string(worker.id()) + " ended; the cause is not known yet" : text;
}

// While it lives: requests a stop when the script closes `client`, or `ending` becomes readable. Also when the script says something, which
// nobody does who waits for an answer: AMUSE stops what it has asked for, when Python exits, whether it was answered or not.
class LeaveWatch {
 public:
  LeaveWatch(int client, int ending) : done_(eventfd(0, EFD_CLOEXEC)) {
    if (!done_) throw std::system_error(errno, std::generic_category(), "cannot watch a script's connection");
    thread_ = std::thread([this, client, ending] {
      pollfd waits[3] = {{client, POLLIN | POLLRDHUP, 0}, {ending, POLLIN, 0}, {done_.get(), POLLIN, 0}};
      while (::poll(waits, 3, -1) < 0) {}
      if (waits[0].revents || waits[1].revents) stop_.request_stop();
    });
  }
  LeaveWatch(const LeaveWatch&) = delete;
  LeaveWatch& operator=(const LeaveWatch&) = delete;
  ~LeaveWatch() {
    const std::uint64_t one = 1;
    if (::write(done_.get(), &one, sizeof one) < 0) std::perror("the watch of a script's connection");
    thread_.join();
  }
  std::stop_token token() const { return stop_.get_token(); }

 private:
  unique_fd done_;
  std::stop_source stop_;
  std::thread thread_;
};

}  // namespace

bool has_gone(int connection) {
  pollfd look{connection, POLLRDHUP, 0};
  return ::poll(&look, 1, 0) > 0 && look.revents != 0;
}

Service::~Service() {
  try {
    end_all();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
}

void Service::check_committed() const {
  if (!committed()) fail_with(ErrorCode::failed_precondition, "the parameters are not committed yet", "call commit_parameters first");
}

Daemon Service::daemon() const {
  check_committed();
  return attached_ ? *attached_ : daemon_->daemon();
}

std::string Service::own_words(std::string text) const {
  if (daemon_) return amuse::own_words(text, (daemon_->folder() / "state").string());
  return attached_ && !parameters.attach->empty() ? amuse::own_words(text, *parameters.attach) : text;
}

void Service::commit() {
  if (committed()) fail_with(ErrorCode::failed_precondition, "the parameters were committed before");
  if (parameters.attach) {
    if (parameters.web_port)
      fail_with(ErrorCode::failed_precondition, "webinterface_port is the daemon's own: this script attaches to one that runs",
                "leave webinterface_port as it is");
    if (!parameters.attach->empty()) {
      setenv("FLOTILLA_STATE_DIR", parameters.attach->c_str(), 1);
      unsetenv("FLOTILLA_RUNTIME_DIR");
    }
    DaemonOptions how;
    how.start = false;
    how.on_waiting = [](const WaitNotice&) {};  // the script is told when it is over
    auto daemon = std::make_unique<Daemon>(how);
    daemon->info();  // it answers
    attached_ = std::move(daemon);
    return listen();
  }
  daemon_ = std::make_unique<PrivateDaemon>(
      PrivateDaemonOptions{.program = program_, .web_port = parameters.web_port, .debug = parameters.debug});
  std::fprintf(stderr, "the web page of this script: %s\n", daemon().info().web_url.c_str());
  if (parameters.debug) std::fprintf(stderr, "debug: the files of this script are kept in %s\n", daemon_->folder().c_str());
  over_ = {};
  listen();
}

int Service::web_port() const {
  if (!committed()) return parameters.web_port;
  const auto url = web_link();  // http://127.0.0.1:PORT/...
  const auto at = url.find(':', url.find("//") + 2);
  return at == std::string::npos ? 0 : std::atoi(url.c_str() + at + 1);
}

std::string Service::web_link() const {
  return call([](const Daemon& daemon) { return daemon.info(); }).web_url;
}

// ---- resources and pilots

int Service::new_resource(const ResourceRow& row) {
  for (const auto& [id, other] : resources_)
    if (other.name == row.name) fail_with(ErrorCode::already_exists, "there is a resource '" + row.name + "' already");
  // Each daemon has a resource of the name 'local'; one of the script's own has it as the script describes it.
  if (attached_ && row.name == "local") {
    const std::lock_guard lock(mutex_);
    root_ = row.amuse_dir;
    resources_[resource_count_] = row;
    return resource_count_++;
  }
  const auto spec = make_resource_spec(row, parameters.debug);
  const auto resource = call([&](const Daemon& daemon) { return daemon.add_resource(spec, row.name == "local"); });
  if (resource.info().spec.location.empty()) {
    const std::lock_guard lock(mutex_);
    if (root_.empty()) root_ = row.amuse_dir;
  } else {
    try {
      resource.connect();
    } catch (...) {
      try {
        resource.remove(true);
      } catch (const FlotillaError& error) {  // why it cannot be reached is what the script has to know
        std::fprintf(stderr, "resource '%s' stays known to the daemon: %s\n", row.name.c_str(), error.what());
      }
      throw;
    }
  }
  resources_[resource_count_] = row;
  return resource_count_++;
}

const ResourceRow& Service::resource(int id) const { return find(resources_, id, "resource"); }

void Service::delete_resource(int id) {
  const auto name = find(resources_, id, "resource").name;
  const auto remove = [&](const Daemon& daemon) {
    // What runs there ends with it.
    std::string numbers;
    for (const auto& pilot : daemon.pilots()) {
      if (pilot.spec.resource != name) continue;
      numbers += (numbers.empty() ? "" : ", ") + std::to_string(pilot.id);
      if (name == "local") daemon.pilot(pilot.id).stop();
    }
    if (!numbers.empty())
      std::fprintf(stderr, "resource '%s' is deleted: the pilots on it end (%s), and the codes there\n", name.c_str(), numbers.c_str());
    // This machine stays; what the script said of it does not.
    if (name == "local") daemon.add_resource({.name = name, .driver = "local"}, true);
    else daemon.resource(name).remove(true);
  };
  if (!attached_ || name != "local") call(remove);
  resources_.erase(id);
}

int Service::new_pilot(const PilotRow& row) {
  const auto spec = make_pilot_spec(row, parameters.debug);
  const auto pilot = call([&](const Daemon& daemon) { return daemon.start_pilot(spec); });
  for (const auto& [id, resource] : resources_)
    if (resource.name == row.resource_name && resource.amuse_dir == bundle_word) {
      const std::lock_guard lock(mutex_);
      bundled_.insert(row.label);
    }
  pilots_[pilot_count_] = row;
  pilot_numbers_[pilot_count_] = pilot.id();
  return pilot_count_++;
}

const PilotRow& Service::pilot(int id) const { return find(pilots_, id, "pilot"); }

std::string Service::pilot_status(int id) const {
  const auto number = find(pilot_numbers_, id, "pilot");
  return call([&](const Daemon& daemon) { return amuse::pilot_status(daemon.pilot(number).info().state); });
}

void Service::delete_pilot(int id) {
  const auto number = find(pilot_numbers_, id, "pilot");
  call([&](const Daemon& daemon) { daemon.pilot(number).stop(); });
  pilots_.erase(id);
  pilot_numbers_.erase(id);
}

void Service::wait_for_pilots(int control) const {
  for (;;) {
    const auto all = call([](const Daemon& daemon) { return daemon.pilots(true); });
    std::uint64_t starting = 0;
    for (const auto& [id, number] : pilot_numbers_) {
      const auto info = std::find_if(all.begin(), all.end(), [&, number = number](const PilotInfo& each) { return each.id == number; });
      if (info == all.end() || has_ended(info->state)) {
        const auto& row = pilot(id);
        fail_with(ErrorCode::failed_precondition, "pilot " + std::to_string(number) + " on '" + row.resource_name + "' (label '" +
                                                      row.label + "') has " +
                                                      (info != all.end() && info->state == PilotState::failed ? "failed" : "ended") +
                                                      (info == all.end() || info->message.empty() ? "" : ": " + info->message));
      }
      if (info->state == PilotState::submitted || info->state == PilotState::starting) starting = number;
    }
    if (starting == 0) return;
    if (has_gone(control)) fail_with(ErrorCode::canceled, "the script has gone while its pilots were waited for");
    try {
      daemon().pilot(starting).wait(look_again);
    } catch (const FlotillaError&) {
      // Not yet, or never: the next look tells.
    }
  }
}

// ---- workers

WorkerRow Service::worker(int id) const {
  WorkerRow row;
  std::set<std::uint64_t> started;
  std::size_t before = 0;  // that wait as it does, and are not to be told from it
  {
    const std::lock_guard lock(mutex_);
    const auto at = std::find_if(served_.begin(), served_.end(), [&](const Served& each) { return each.id == id && !each.over; });
    if (at == served_.end()) fail_with(ErrorCode::not_found, "there is no worker " + std::to_string(id));
    row = at->row;
    for (const auto& each : served_) {
      if (each.job != 0) started.insert(each.job);
      before += each.id > 0 && each.id < id && !each.over && each.row.status == pending && each.row.executable == row.executable &&
                each.row.label == row.label;
    }
  }
  if (row.status != pending) return row;
  // Which job it is the daemon says when it has started.
  const auto name = row.executable.substr(row.executable.find_last_of('/') + 1);
  for (const auto& job : call([](const Daemon& daemon) { return daemon.jobs(); })) {
    if (!job.is_worker || job.name != name || job.label != row.label || has_ended(job.state) || started.contains(job.id)) continue;
    if (before-- > 0) continue;
    if (job_status(job.state) != pending) row.status = "INITIALIZING";
    break;
  }
  return row;
}

std::vector<int> Service::worker_ids() const {
  const std::lock_guard lock(mutex_);
  std::vector<int> ids;
  for (const auto& each : served_)
    if (each.id > 0 && !each.over) ids.push_back(each.id);
  return ids;
}

void Service::set_status(Served& served, const char* status) {
  const std::lock_guard lock(mutex_);
  served.row.status = status;
}

// ---- the worker port

void Service::listen() {
  listener_.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ending_.reset(eventfd(0, EFD_CLOEXEC));
  if (!listener_ || !ending_ || bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::listen(listener_.get(), SOMAXCONN) != 0 || getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
    throw std::system_error(errno, std::generic_category(), "cannot listen for workers' connections");
  port_ = ntohs(address.sin_port);
  listen_locally();
  acceptor_ = std::thread([this] { accept_all(); });
}

// In the private folder where this user's daemon listens as well. Where its name is too long for a socket, there is none.
void Service::listen_locally() {
  const auto folder = runtime_dir();
  const auto path = (folder / ("amuse-" + std::to_string(getpid()) + ".sock")).string();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path.data(), path.size());
  if (const auto made = make_private_dir(folder); !made) fail_with(ErrorCode::failed_precondition, made.error().message, made.error().hint);
  local_listener_.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::unlink(path.c_str());  // of a process that died, and had our number
  if (!local_listener_ || bind(local_listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(local_listener_.get(), SOMAXCONN) != 0)
    throw std::system_error(errno, std::generic_category(), "cannot listen at " + path);
  socket_path_ = path;
}

void Service::accept_all() {
  for (;;) {
    pollfd waits[3] = {{listener_.get(), POLLIN, 0}, {local_listener_.get(), POLLIN, 0}, {ending_.get(), POLLIN, 0}};
    if (::poll(waits, 3, -1) < 0) continue;
    if (waits[2].revents) return;
    const bool local = waits[1].revents;
    unique_fd client(accept4(local ? local_listener_.get() : listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!client) {
      if (errno == EMFILE || errno == ENFILE) ::poll(&waits[2], 1, 100);  // until something is closed
      continue;
    }
    reap(false);
    const std::lock_guard lock(mutex_);
    auto& served = served_.emplace_back();
    try {
      served.thread = std::thread([this, &served, fd = client.get(), local] { serve(served, unique_fd(fd), local); });
      (void)client.release();
    } catch (const std::system_error& error) {
      std::fprintf(stderr, "worker port: a connection is closed unserved, as no thread can be started: %s\n", error.what());
      served_.pop_back();
    }
  }
}

// Joins the threads that are over; with `all` every one.
void Service::reap(bool all) {
  std::list<Served> ended;
  {
    const std::lock_guard lock(mutex_);
    for (auto it = served_.begin(); it != served_.end();) {
      const auto next = std::next(it);
      if (all || it->over) ended.splice(ended.end(), served_, it);
      it = next;
    }
  }
  for (auto& each : ended) each.thread.join();
}

void Service::serve(Served& served, unique_fd client, bool local) {
  {
    const std::lock_guard lock(mutex_);
    served.fd = client.get();
  }
  try {
    const int one = 1;
    setsockopt(client.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    const auto peer = local ? std::nullopt : peer_end(client.get());
    const bool welcome = local ? channel::check_peer_uid(client.get()).has_value() : peer && (peer->uid == getuid() || peer->uid == 0);
    if (!welcome) throw MessageError("this port serves user " + std::to_string(getuid()) + " alone");
    timeval patience{greeting_patience_ms / 1000, 0};
    setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    std::string greeting(worker_greeting.size(), '\0');
    for (std::size_t have = 0; have < greeting.size();) {
      const ssize_t count = ::recv(client.get(), greeting.data() + have, greeting.size() - have, 0);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) throw ChannelClosed("nothing was asked for");
      have += static_cast<std::size_t>(count);
    }
    const auto is = [&](std::string_view word) { return strncasecmp(greeting.data(), word.data(), word.size()) == 0; };
    timeval none{};
    if (is(output_greeting)) {
      setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
      const int fd = client.get();
      {
        const std::lock_guard lock(mutex_);
        served.fd = -1;
      }
      const auto name = outputs_.add(std::move(client));
      send_reply(fd, wire::Header{.call_count = 0}, false, name);
    } else if (is(worker_greeting)) {
      setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
      serve_worker(served, client, local);
    } else {
      send_reply(client.get(), wire::Header{.function_id = start_worker_id}, true,
                 "this port takes TYPE_WORKER or TYPE_OUTPUT, not '" + greeting + "'");
    }
  } catch (const ChannelClosed&) {
    // The script has gone.
  } catch (const std::exception& error) {
    std::fprintf(stderr, "worker port: %s\n", error.what());
  }
  const std::lock_guard lock(mutex_);
  served.fd = -1;
  served.over = true;
}

// Given up when the script leaves, or all is to end.
Worker Service::start(const WorkerSpec& spec, int client) {
  const LeaveWatch watch(client, ending_.get());
  return call([&](const Daemon& daemon) { return daemon.start_worker(spec, watch.token()); });
}

bool Service::may_be_bundled(const std::string& label) const {
  const std::lock_guard lock(mutex_);
  return label.empty() ? !bundled_.empty() : bundled_.contains(label);
}

void Service::serve_worker(Served& served, const unique_fd& client, bool local) {
  wire::FdStream stream(client.get());
  wire::Message message;
  if (!wire::receive(stream, message, 1u << 20)) return;
  std::unique_ptr<OutputFollower> follower;  // waits for its job's end: the worker goes first
  std::unique_ptr<Worker> worker;
  WorkerRequest request;
  try {
    request = parse_worker_request(message);
    std::string root;
    {
      const std::lock_guard lock(mutex_);
      root = root_;
      served.id = ++worker_count_;
      served.row = {.executable = request.executable,
                    .label = request.label,
                    .status = pending,
                    .processes = static_cast<int>(request.processes),
                    .threads = static_cast<int>(request.threads)};
    }
    const WorkerLimits limits{std::chrono::seconds(parameters.worker_queue_s), std::chrono::seconds(parameters.worker_startup_s),
                              parameters.debug};
    const auto sources = request.dynamic_python ? python_files(request.folder, request.name()) : std::vector<std::string>{};
    auto spec = make_worker_spec(request, root, sources, limits);
    if (!request.dynamic_python && may_be_bundled(request.label)) add_bundle(spec, bundles_, root, request.executable);
    worker = std::make_unique<Worker>(start(spec, client.get()));
    {
      const std::lock_guard lock(mutex_);
      served.job = worker->id();
    }
    follower = std::make_unique<OutputFollower>(worker->job(), outputs_.open(request.stdout_target), outputs_.open(request.stderr_target),
                                                over_.get_token());
  } catch (const CanceledError& error) {
    send_reply(client.get(), message.header, true,
               "Amuse error: " + request.name() + " was given up before it had started: " + words_of(error));
    return;
  } catch (const FlotillaError& error) {
    set_status(served, "FAILED");
    send_reply(client.get(), message.header, true, "Amuse error: " + own_words(words_of(error)));
    return;
  } catch (const std::exception& error) {
    send_reply(client.get(), message.header, true, std::string("Amuse error: ") + error.what());
    return;
  }
  set_status(served, "RUNNING");
  if (local) {
    if (const auto sent = channel::send_fds(client.get(), reply_with(message.header, false, follower->home()), {worker->fd()}); !sent)
      throw ChannelClosed(sent.error().message);
    serve_handed_over(served, client, *worker);
  } else {
    send_reply(client.get(), message.header, false, follower->home());
    serve_relayed(served, client, *worker);
  }
  worker->close();
}

void Service::serve_relayed(Served& served, const unique_fd& client, Worker& worker) {
  Relay relay(client.get(), worker.fd(), ending_.get(), worker.counters());
  RelayEnd end = RelayEnd::told;
  try {
    end = relay.run();
  } catch (const MessageError& error) {
    std::fprintf(stderr, "worker %s: %s\n", served.row.executable.c_str(), error.what());
  }
  if (end == RelayEnd::worker_left) {
    set_status(served, "FAILED");
    relay.answer_for_the_dead(own_words(cause_of(worker)));
  }
  forget(served);
  if (end == RelayEnd::stopped) worker.exit(own_end_limit);
}

// The script has the worker's socket. On this connection it says with a message of the stop function that the worker was stopped; with
// any other it asks why the worker's socket ended, which is answered with an error of that text. Its end ends the worker.
void Service::serve_handed_over(Served& served, const unique_fd& client, Worker& worker) {
  wire::FdStream stream(client.get());
  wire::Message asked;
  for (int end_of = worker.fd();;) {
    pollfd waits[3] = {{client.get(), POLLIN, 0}, {ending_.get(), POLLIN, 0}, {end_of, POLLRDHUP, 0}};
    if (::poll(waits, 3, -1) < 0) continue;
    if (waits[1].revents) return forget(served);
    if (waits[2].revents) {  // the script finds out as we do, and says that it stopped it, or asks
      set_status(served, "FAILED");
      end_of = -1;
    }
    if (!waits[0].revents) continue;
    if (!wire::receive(stream, asked, 1u << 10)) return forget(served);
    if (asked.header.function_id == wire::stop_id) {
      forget(served);
      send_reply(client.get(), asked.header, false, "");
      worker.exit(own_end_limit);
      return;
    }
    send_reply(client.get(), asked.header, true, own_words(cause_of(worker)));
  }
}

// It is a worker no more.
void Service::forget(Served& served) {
  const std::lock_guard lock(mutex_);
  served.id = 0;
}

// What this script started in a daemon that is not its own. One that could not be ended is told, and keeps none of the others.
void Service::end_own() {
  const auto attempt = [](const std::string& what, const auto& act) {
    try {
      act();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s could not be ended: %s\n", what.c_str(), error.what());
    }
  };
  jobs_.cancel_all();
  for (const auto& [id, number] : pilot_numbers_)
    attempt("pilot " + std::to_string(number), [&, number = number] { attached_->pilot(number).stop(); });
  for (const auto& [id, number] : pilot_numbers_)
    attempt("pilot " + std::to_string(number), [&, number = number] { attached_->pilot(number).wait_ended(own_pilots_limit); });
  for (const auto& [id, row] : resources_)
    if (row.name != "local") attempt("resource " + row.name, [&, &row = row] { attached_->resource(row.name).remove(true); });
}

void Service::end_all() {
  if (!committed()) return;
  const std::uint64_t one = 1;
  if (ending_ && ::write(ending_.get(), &one, sizeof one) < 0) std::perror("cannot end the worker port");
  if (acceptor_.joinable()) acceptor_.join();
  listener_.reset();
  local_listener_.reset();
  if (!socket_path_.empty()) ::unlink(socket_path_.c_str());
  socket_path_.clear();
  {
    const std::lock_guard lock(mutex_);
    for (const auto& each : served_)
      if (each.fd >= 0) ::shutdown(each.fd, SHUT_RD);  // whoever says nothing is not waited for
  }
  if (daemon_) {
    daemon_->end();
    over_.request_stop();
  } else {
    end_own();
  }
  reap(true);
  jobs_.clear();
  daemon_.reset();
  attached_.reset();
  resources_.clear();
  pilots_.clear();
  pilot_numbers_.clear();
  port_ = -1;
}

}  // namespace flotilla::amuse
