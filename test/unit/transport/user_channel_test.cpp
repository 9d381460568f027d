// A user's end of a channel, with a wire that only takes.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <string>

#include "daemon/transport/user_channel.hpp"
#include "proto/channel/opening.hpp"

using namespace flotilla;
using daemon::UserChannel;

namespace {

class TakingWire final : public daemon::ChannelWire {
 public:
  long write(const iovec* pieces, int count) override {
    long total = 0;
    for (int i = 0; i < count; ++i) total += static_cast<long>(pieces[i].iov_len);
    bytes += total;
    return total;
  }
  void wake() override { ++woken; }
  long bytes = 0;
  int woken = 0;
};

}  // namespace

TEST_CASE("an acknowledgement that makes room wakes the thread that has stopped reading") {
  boost::asio::io_context io;
  int pair[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
  unique_fd script(pair[1]);
  auto channel = std::make_shared<UserChannel>(io, 7, unique_fd(pair[0]), daemon::UserChannelEvents{});
  TakingWire wire;
  const std::string ticket(channel::ticket_bytes, 't');
  REQUIRE(channel->attach(&wire, 1, ticket));
  // The other side's answer: it has nothing yet.
  channel::Opening answer;
  answer.channel = 7;
  answer.epoch = 1;
  answer.flags = channel::opening_answer;
  std::copy(ticket.begin(), ticket.end(), answer.ticket.begin());
  const auto bytes = channel::format_opening(answer);
  const std::string header(bytes.begin(), bytes.end());
  REQUIRE(channel->on_wire_bytes(&wire, header) == header.size());

  // Nothing is acknowledged: the ring fills, and the script's socket is polled no more.
  const std::string piece(64 << 10, 'x');
  while (channel->user_events() & POLLIN) {
    (void)!::send(script.get(), piece.data(), piece.size(), MSG_NOSIGNAL);
    channel->on_user_ready(POLLIN);
  }
  const auto sent = static_cast<std::uint64_t>(wire.bytes) - channel::opening_bytes;
  REQUIRE(sent > 0);
  CHECK(wire.woken == 0);
  channel->on_ack(1, sent / 2);
  CHECK(wire.woken == 1);
  CHECK((channel->user_events() & POLLIN) != 0);
  // The thread is awake: no more than that.
  channel->on_ack(1, sent);
  CHECK(wire.woken == 1);
  channel->close();
}
