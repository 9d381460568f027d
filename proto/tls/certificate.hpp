// Certificates of an instance. The daemon's CA vouches for one intermediate CA a hub; the hub issues what it and its pilots
// show to each other, also while it is cut off from the daemon. Keys are EC P-256, texts PEM. `now_ms` is the wall clock
// (1970); every notBefore lies a day before it, for clocks that are wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "proto/base/ids.hpp"
#include "proto/base/result.hpp"
#include "proto/link/link.hpp"

namespace flotilla::tls {

// A certificate that may issue others, and what leads from it to the root (itself first; the root is not in it, unless it
// is the root).
struct Authority {
  std::string chain;
  std::string key;  // secret
};

// The root of an instance (16 bytes). It can issue intermediate CAs only.
Result<Authority> make_ca(std::string_view instance, std::int64_t now_ms);
// The CA of one hub: it can name servers below "<hub id>.flotilla" only, and issue no further CAs.
Result<Authority> issue_intermediate(const Authority& ca, std::string_view hub_id, std::int64_t now_ms);

// What the hub itself shows: a server's certificate for server_name(hub_id). `root` is the CA's certificate.
Result<link::TlsIdentity> issue_server(const Authority& hub, std::string_view root, std::string_view hub_id, std::int64_t now_ms);
// What the nodes of a pilot show: a client's certificate with the URI of the pilot. Its key is the pilot's join secret.
// `lifetime_ms`: 0 = as long as the hub's own.
Result<link::TlsIdentity> issue_pilot(const Authority& hub, std::string_view root, PilotId pilot, std::int64_t lifetime_ms,
                                      std::int64_t now_ms);

// "<hub id>.flotilla". A hub id is 1 to 40 of [a-z0-9-].
std::string server_name(std::string_view hub_id);
// "flotilla:pilot/<PILOT>"
std::string format_pilot_uri(PilotId pilot);
Result<PilotId> parse_pilot_uri(std::string_view uri);
// When the first certificate of a chain ends to be valid, ms since 1970.
Result<std::int64_t> valid_until_ms(std::string_view chain);

}  // namespace flotilla::tls
