// What the journal keeps of hubs beside the events: whether one is there, and what vouches for it.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/journal/journal.hpp"

namespace flotilla::daemon {

// Was a hub there when this or the last daemon last heard of it, and may it still be? Moments are ms of the wall clock.
class HubNotes {
 public:
  explicit HubNotes(Journal& journal) : journal_(journal) {}
  void connected(const std::string& resource);
  void let_go(const std::string& resource, std::int64_t now_ms);  // it lives on, without a link to here
  void ended(const std::string& resource);
  // A daemon that was killed let go of its hubs at a moment that nobody knows: now is the latest.
  void daemon_started(const std::string& resource, std::int64_t now_ms);
  bool may_be_there(const std::string& resource, std::int64_t now_ms) const;

 private:
  Journal& journal_;
};

struct HubCertificates {
  std::string ca, chain, key;  // PEM; the instance's CA, and the hub's own with what leads there
};
// Made once, and the hub's again when less than half of its year is left: a hub and pilots that start now shall live on it.
HubCertificates hub_certificates(Journal& journal, const std::string& hub_id, std::int64_t now_ms);

}  // namespace flotilla::daemon
