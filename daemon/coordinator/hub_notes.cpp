#include "daemon/coordinator/hub_notes.hpp"

#include <cstdlib>

#include "proto/base/log.hpp"
#include "proto/tls/certificate.hpp"

namespace flotilla::daemon {
namespace {
constexpr std::int64_t idle_hub_ms = 15 * 60'000;                     // a hub that nobody needs ends itself after 10 min
constexpr std::int64_t least_validity_ms = 182ll * 24 * 3600 * 1000;  // half of a hub's certificate
constexpr const char* connected_word = "connected";                   // or the moment of let_go()

std::string key(const std::string& resource) { return "hub_at." + resource; }
}  // namespace

void HubNotes::connected(const std::string& resource) { (void)journal_.put(key(resource), connected_word); }
void HubNotes::let_go(const std::string& resource, std::int64_t now_ms) { (void)journal_.put(key(resource), std::to_string(now_ms)); }
void HubNotes::ended(const std::string& resource) { (void)journal_.put(key(resource), ""); }
void HubNotes::daemon_started(const std::string& resource, std::int64_t now_ms) {
  if (journal_.get(key(resource)) == connected_word) let_go(resource, now_ms);
}
bool HubNotes::may_be_there(const std::string& resource, std::int64_t now_ms) const {
  const std::string note = journal_.get(key(resource));
  if (note.empty() || note == connected_word) return !note.empty();
  return now_ms - std::atoll(note.c_str()) < idle_hub_ms;
}

HubCertificates hub_certificates(Journal& journal, const std::string& hub_id, std::int64_t now_ms) {
  auto ensure = [&](const std::string& name, std::int64_t validity_ms, auto&& make) {
    tls::Authority authority{journal.get(name + ".chain"), journal.get(name + ".key")};
    if (!authority.chain.empty() && !authority.key.empty())
      if (const auto until = tls::valid_until_ms(authority.chain); until && *until - now_ms >= validity_ms) return authority;
    Result<tls::Authority> made = make();
    if (!made) {
      spdlog::error("no certificate '{}': {}", name, made.error().text());
      return authority;
    }
    (void)journal.put(name + ".chain", made->chain);
    (void)journal.put(name + ".key", made->key);
    return *made;
  };
  const auto ca = ensure("ca", 0, [&] { return tls::make_ca(journal.instance(), now_ms); });
  const auto hub = ensure("hub." + hub_id, least_validity_ms, [&] { return tls::issue_intermediate(ca, hub_id, now_ms); });
  return {ca.chain, hub.chain, hub.key};
}

}  // namespace flotilla::daemon
