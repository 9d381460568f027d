#include "hub/channels.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstring>
#include <list>
#include <map>
#include <optional>
#include <system_error>
#include <thread>

#include "hub/core/node_script.hpp"
#include "proto/base/random.hpp"
#include "proto/channel/hand_over.hpp"
#include "proto/channel/opening.hpp"
#include "proto/tls/certificate.hpp"

namespace flotilla::hub {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using asio::local::stream_protocol;
using boost::system::error_code;
using namespace std::chrono_literals;

// Both halves of a channel's connection are on their way when the ticket comes; over a slow line that is seconds.
constexpr auto meeting_limit = 20s;
constexpr auto handshake_limit = 5s;
constexpr auto accept_retry = 100ms;  // without descriptors the same connection would be refused again at once, and again
// Who only connects and says nothing must not use up the hub.
constexpr std::size_t unknown_limit = 256;

}  // namespace

class Channels::Impl : public std::enable_shared_from_this<Channels::Impl> {
 public:
  Impl(asio::io_context& io, tls::ContextPtr context, Refuse refuse) : io_(io), context_(std::move(context)), refuse_(std::move(refuse)) {}

  void add_connection(unique_fd fd) {
    if (connections_.size() >= unknown_limit) {
      spdlog::warn("too many connections to the channel socket that have not said what they are: one is closed");
      return;
    }
    const auto connection = std::make_shared<Connection>(io_);
    connection->socket.assign(stream_protocol(), fd.release());
    connection->timer.expires_after(meeting_limit);
    connection->timer.async_wait([weak = weak_from_this(), connection](const error_code& error) {
      const auto self = weak.lock();
      if (error || !self) return;
      spdlog::warn("a connection to the channel socket came without a known ticket: closed");
      self->forget(connection);
    });
    connections_.push_back(connection);
    // Exactly the header: what follows it is not for us.
    asio::async_read(connection->socket, asio::buffer(connection->header),
                     [weak = weak_from_this(), connection](const error_code& error, std::size_t) {
                       const auto self = weak.lock();
                       if (!self) return;
                       if (error) return self->forget(connection);
                       self->on_header(connection);
                     });
  }

  void expect_beside(const v1::ExpectChannel& expect, const std::filesystem::path& socket) {
    Meeting& meeting = meet(expect);
    meeting.beside = socket;
    try_join(expect.ticket());
  }

  Result<std::string> expect_node(const v1::ExpectChannel& expect, PilotId pilot, const std::string& address) {
    auto port = listen(address);
    if (!port) return fail(port.error());
    Meeting& meeting = meet(expect);
    meeting.pilot = pilot;
    try_join(expect.ticket());
    return format_address(address, *port);
  }

  void end() {
    over_ = true;
    acceptors_.clear();
    connections_.clear();
    meetings_.clear();
    for (auto& worker : workers_) {
      const std::uint64_t one = 1;
      (void)!write(worker.stop.get(), &one, sizeof one);
    }
    for (auto& worker : workers_) worker.thread.join();
    workers_.clear();
  }

 private:
  struct Connection {
    explicit Connection(asio::io_context& io) : socket(io), timer(io) {}
    stream_protocol::socket socket;
    asio::steady_timer timer;
    std::array<char, channel::opening_bytes> header{};
    std::string ticket;  // empty before the header is read
  };
  using ConnectionPtr = std::shared_ptr<Connection>;
  // The daemon's half and the pilot's half of one opening, whichever comes first.
  struct Meeting {
    v1::ExpectChannel expect;
    std::filesystem::path beside;
    PilotId pilot;
    std::optional<tls::Stream> secure;
    std::shared_ptr<asio::steady_timer> timer;
  };
  struct Worker {
    std::thread thread;
    unique_fd stop;
    std::shared_ptr<std::atomic<bool>> done;
  };

  void forget(const ConnectionPtr& connection) {
    connection->timer.cancel();
    connections_.remove(connection);
  }

  void on_header(const ConnectionPtr& connection) {
    const auto opening = channel::parse_opening({connection->header.data(), connection->header.size()});
    if (!opening) {
      spdlog::warn("channel socket: {}", opening.error().message);
      return forget(connection);
    }
    connection->ticket.assign(opening->ticket.data(), opening->ticket.size());
    try_join(connection->ticket);
  }

  Meeting& meet(const v1::ExpectChannel& expect) {
    Meeting& meeting = meetings_[expect.ticket()];
    meeting.expect = expect;
    meeting.timer = std::make_shared<asio::steady_timer>(io_, meeting_limit);
    meeting.timer->async_wait([weak = weak_from_this(), ticket = expect.ticket()](const error_code& error) {
      const auto self = weak.lock();
      if (error || !self) return;
      const auto it = self->meetings_.find(ticket);
      if (it == self->meetings_.end()) return;
      const auto expect = std::move(it->second.expect);
      self->meetings_.erase(it);
      self->refuse_(expect, "its connection through the hub did not come together in " + std::to_string(meeting_limit.count()) + " s");
    });
    return meeting;
  }

  // Tickets are good once: the meeting is over when it succeeds.
  void try_join(const std::string& ticket) {
    const auto it = meetings_.find(ticket);
    if (it == meetings_.end()) return;
    const auto found =
        std::find_if(connections_.begin(), connections_.end(), [&](const ConnectionPtr& c) { return equal_secret(c->ticket, ticket); });
    if (found == connections_.end()) return;
    Meeting& meeting = it->second;
    if (meeting.beside.empty() && !meeting.secure) return;
    const ConnectionPtr connection = *found;
    unique_fd fd(connection->socket.release());
    Meeting ready = std::move(meeting);
    meetings_.erase(it);
    forget(connection);
    const std::string header(connection->header.data(), connection->header.size());
    if (!ready.beside.empty()) {
      if (auto passed = pass(ready.beside, header, fd.get()); !passed) refuse_(ready.expect, passed.error().message);
      else spdlog::debug("channel {}: its socket was passed to the pilot", ready.expect.channel());
      return;
    }
    auto started = start_worker([weak = weak_from_this(), fd = std::make_shared<unique_fd>(std::move(fd)),
                                 secure = std::make_shared<tls::Stream>(std::move(*ready.secure)), header,
                                 channel = ready.expect.channel()](int stop) {
      const std::string why = relay(std::move(*fd), std::move(*secure), header, stop);
      spdlog::debug("channel {}: its relay ended: {}", channel, why);
    });
    if (!started) refuse_(ready.expect, started.error().message);
  }

  static Status pass(const std::filesystem::path& to, const std::string& header, int fd) {
    auto socket = channel::connect_unix(to);
    if (!socket) return fail(socket.error());
    // Blocking from the connection's first reader on would be a surprise for the pilot: as a fresh socket.
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return channel::send_fds(socket->get(), header, {fd});
  }

  Result<int> listen(const std::string& address) {
    if (const auto it = acceptors_.find(address); it != acceptors_.end()) return static_cast<int>(it->second->local_endpoint().port());
    error_code error;
    const auto ip = asio::ip::make_address(address, error);
    if (error) return fail(Code::invalid_argument, "'" + address + "' is no address");
    auto acceptor = std::make_shared<tcp::acceptor>(io_);
    acceptor->open(ip.is_v6() ? tcp::v6() : tcp::v4(), error);
    if (!error) acceptor->bind({ip, 0}, error);
    if (!error) acceptor->listen(asio::socket_base::max_listen_connections, error);
    if (error) return fail(Code::unavailable, "cannot listen on " + address + ": " + error.message());
    acceptors_[address] = acceptor;
    const int port = acceptor->local_endpoint().port();
    spdlog::info("data connections of channels are taken on {}", format_address(address, port));
    accept(acceptor);
    return port;
  }

  void accept(const std::shared_ptr<tcp::acceptor>& acceptor) {
    acceptor->async_accept([weak = weak_from_this(), acceptor](const error_code& error, tcp::socket socket) {
      const auto self = weak.lock();
      if (!self || self->over_ || error == asio::error::operation_aborted) return;
      if (!error) {
        self->on_data_connection(unique_fd(socket.release()));
        self->accept(acceptor);
        return;
      }
      spdlog::warn("a data connection could not be taken: {}", error.message());
      const auto timer = std::make_shared<asio::steady_timer>(self->io_, accept_retry);
      timer->async_wait([weak, acceptor, timer](const error_code&) {
        if (const auto later = weak.lock(); later && !later->over_) later->accept(acceptor);
      });
    });
  }

  // The handshake and the ticket are read by a thread: a slow peer delays itself only.
  void on_data_connection(unique_fd fd) {
    if (handshakes_ >= unknown_limit) {
      spdlog::warn("too many data connections that have not said what they are: one is closed");
      return;
    }
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    ++handshakes_;
    auto started =
        start_worker([weak = weak_from_this(), &io = io_, context = context_, fd = std::make_shared<unique_fd>(std::move(fd))](int stop) {
          auto stream = greet(context, std::move(*fd), stop);
          asio::post(io, [weak, stream = std::make_shared<Result<Greeted>>(std::move(stream))] {
            const auto self = weak.lock();
            if (!self || self->over_) return;
            --self->handshakes_;
            if (!*stream) {
              spdlog::warn("a data connection was refused: {}", (*stream).error().text());
              return;
            }
            self->on_greeted(std::move(**stream));
          });
        });
    if (started) return;
    --handshakes_;
    spdlog::warn("a data connection was closed: {}", started.error().message);
  }

  struct Greeted {
    tls::Stream stream;
    PilotId pilot;
    std::string ticket;
  };
  static Result<Greeted> greet(const tls::ContextPtr& context, unique_fd fd, int stop) {
    auto stream = tls::Stream::make(context, tls::Role::server, std::move(fd), {});
    if (!stream) return fail(stream.error());
    const auto until = std::chrono::steady_clock::now() + handshake_limit;
    auto wait = [&](tls::Step step) -> bool {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
      pollfd waits[2] = {{stream->fd(), static_cast<short>(step == tls::Step::want_write ? POLLOUT : POLLIN), 0}, {stop, POLLIN, 0}};
      return left > 0 && poll(waits, 2, static_cast<int>(left)) > 0 && !waits[1].revents;
    };
    for (;;) {
      const tls::Step step = stream->handshake();
      if (step == tls::Step::done) break;
      if (step == tls::Step::failed || step == tls::Step::ended) return fail(Code::authentication_failed, stream->cause());
      if (!wait(step)) return fail(Code::timeout, "the TLS handshake took too long");
    }
    auto pilot = tls::parse_pilot_uri(stream->peer_uri());
    if (!pilot) return fail(pilot.error());
    std::string ticket(channel::ticket_bytes, '\0');
    for (std::size_t got = 0; got < ticket.size();) {
      const auto in = stream->read(ticket.data() + got, ticket.size() - got);
      if (in.step == tls::Step::done) {
        got += in.bytes;
        continue;
      }
      if (in.step == tls::Step::failed || in.step == tls::Step::ended) return fail(Code::unavailable, "it ended before its ticket");
      if (!wait(in.step)) return fail(Code::timeout, "no ticket came");
    }
    return Greeted{std::move(*stream), *pilot, std::move(ticket)};
  }

  void on_greeted(Greeted greeted) {
    const auto it = meetings_.find(greeted.ticket);
    if (it == meetings_.end() || it->second.pilot != greeted.pilot) {
      spdlog::warn("pilot {} dialled with a ticket that is not good (any more)", greeted.pilot.value);
      return;
    }
    it->second.secure.emplace(std::move(greeted.stream));
    try_join(greeted.ticket);
  }

  template <class Work>
  Status start_worker(Work work) {
    for (auto it = workers_.begin(); it != workers_.end();) {
      if (it->done->load()) {
        it->thread.join();
        it = workers_.erase(it);
      } else {
        ++it;
      }
    }
    Worker worker;
    worker.stop.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    worker.done = std::make_shared<std::atomic<bool>>(false);
    try {
      worker.thread = std::thread([work = std::move(work), stop = worker.stop.get(), done = worker.done]() mutable {
        work(stop);
        done->store(true);
      });
    } catch (const std::system_error& error) {  // the user's limit of processes
      return fail(Code::resource_exhausted, std::string("the hub cannot start a thread: ") + error.what());
    }
    workers_.push_back(std::move(worker));
    return {};
  }

  asio::io_context& io_;
  tls::ContextPtr context_;
  Refuse refuse_;
  std::list<ConnectionPtr> connections_;                             // whose channel is not known, or whose other half is not there
  std::map<std::string, Meeting> meetings_;                          // by ticket
  std::map<std::string, std::shared_ptr<tcp::acceptor>> acceptors_;  // by address
  std::list<Worker> workers_;
  std::size_t handshakes_ = 0;
  bool over_ = false;
};

Channels::Channels(asio::io_context& io, tls::ContextPtr context, Refuse refuse)
    : impl_(std::make_shared<Impl>(io, std::move(context), std::move(refuse))) {}
Channels::~Channels() { impl_->end(); }
void Channels::add_connection(unique_fd fd) { impl_->add_connection(std::move(fd)); }
void Channels::expect_beside(const v1::ExpectChannel& expect, const std::filesystem::path& socket) { impl_->expect_beside(expect, socket); }
Result<std::string> Channels::expect_node(const v1::ExpectChannel& expect, PilotId pilot, const std::string& address) {
  return impl_->expect_node(expect, pilot, address);
}

}  // namespace flotilla::hub
