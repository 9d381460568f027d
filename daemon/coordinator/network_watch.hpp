// Tells when this machine's network may have changed: an address or an interface came or went, or the machine woke up from sleep.
// Event-driven: nothing is looked at in between.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <functional>

namespace flotilla::daemon {

class NetworkWatch {
 public:
  // Where the kernel does not tell (no netlink in a container), on_change never runs: keepalive finds out then.
  NetworkWatch(boost::asio::io_context& io, std::function<void()> on_change);

 private:
  void wait_for_addresses();
  void arm_clock();
  void wait_for_clock();

  std::function<void()> on_change_;
  boost::asio::posix::stream_descriptor addresses_, clock_;
  std::array<char, 8192> messages_{};
};

}  // namespace flotilla::daemon
