#include "daemon/coordinator/channel_giver.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>

#include "proto/base/log.hpp"
#include "proto/base/random.hpp"

namespace flotilla::daemon {
namespace asio = boost::asio;

namespace {
// A client that was told where its channel is comes at once; one that died in between never does.
constexpr auto take_patience = std::chrono::seconds(30);
constexpr auto request_patience = std::chrono::seconds(5);
}  // namespace

struct ChannelGiver::Visitor {
  explicit Visitor(asio::local::stream_protocol::socket s) : socket(std::move(s)), patience(socket.get_executor()) {}
  asio::local::stream_protocol::socket socket;
  asio::steady_timer patience;
  char request[channel::take_request_bytes];
  char nothing[64];
};

ChannelGiver::ChannelGiver(asio::io_context& io, std::string path, Events events)
    : io_(io), path_(std::move(path)), events_(std::move(events)), listener_(io, path_, [this](unique_fd fd) {
        read_request(std::make_shared<Visitor>(asio::local::stream_protocol::socket(io_, asio::local::stream_protocol(), fd.release())));
      }) {}

void ChannelGiver::read_request(std::shared_ptr<Visitor> visitor) {
  visitor->patience.expires_after(request_patience);
  visitor->patience.async_wait([visitor](boost::system::error_code code) {
    boost::system::error_code ignored;
    if (!code) visitor->socket.close(ignored);
  });
  asio::async_read(visitor->socket, asio::buffer(visitor->request), [this, visitor](boost::system::error_code code, std::size_t) {
    visitor->patience.cancel();
    if (!code) give(visitor);
  });
}

void ChannelGiver::give(std::shared_ptr<Visitor> visitor) {
  auto refuse = [&](const Error& error) {
    auto text = std::make_shared<std::string>(channel::format_take_error(error));
    asio::async_write(visitor->socket, asio::buffer(*text), [visitor, text](boost::system::error_code, std::size_t) {});
  };
  auto ticket = channel::parse_take_request({visitor->request, sizeof visitor->request});
  if (!ticket) return refuse(ticket.error());
  auto it = given_.begin();
  while (it != given_.end() && (it->second.ticket.empty() || !equal_secret(it->second.ticket, *ticket))) ++it;
  if (it == given_.end())
    return refuse(
        Error{Code::not_found, "no channel waits under this ticket", "a ticket is good once; start the worker again", Retry::no, {}});
  const JobId job = it->first;
  Given& given = it->second;
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return refuse(errno_error(Code::resource_exhausted, "make a socket pair"));
  unique_fd ours(pair[0]), theirs(pair[1]);
  auto counters = channel::CountersMap::create();
  if (!counters) return refuse(counters.error());
  visitor->socket.non_blocking(false);
  auto sent = channel::send_fds(visitor->socket.native_handle(), channel::take_ok, {theirs.get(), counters->fd()});
  visitor->socket.non_blocking(true);
  if (!sent) {
    spdlog::warn("the channel of job {} could not be handed over: {}", job.value, sent.error().message);
    return;
  }
  given.ticket.clear();
  given.patience->cancel();
  given.counters = std::move(*counters);
  given.visitor = visitor;
  watch(job, visitor);
  events_.taken(job, std::move(ours));
}

void ChannelGiver::watch(JobId job, std::shared_ptr<Visitor> visitor) {
  visitor->socket.async_read_some(asio::buffer(visitor->nothing), [this, job, visitor](boost::system::error_code code, std::size_t) {
    if (code == asio::error::operation_aborted) return;
    if (!code) return watch(job, visitor);
    const auto it = given_.find(job);
    if (it == given_.end() || it->second.visitor != visitor) return;
    given_.erase(it);
    events_.gone(job);
  });
}

void ChannelGiver::expect(JobId job, const std::string& ticket) {
  Given& given = given_[job];
  given.ticket = ticket;
  given.patience = std::make_shared<asio::steady_timer>(io_, take_patience);
  given.patience->async_wait([this, job](boost::system::error_code code) {
    if (code) return;
    given_.erase(job);
    events_.gone(job);
  });
}

void ChannelGiver::end(JobId job, const v1::ExitReason& exit) {
  const auto it = given_.find(job);
  if (it == given_.end()) return;
  Given given = std::move(it->second);
  given_.erase(it);
  given.patience->cancel();
  if (!given.visitor) return;
  auto text = std::make_shared<std::string>(channel::format_end(exit));
  auto visitor = given.visitor;
  asio::async_write(visitor->socket, asio::buffer(*text), [visitor, text](boost::system::error_code, std::size_t) {
    boost::system::error_code ignored;
    visitor->socket.shutdown(asio::socket_base::shutdown_send, ignored);
    visitor->socket.close(ignored);
  });
}

std::uint64_t ChannelGiver::calls(JobId job) const {
  const auto it = given_.find(job);
  return it == given_.end() || !it->second.counters ? 0 : it->second.counters->calls.load();
}

}  // namespace flotilla::daemon
