#include "daemon/coordinator/network_watch.hpp"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "proto/base/log.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

NetworkWatch::NetworkWatch(boost::asio::io_context& io, std::function<void()> on_change)
    : on_change_(std::move(on_change)), addresses_(io), clock_(io) {
  unique_fd netlink(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE;
  if (netlink && bind(netlink.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    addresses_.assign(netlink.release());
    wait_for_addresses();
  } else {
    spdlog::info("changes of this machine's network are not told by the kernel ({}): a lost connection is noticed by its silence",
                 std::strerror(errno));
  }
  // A wall clock that jumps cancels such a timer; waking up from sleep is such a jump.
  if (unique_fd timer(timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK)); timer) {
    clock_.assign(timer.release());
    arm_clock();
    wait_for_clock();
  }
}

void NetworkWatch::wait_for_addresses() {
  addresses_.async_wait(boost::asio::posix::stream_descriptor::wait_read, [this](const boost::system::error_code& error) {
    if (error) return;
    // What changed does not matter; all that came together is one change. ENOBUFS says that some was missed: a change as well.
    while (recv(addresses_.native_handle(), messages_.data(), messages_.size(), MSG_DONTWAIT) > 0 || errno == ENOBUFS) {}
    wait_for_addresses();
    on_change_();
  });
}

void NetworkWatch::arm_clock() {
  itimerspec never{};
  never.it_value.tv_sec = std::numeric_limits<std::int32_t>::max();
  timerfd_settime(clock_.native_handle(), TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, nullptr);
}

void NetworkWatch::wait_for_clock() {
  clock_.async_wait(boost::asio::posix::stream_descriptor::wait_read, [this](const boost::system::error_code& error) {
    if (error) return;
    std::uint64_t count;
    const bool jumped = read(clock_.native_handle(), &count, sizeof count) < 0 && errno == ECANCELED;
    arm_clock();
    wait_for_clock();
    if (jumped) on_change_();
  });
}

}  // namespace flotilla::daemon
