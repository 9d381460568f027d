// A channel's wire over mutual TLS to the hub's data port.
#pragma once

#include <memory>
#include <string>

#include "proto/channel/opening.hpp"
#include "proto/channel/wire.hpp"
#include "proto/link/link.hpp"
#include "proto/tls/stream.hpp"

namespace flotilla::pilot {

std::unique_ptr<channel::Wire> make_tls_wire(tls::Stream stream);

struct DialledWire {
  std::unique_ptr<channel::Wire> wire;
  channel::Opening opening;  // what the daemon sent first, read off the wire
};
// Blocks: connects to host:port, proves itself, shows the ticket, reads the header. `stop` (an eventfd) ends it early.
Result<DialledWire> dial_wire(const std::string& address, const tls::ContextPtr& context, const std::string& server_name,
                              const std::string& ticket, int stop);

}  // namespace flotilla::pilot
