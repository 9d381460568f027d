// What connections need of the table: the channel itself.
#pragma once

#include <map>
#include <memory>

#include "daemon/transport/channel_table.hpp"
#include "daemon/transport/user_channel.hpp"
#include "proto/base/log.hpp"

namespace flotilla::daemon {

class ChannelTableInternal : public ChannelTable {
 public:
  virtual std::shared_ptr<UserChannel> find(std::uint64_t number) const = 0;
};

}  // namespace flotilla::daemon
