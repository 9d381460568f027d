// The long-lived hub: sockets, links, timers and processes around hub/core. One io_context, one thread; channels have theirs.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>

#include "flotilla/v1/link.pb.h"
#include "hub/places.hpp"
#include "proto/base/result.hpp"

namespace flotilla::hub {

class Hub {
 public:
  // Takes up the state file, binds the sockets, listens again where an earlier hub did. On failure nothing is left behind.
  static Result<std::unique_ptr<Hub>> open(boost::asio::io_context& io, const v1::HubStart& start, const Places& places);
  ~Hub();
  // Until the hub has ended.
  void run();

 private:
  class Impl;
  explicit Hub(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace flotilla::hub
