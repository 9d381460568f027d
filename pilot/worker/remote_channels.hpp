// The pilot's ends of resumable channels to workers (PROTOCOL.md 5.2, 5.3). On the io thread; the bytes move elsewhere.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "flotilla/v1/link.pb.h"
#include "pilot/worker/hand_over.hpp"
#include "proto/base/ids.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {

class RemoteChannels {
 public:
  explicit RemoteChannels(boost::asio::io_context& io) : io_(io) {}

  void add(Attempt attempt, unique_fd worker, std::function<void()> on_client_gone) {
    workers_[attempt] = std::move(worker);
    (void)on_client_gone;
  }
  void end(Attempt attempt, const v1::ExitReason&) { workers_.erase(attempt); }
  void forget(Attempt attempt) { workers_.erase(attempt); }
  std::optional<ChannelCounts> counts(Attempt) const { return std::nullopt; }

 private:
  boost::asio::io_context& io_;
  std::map<Attempt, unique_fd> workers_;
};

}  // namespace flotilla::pilot
