#include "hub/hub.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#include <array>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <list>
#include <map>
#include <utility>

#include "hub/channels.hpp"
#include "hub/core/core.hpp"
#include "hub/core/node_script.hpp"
#include "hub/core/record.hpp"
#include "hub/hub_start.hpp"
#include "hub/log_reader.hpp"
#include "hub/spawn.hpp"
#include "hub/starter.hpp"
#include "hub/sweep.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/base/version.hpp"
#include "proto/channel/hand_over.hpp"
#include "proto/link/link.hpp"
#include "proto/tls/certificate.hpp"

namespace flotilla::hub {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using asio::local::stream_protocol;
using asio::posix::stream_descriptor;
using boost::system::error_code;
using namespace std::chrono_literals;

constexpr auto start_message_limit = 10s;  // a connector hands HubStart over at once
constexpr auto save_delay = 20ms;          // changes that come together are written together
constexpr auto last_words_limit = 1s;      // for the goodbye to go out
constexpr auto accept_retry = 100ms;       // without descriptors the same connection would be refused again at once, and again
constexpr auto sweep_delay = 1s;           // the pilot ends what it started when its guard is gone: it goes first

Moment now_ms() { return std::chrono::duration_cast<std::chrono::milliseconds>(BootClock::now().time_since_epoch()).count(); }

std::string make_secret() { return random_hex(32); }

// Is it an address of one of this machine's interfaces?
bool is_own_address(const std::string& address) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return false;
  bool found = false;
  for (const ifaddrs* entry = all; entry && !found; entry = entry->ifa_next) {
    if (!entry->ifa_addr) continue;
    char text[INET6_ADDRSTRLEN] = {};
    if (entry->ifa_addr->sa_family == AF_INET)
      inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr, text, sizeof text);
    else if (entry->ifa_addr->sa_family == AF_INET6)
      inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr, text, sizeof text);
    found = address == text;
  }
  freeifaddrs(all);
  return found;
}

// The address that this machine uses towards a host (a UDP connect sends nothing).
Result<std::string> address_towards(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  // "user@host" as ssh takes it.
  const std::string name = host.substr(host.find('@') == std::string::npos ? 0 : host.find('@') + 1);
  if (const int error = getaddrinfo(name.c_str(), "22", &hints, &found); error != 0)
    return fail(Code::unavailable, "cannot find the address of " + name + ": " + gai_strerror(error));
  std::string address;
  for (const addrinfo* to = found; to && address.empty(); to = to->ai_next) {
    unique_fd fd(socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    if (!fd || connect(fd.get(), to->ai_addr, to->ai_addrlen) != 0 || getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &size) != 0)
      continue;
    char text[NI_MAXHOST] = {};
    if (getnameinfo(reinterpret_cast<sockaddr*>(&own), size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0) address = text;
  }
  freeaddrinfo(found);
  if (address.empty()) return fail(Code::unavailable, "no address of this host leads to " + name);
  return address;
}

// A unix socket of this user that listens, at a path that may hold a dead one's file.
Result<unique_fd> bind_unix(const fs::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = path.string();
  if (name.size() >= sizeof address.sun_path) return fail(Code::invalid_argument, "the socket path " + name + " is too long");
  name.copy(address.sun_path, name.size());
  unlink(name.c_str());
  unique_fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // The directory is 0700 already; this is for those who look at the file.
  if (!fd || fchmod(fd.get(), 0600) != 0 || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      chmod(name.c_str(), 0600) != 0 || listen(fd.get(), SOMAXCONN) != 0)
    return fail(errno_error(Code::permission_denied, "listen on " + name));
  return fd;
}

// A pilot of ours by that number? (After a crash of the hub the number may have been given to somebody else.)
bool is_pilot_process(std::uint32_t pid) {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/" + std::to_string(pid) + "/exe", error);
  return !error && program.filename().string().starts_with("flotilla-agent");
}

}  // namespace

class Hub::Impl : public std::enable_shared_from_this<Hub::Impl> {
 public:
  Impl(asio::io_context& io, const v1::HubStart& start, const Places& places)
      : io_(io), start_(start), places_(places), core_(identity(start, places), make_secret),
        tick_(io, timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK)), save_timer_(io), signals_(io, SIGTERM, SIGINT), files_(io) {}

  static Identity identity(const v1::HubStart& start, const Places& places) {
    Identity out;
    out.instance = start.instance();
    out.hub_id = start.hub_id();
    out.build = build_version();
    out.host = host_name();
    out.boot_id = boot_id();
    out.pid = static_cast<std::uint32_t>(getpid());
    out.channel_socket = places.channel_socket().string();
    return out;
  }

  Status open() {
    lock_.reset(::open(places_.hub_lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock_ || flock(lock_.get(), LOCK_EX | LOCK_NB) != 0)
      return fail(Code::already_exists, "a hub of this instance runs on " + host_name() + " already");
    if (auto identity = tls_identity(); !identity) return fail(identity.error());
    else server_identity_ = std::move(*identity);
    auto context = tls::make_context(tls::Role::server, server_identity_);
    if (!context) return fail(context.error());
    channels_.emplace(io_, *context, [this](const v1::ExpectChannel& expect, const std::string& cause) { refuse_channel(expect, cause); });

    if (auto bound = bind_all(); !bound) return bound;
    take_up_state();
    beside_server_.emplace(io_, pilot_handlers({}), link::keepalive_cluster);
    starter_.emplace(io_, starter_services());
    log_reader_.emplace(io_, places_.log_file, [this](v1::LogData data) {
      v1::Frame frame;
      *frame.mutable_log_data() = std::move(data);
      if (const auto it = links_.find(core_.daemon_link()); it != links_.end()) it->second->send(std::move(frame));
    });
    watch_files();
    signals_.async_wait([this](const error_code& error, int number) {
      if (error) return;
      spdlog::info("signal {}: the hub ends, its pilots go on", number);
      save_now();
      keep_state_ = true;
      io_.stop();
    });
    save_now();
    decide([](Outbox&, Moment) {});
    return {};
  }

  void run() {
    io_.run();
    leave();
  }

  void leave() {
    if (std::exchange(left_, true)) return;
    const bool leaves_word = !keep_state_ && core_.untold();
    if (leaves_word) save_now(true);
    starter_.reset();
    channels_.reset();
    for (auto& [tag, link] : links_) {
      link->detach();
      link->abort();
    }
    links_.clear();
    tls_servers_.clear();
    beside_server_.reset();
    if (keep_state_) return;
    for (const auto& path : {places_.link_socket(), places_.pilot_socket(), places_.channel_socket()}) unlink(path.c_str());
    if (!leaves_word) unlink(places_.state_file.c_str());
    spdlog::info("the hub has ended");
    if (places_.trial || start_.traces().none())
      for (const auto& file : files_of_log(places_.log_file)) unlink(file.c_str());
    if (places_.trial) {
      rmdir(places_.scratch.c_str());  // if somebody else's things are there, it stays
    }
    // While the lock is held nobody else uses the directory; what is left of pilots there is theirs.
    unlink(places_.start_lock().c_str());
    unlink(places_.hub_lock().c_str());
    rmdir(places_.runtime.c_str());
  }

 private:
  struct PidWatch {
    explicit PidWatch(asio::io_context& io) : descriptor(io) {}
    stream_descriptor descriptor;
  };
  struct Arrival {  // a connector that has not said what it wants
    explicit Arrival(asio::io_context& io) : socket(io), timer(io) {}
    stream_protocol::socket socket;
    asio::steady_timer timer;
    std::array<char, 4> head{};
    std::string body;
  };

  // ---- deciding, and doing what was decided

  template <class Step>
  void decide(Step&& step) {
    Outbox out;
    const Moment now = now_ms();
    step(out, now);
    // What is due now is done now, too.
    if (const auto next = core_.next_tick(); next && *next <= now) core_.on_tick(now, out);
    apply(std::move(out));
  }

  void apply(Outbox out) {
    for (const auto& note : out.notes) spdlog::info("{}", note);
    if (!out.starts.empty()) save_now();  // who is started is known before it can call
    else if (out.save) save_soon();
    for (auto& [tag, frame] : out.frames)
      if (const auto it = links_.find(tag); it != links_.end()) it->second->send(std::move(frame));
    for (const Tag tag : out.close)
      if (const auto it = links_.find(tag); it != links_.end()) it->second->close();
    for (const Tag tag : out.abort) drop_link(tag);
    for (const auto& order : out.starts) starter_->start(order);
    for (const NodeId node : out.cancel_starts) starter_->cancel(node);
    for (const NodeId node : out.kill)
      if (const Node* known = core_.node(node); known && known->pid && is_pilot_process(known->pid)) {
        spdlog::warn("pilot {} is killed", format_peer(node));
        ::kill(static_cast<pid_t>(known->pid), SIGKILL);
      }
    for (const auto& order : out.channels) on_channel_order(order);
    for (const auto& frame : out.requests)
      if (frame.has_read_log()) read_log(frame);
    if (out.finished) finish();
    arm();
  }

  // This hub's own log, or that of a pilot which has no link: it ran here, or on a node with the same home.
  void read_log(const v1::Frame& frame) {
    if (frame.peer().empty()) return log_reader_->handle(frame.read_log());
    const NodeId node = parse_peer(frame.peer());
    if (frame.read_log().stop()) return;
    auto file = find_pilot_log(start_.scratch_dir(), start_.instance(), node);
    if (!file) {
      const Node* known = core_.node(node);
      file.error().message += known && known->host != host_name() ? "; it ran on " + known->host : "";
    }
    log_reader_->read_once(frame.read_log(), file);
  }

  void drop_link(Tag tag) {
    const auto it = links_.find(tag);
    if (it == links_.end()) return;
    it->second->detach();
    it->second->abort();
    links_.erase(it);
    dialled_.erase(tag);
  }

  void finish() {
    // The goodbye goes out; then the end of that link ends us. If the other side hangs, we do not wait.
    finishing_ = true;
    if (links_.contains(core_.daemon_link())) {
      last_words_.emplace(io_, last_words_limit);
      last_words_->async_wait([this](const error_code& error) {
        if (!error) io_.stop();
      });
    } else {
      io_.stop();
    }
  }

  void arm() {
    const auto next = core_.next_tick();
    itimerspec when{};
    if (next) {
      const Moment at = std::max<Moment>(*next, 1);
      when.it_value.tv_sec = at / 1000;
      when.it_value.tv_nsec = (at % 1000) * 1'000'000;
    }
    timerfd_settime(tick_.native_handle(), TFD_TIMER_ABSTIME, &when, nullptr);
    if (std::exchange(tick_waits_, true)) return;
    tick_.async_wait(stream_descriptor::wait_read, [weak = weak_from_this()](const error_code& error) {
      const auto self = weak.lock();
      if (!self || error) return;
      std::uint64_t times = 0;
      (void)!read(self->tick_.native_handle(), &times, sizeof times);
      self->tick_waits_ = false;
      self->decide([&](Outbox& out, Moment now) { self->core_.on_tick(now, out); });
    });
  }

  // ---- state file

  void save_soon() {
    if (std::exchange(save_waits_, true)) return;
    save_timer_.expires_after(save_delay);
    save_timer_.async_wait([weak = weak_from_this()](const error_code& error) {
      const auto self = weak.lock();
      if (!self || error) return;
      self->save_now();
    });
  }
  void save_now(bool over = false) {
    save_waits_ = false;
    save_timer_.cancel();
    Record record;
    record.hub_id = start_.hub_id();
    record.instance = start_.instance();
    record.host = host_name();
    record.boot_id = boot_id();
    record.build = build_version();
    record.pid = static_cast<std::uint32_t>(getpid());
    record.over = over;
    record.runtime_dir = places_.runtime.string();
    for (const auto& [address, server] : tls_servers_) record.listening.push_back(format_address(address, server->port));
    for (const auto& address : lost_listeners_) record.listening.push_back(address);
    record.launches = core_.launches();
    record.ended = core_.ended_pilots();
    if (auto wrote = write_file(places_.state_file, format_record(record)); !wrote)
      spdlog::error("the state of the hub is not kept: {}", wrote.error().text());
  }

  void take_up_state() {
    const auto text = read_file(places_.state_file);
    if (!text) return;
    auto record = parse_record(*text);
    if (!record || record->instance != start_.instance()) {
      spdlog::warn("the state file {} is not taken up: {}", places_.state_file.string(),
                   record ? "it belongs to another instance" : record.error().message);
      return;
    }
    const bool same_host = record->host == host_name();
    const bool same_boot = same_host && record->boot_id == boot_id();
    spdlog::info("taking up {} pilots of the hub that ran here before (pid {} on {})", record->launches.size(), record->pid, record->host);
    const bool expected = std::ranges::any_of(record->launches, [](const auto& launch) {
      // One that is out of sight may come and be told that it is over.
      return std::ranges::any_of(launch.second.nodes, [](const auto& node) {
        return alive(node.second) || (node.second.stage == Stage::left && !node.second.process_dead);
      });
    });
    for (const auto& address : expected ? record->listening : std::vector<std::string>()) {
      const auto parsed = parse_address(address);
      if (!parsed) continue;
      if (auto listening = listen_tls(parsed->first, parsed->second); !listening) {
        spdlog::warn("pilots on nodes cannot find this hub: {}", listening.error().text());
        lost_listeners_.push_back(address);
      }
    }
    std::vector<NodeId> gone;
    std::vector<std::pair<NodeId, std::uint32_t>> present;
    for (const auto& [pilot, launch] : record->launches)
      for (const auto& [index, node] : launch.nodes) {
        if (!node.beside || !alive(node)) continue;
        const NodeId id{PilotId{pilot}, index};
        if (same_boot && node.pid && is_pilot_process(node.pid)) present.emplace_back(id, node.pid);
        else if (same_host && (node.pid || !same_boot)) gone.push_back(id);
      }
    core_.restore(std::move(record->launches), std::move(record->ended), now_ms());
    for (const auto& [id, pid] : present) watch_process(id, pid);
    // In a turn of its own: the rest of the hub is set up then.
    asio::post(io_, [this, gone] {
      for (const NodeId id : gone) on_process_gone(id);
    });
  }

  // ---- sockets

  Status bind_all() {
    if (auto bound = bind_one(link_acceptor_, places_.link_socket(), &Impl::on_connector); !bound) return bound;
    if (auto bound = bind_one(pilot_acceptor_, places_.pilot_socket(), &Impl::on_pilot_connection); !bound) return bound;
    return bind_one(channel_acceptor_, places_.channel_socket(), &Impl::on_channel_connection);
  }
  using OnConnection = void (Impl::*)(unique_fd);
  using Acceptor = std::shared_ptr<stream_protocol::acceptor>;
  Status bind_one(Acceptor& acceptor, const fs::path& path, OnConnection handler) {
    auto fd = bind_unix(path);
    if (!fd) return fail(fd.error());
    if (acceptor) acceptor->close();
    acceptor = std::make_shared<stream_protocol::acceptor>(io_, stream_protocol(), fd->release());
    accept(acceptor, handler);
    return {};
  }
  void accept(const Acceptor& acceptor, OnConnection handler) {
    acceptor->async_accept([weak = weak_from_this(), acceptor, handler](const error_code& error, stream_protocol::socket socket) {
      const auto self = weak.lock();
      if (!self || error == asio::error::operation_aborted || !acceptor->is_open()) return;
      if (!error) {
        unique_fd fd(socket.release());
        if (auto own = channel::check_peer_uid(fd.get()); !own) spdlog::warn("a connection was refused: {}", own.error().text());
        else ((*self).*handler)(std::move(fd));
        self->accept(acceptor, handler);
        return;
      }
      spdlog::warn("a connection could not be taken: {}", error.message());
      const auto timer = std::make_shared<asio::steady_timer>(self->io_, accept_retry);
      timer->async_wait([weak, acceptor, handler, timer](const error_code&) {
        if (const auto later = weak.lock(); later && acceptor->is_open()) later->accept(acceptor, handler);
      });
    });
  }

  // A cleaner of /tmp may remove the sockets' files under us: they are made again at once.
  void watch_files() {
    unique_fd fd(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!fd || inotify_add_watch(fd.get(), places_.runtime.c_str(), IN_DELETE | IN_DELETE_SELF | IN_MOVED_FROM | IN_MOVE_SELF) < 0) {
      spdlog::warn("the hub will not notice if its sockets are removed");
      return;
    }
    files_.close();
    files_.assign(fd.release());
    wait_for_files();
  }
  void wait_for_files() {
    files_.async_read_some(asio::buffer(file_events_), [weak = weak_from_this()](const error_code& error, std::size_t) {
      const auto self = weak.lock();
      if (!self || error) return;
      self->check_files();
    });
  }
  void check_files() {
    struct stat info {};
    bool made_again = false;
    // Who removes the directory may be in the middle of it: what is bound meanwhile goes with it.
    for (int tries = 0; tries < 3; ++tries) {
      if (lstat(places_.hub_lock().c_str(), &info) != 0) {  // the directory itself a pilot may have made again before us
        if (auto made = make_private_dir(places_.runtime); !made) {
          spdlog::error("the hub's directory is lost: {}", made.error().text());
          return;
        }
        made_again = true;
        lock_.reset(::open(places_.hub_lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        if (lock_) flock(lock_.get(), LOCK_EX | LOCK_NB);
      }
      if (bind_lost()) break;
    }
    if (made_again) watch_files();
    else wait_for_files();
  }
  // False: one could not be bound.
  bool bind_lost() {
    struct stat info {};
    bool all_there = true;
    const std::tuple<Acceptor*, fs::path, OnConnection> all[] = {
        {&link_acceptor_, places_.link_socket(), &Impl::on_connector},
        {&pilot_acceptor_, places_.pilot_socket(), &Impl::on_pilot_connection},
        {&channel_acceptor_, places_.channel_socket(), &Impl::on_channel_connection}};
    for (const auto& [acceptor, path, handler] : all) {
      if (lstat(path.c_str(), &info) == 0) continue;
      spdlog::warn("{} was removed; it is bound again", path.string());
      if (auto bound = bind_one(*acceptor, path, handler); !bound) {
        spdlog::error("{}", bound.error().text());
        all_there = false;
      }
    }
    return all_there;
  }

  // ---- connectors

  void on_connector(unique_fd fd) {
    const auto arrival = std::make_shared<Arrival>(io_);
    arrival->socket.assign(stream_protocol(), fd.release());
    arrival->timer.expires_after(start_message_limit);
    arrival->timer.async_wait([arrival](const error_code& error) {
      if (!error) arrival->socket.close();
    });
    asio::async_read(
        arrival->socket, asio::buffer(arrival->head), [weak = weak_from_this(), arrival](const error_code& error, std::size_t) {
          const auto self = weak.lock();
          if (!self || error) return arrival->timer.cancel(), void();
          const auto size = parse_hub_start_size({arrival->head.data(), arrival->head.size()});
          if (!size) return self->refuse(arrival, size.error());
          arrival->body.resize(*size);
          asio::async_read(arrival->socket, asio::buffer(arrival->body), [weak, arrival](const error_code& failed, std::size_t) {
            const auto again = weak.lock();
            arrival->timer.cancel();
            if (!again || failed) return;
            auto start = parse_hub_start(arrival->body);
            if (!start) return again->refuse(arrival, start.error());
            again->on_start(arrival, std::move(*start));
          });
        });
  }
  void refuse(const std::shared_ptr<Arrival>& arrival, const Error& error) {
    spdlog::warn("a connector was refused: {}", error.text());
    answer(arrival, format_error_line(error));
  }
  // A line is far below what a socket takes at once.
  bool answer(const std::shared_ptr<Arrival>& arrival, const std::string& line) {
    arrival->timer.cancel();
    error_code error;
    asio::write(arrival->socket, asio::buffer(line), error);
    return !error;
  }

  void on_start(const std::shared_ptr<Arrival>& arrival, v1::HubStart start) {
    if (start.instance() != start_.instance() || start.hub_id() != start_.hub_id())
      return refuse(arrival, Error{Code::permission_denied, "this hub belongs to another instance or resource", {}, Retry::no, {}});
    if (finishing_ || core_.ending()) {
      answer(arrival, std::string(replaced_line));
      arrivals_kept_.push_back(arrival);  // its end of file says that we have gone
      return;
    }
    const std::string own_build = build_version();
    if (!start.connector_build().empty() && start.connector_build() != own_build) {
      if (!core_.has_pilots()) {
        spdlog::info("build {} takes over from {}: there are no pilots", start.connector_build(), own_build);
        answer(arrival, std::string(replaced_line));
        arrivals_kept_.push_back(arrival);
        keep_state_ = false;
        io_.stop();
        return;
      }
      spdlog::info("build {} connects; this hub of build {} goes on, it has pilots", start.connector_build(), own_build);
    }
    if (!answer(arrival, format_hub_line(host_name(), places_.channel_socket().string()))) return;
    // What may have changed with the daemon. A new certificate authority would lock out the pilots that run.
    const bool same_trust = start.tls_ca() == start_.tls_ca();
    if (!same_trust && core_.has_pilots()) {
      spdlog::warn("the daemon has a new certificate authority: this hub keeps the old one while it has pilots");
      start.set_tls_ca(start_.tls_ca());
      start.set_tls_chain(start_.tls_chain());
      start.set_tls_key(start_.tls_key());
    }
    start_ = std::move(start);
    set_log_debug(start_.debug());

    link::Handlers handlers;
    handlers.on_frame = [this](const link::LinkPtr& link, v1::Frame frame) {
      decide([&](Outbox& out, Moment now) { core_.on_daemon_frame(link->tag, std::move(frame), now, out); });
    };
    handlers.on_closed = [this](const link::LinkPtr& link, const std::string& cause) {
      links_.erase(link->tag);
      spdlog::info("daemon's link: {}", cause);
      if (log_reader_ && link->tag == core_.daemon_link()) log_reader_->stop_all();
      decide([&](Outbox& out, Moment now) { core_.on_daemon_closed(link->tag, now, out); });
      if (finishing_) io_.stop();
    };
    const Tag tag = next_tag_++;
    link::LinkPtr link;
    try {
      link = link::connect_fd(io_, unique_fd(arrival->socket.release()), std::move(handlers), link::keepalive_remote);
    } catch (const std::system_error& error) {  // the connector sees its end, and the daemon tries again
      spdlog::error("no thread for the daemon's link: {}", error.what());
      return;
    }
    link->tag = tag;
    links_[tag] = link;
    log_reader_->stop_all();
    decide([&](Outbox& out, Moment now) { core_.on_daemon_link(tag, start_.link_token(), start_.cutoff_ms(), now, out); });
  }

  // ---- pilots

  // `address`: ours, of pilots on nodes; empty for those beside us.
  link::Handlers pilot_handlers(const std::string& address) {
    link::Handlers handlers;
    handlers.on_open = [this, address](const link::LinkPtr& link) {
      const bool beside = address.empty();
      PilotProof proof;
      proof.beside = beside;
      if (!beside) {
        const auto pilot = tls::parse_pilot_uri(link->peer_uri());
        if (!pilot || !core_.serves(pilot->value)) {
          spdlog::warn("a node's link was refused: {}",
                       pilot ? "pilot " + std::to_string(pilot->value) + " is not one of this hub's" : pilot.error().message);
          link->detach();
          link->abort();
          return;
        }
        proof.pilot = *pilot;
      }
      link->tag = next_tag_++;
      links_[link->tag] = link;
      if (!beside) dialled_[link->tag] = address;
      decide([&](Outbox& out, Moment now) { core_.on_pilot_link(link->tag, proof, now, out); });
    };
    handlers.on_frame = [this](const link::LinkPtr& link, v1::Frame frame) {
      if (!links_.contains(link->tag)) return;
      decide([&](Outbox& out, Moment now) { core_.on_pilot_frame(link->tag, std::move(frame), now, out); });
    };
    handlers.on_closed = [this](const link::LinkPtr& link, const std::string& cause) {
      dialled_.erase(link->tag);
      if (links_.erase(link->tag) == 0) return;
      decide([&](Outbox& out, Moment now) { core_.on_pilot_closed(link->tag, cause, now, out); });
    };
    return handlers;
  }

  void on_pilot_connection(unique_fd fd) { beside_server_->add_fd(std::move(fd)); }
  void on_channel_connection(unique_fd fd) { channels_->add_connection(std::move(fd)); }

  void on_channel_order(const ChannelOrder& order) {
    if (order.beside) {
      channels_->expect_beside(order.expect, pilot_runtime_dir(order.node) / "channel.sock");
      return;
    }
    // It dials where its link goes: that way is known to work.
    const std::string address = address_of(order.node);
    auto dial = channels_->expect_node(order.expect, order.node.pilot, address);
    if (!dial) {
      refuse_channel(order.expect, dial.error().message);
      return;
    }
    v1::Frame frame;
    *frame.mutable_expect_channel() = order.expect;
    frame.mutable_expect_channel()->set_dial(*dial);
    if (const auto it = links_.find(core_.link_of(order.node)); it != links_.end()) it->second->send(std::move(frame));
  }

  void refuse_channel(const v1::ExpectChannel& expect, const std::string& cause) {
    spdlog::warn("channel {}: {}", expect.channel(), cause);
    v1::Frame frame;
    frame.set_peer(expect.peer());
    frame.mutable_channel_refused()->set_channel(expect.channel());
    frame.mutable_channel_refused()->set_epoch(expect.epoch());
    frame.mutable_channel_refused()->set_cause(cause);
    if (const auto it = links_.find(core_.daemon_link()); it != links_.end()) it->second->send(std::move(frame));
  }

  fs::path pilot_runtime_dir(NodeId node) const { return places_.runtime / ("p" + format_peer(node)); }

  std::string address_of(NodeId node) const {
    const auto it = dialled_.find(core_.link_of(node));
    return it == dialled_.end() ? "127.0.0.1" : it->second;  // without a link nobody is told
  }

  Result<link::TlsIdentity> tls_identity() const { return tls::issue_server(authority(), start_.tls_ca(), start_.hub_id(), wall_ms()); }
  tls::Authority authority() const { return {start_.tls_chain(), start_.tls_key()}; }

  struct TlsServer {
    std::unique_ptr<link::Server> server;
    int port = 0;
  };
  Result<int> listen_tls(const std::string& address, int wanted_port) {
    if (const auto it = tls_servers_.find(address); it != tls_servers_.end()) return it->second->port;
    auto entry = std::make_unique<TlsServer>();
    entry->server = std::make_unique<link::Server>(io_, pilot_handlers(address), link::keepalive_cluster);
    auto port = entry->server->listen_tls(format_address(address, wanted_port), server_identity_);
    if (!port) return fail(port.error());
    entry->port = *port;
    spdlog::info("pilots on nodes register on {}", format_address(address, *port));
    tls_servers_[address] = std::move(entry);
    core_.set_address(format_address(address, *port));
    return *port;
  }

  StarterServices starter_services() {
    StarterServices services;
    services.make_start = [this](const StartOrder& order, const NodeLine& line) { return make_start(order, line); };
    services.on_result = [this](NodeId node, const StartResult& result) {
      if (result.ok)
        if (const Node* known = core_.node(node); known && known->beside) watch_process(node, result.pid);
      decide([&](Outbox& out, Moment now) { core_.on_start_result(node, result, now, out); });
    };
    services.on_progress = [this](NodeId node, const std::string& message) {
      decide([&](Outbox& out, Moment) { core_.on_start_progress(node, message, out); });
    };
    services.env["FLOTILLA_INSTANCE"] = to_hex(start_.instance());
    services.env["FLOTILLA_RESOURCE"] = start_.resource();
    return services;
  }

  Result<std::string> make_start(const StartOrder& order, const NodeLine& line) {
    const auto launch = core_.launches().find(order.node.pilot.value);
    if (launch == core_.launches().end()) return fail(Code::canceled, "the pilot was stopped");
    const auto& from = launch->second.order;
    v1::PilotStart start;
    start.set_pilot(order.node.pilot.value);
    start.set_node(order.node.node);
    start.set_instance(start_.instance());
    *start.mutable_spec() = from.spec();
    *start.mutable_settings() = launch->second.settings;
    start.set_scratch_dir(from.scratch_dir());
    *start.mutable_env() = from.env();
    *start.mutable_setup() = from.setup();
    start.set_setup_timeout_ms(from.setup_timeout_ms());
    start.set_resource(start_.resource());
    if (order.host.empty()) {
      start.set_beside_hub(true);
      start.set_upper_socket(places_.pilot_socket().string());
      start.set_secret(order.secret);
      start.set_runtime_dir(pilot_runtime_dir(order.node).string());
    } else {
      // The node has said from where it sees us. Behind address translation that is not ours: then our way to it.
      std::string own = line.hub_address;
      if (own.empty() || !is_own_address(own)) {
        auto towards = address_towards(line.node_address.empty() ? order.host : line.node_address);
        if (!towards) return fail(towards.error());
        own = *towards;
      }
      auto port = listen_tls(own, 0);
      if (!port) return fail(port.error());
      const auto& spec = from.spec();
      auto identity = tls::issue_pilot(authority(), start_.tls_ca(), order.node.pilot, spec.time_ms(), wall_ms());
      if (!identity) return fail(identity.error());
      start.set_tls_address(format_address(own, *port));
      start.set_tls_server_name(tls::server_name(start_.hub_id()));
      start.set_tls_ca(identity->ca);
      start.set_tls_chain(identity->chain);
      start.set_tls_key(identity->private_key);
    }
    std::string json;
    if (!google::protobuf::util::MessageToJsonString(start, &json).ok())
      return fail(Code::internal, "the start of pilot " + format_peer(order.node) + " cannot be written as JSON");
    save_soon();  // the port
    return json + "\n";
  }

  void watch_process(NodeId node, std::uint32_t pid) {
    auto pidfd = open_pidfd(static_cast<int>(pid));
    if (!pidfd) {
      asio::post(io_, [weak = weak_from_this(), node] {
        if (const auto self = weak.lock()) self->on_process_gone(node);
      });
      return;
    }
    auto watch = std::make_shared<PidWatch>(io_);
    watch->descriptor.assign(pidfd->release());
    watches_[node] = watch;
    watch->descriptor.async_wait(stream_descriptor::wait_read, [weak = weak_from_this(), node, watch](const error_code& error) {
      const auto self = weak.lock();
      if (!self || error) return;
      self->watches_.erase(node);
      self->on_process_gone(node);
    });
  }
  void on_process_gone(NodeId node) {
    decide([&](Outbox& out, Moment now) { core_.on_process_ended(node, now, out); });
    // Its guard ends all that it started. Should the guard have died with it, this is the last resort.
    auto timer = std::make_shared<asio::steady_timer>(io_, sweep_delay);
    timer->async_wait([weak = weak_from_this(), node, timer](const error_code& error) {
      const auto self = weak.lock();
      if (!self || error) return;
      const Node* known = self->core_.node(node);
      if (!known || known->stage != Stage::left || (known->guard_pid && is_pilot_process(known->guard_pid))) return;
      if (const int killed = sweep(to_hex(self->start_.instance()), node))
        spdlog::warn("{} processes of pilot {} had no guard left: killed", killed, format_peer(node));
    });
  }

  asio::io_context& io_;
  v1::HubStart start_;
  Places places_;
  Core core_;
  unique_fd lock_;
  link::TlsIdentity server_identity_;
  Acceptor link_acceptor_, pilot_acceptor_, channel_acceptor_;
  std::optional<link::Server> beside_server_;
  std::map<std::string, std::unique_ptr<TlsServer>> tls_servers_;  // by address
  std::vector<std::string> lost_listeners_;                        // of the hub before us, could not be bound: kept for the next try
  std::map<Tag, std::string> dialled_;                             // our address that a node's link came by
  std::optional<Channels> channels_;
  std::optional<Starter> starter_;
  std::optional<LogReader> log_reader_;
  std::map<Tag, link::LinkPtr> links_;
  Tag next_tag_ = 1;
  std::map<NodeId, std::shared_ptr<PidWatch>> watches_;
  std::list<std::shared_ptr<Arrival>> arrivals_kept_;  // open until we have gone
  stream_descriptor tick_;
  asio::steady_timer save_timer_;
  std::optional<asio::steady_timer> last_words_;
  asio::signal_set signals_;
  stream_descriptor files_;
  alignas(inotify_event) std::array<char, 4096> file_events_{};
  bool tick_waits_ = false, save_waits_ = false, finishing_ = false, keep_state_ = false, left_ = false;
};

Hub::Hub(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hub::~Hub() { impl_->leave(); }

Result<std::unique_ptr<Hub>> Hub::open(asio::io_context& io, const v1::HubStart& start, const Places& places) {
  auto impl = std::make_shared<Impl>(io, start, places);
  if (auto opened = impl->open(); !opened) return fail(opened.error());
  return std::unique_ptr<Hub>(new Hub(std::move(impl)));
}

void Hub::run() { impl_->run(); }

}  // namespace flotilla::hub
