// Gives the channels of remote workers to their clients (PROTOCOL.md 5.1); local pilots give their own.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "daemon/coordinator/unix_listener.hpp"
#include "flotilla/v1/types.pb.h"
#include "proto/base/ids.hpp"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::daemon {

class ChannelGiver {
 public:
  // `taken`: the client has its half, here is ours. `gone`: the client closed its control connection, or never came.
  struct Events {
    std::function<void(JobId, unique_fd ours)> taken;
    std::function<void(JobId)> gone;
  };
  ChannelGiver(boost::asio::io_context& io, std::string socket_path, Events events);
  Status start() { return listener_.start(); }
  const std::string& socket_path() const { return path_; }

  // The ticket is good once.
  void expect(JobId job, const std::string& ticket);
  // Says END to the client that has the channel, and forgets it.
  void end(JobId job, const v1::ExitReason& exit);
  std::uint64_t calls(JobId job) const;

 private:
  struct Visitor;
  struct Given {
    std::string ticket;
    std::shared_ptr<Visitor> visitor;
    std::shared_ptr<boost::asio::steady_timer> patience;
    channel::CountersMap counters;
  };
  void read_request(std::shared_ptr<Visitor> visitor);
  void give(std::shared_ptr<Visitor> visitor);
  void watch(JobId job, std::shared_ptr<Visitor> visitor);

  boost::asio::io_context& io_;
  std::string path_;
  Events events_;
  UnixListener listener_;
  std::map<JobId, Given> given_;
};

}  // namespace flotilla::daemon
