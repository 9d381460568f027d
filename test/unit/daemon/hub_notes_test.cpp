#include "daemon/coordinator/hub_notes.hpp"

#include <catch2/catch.hpp>
#include <map>

#include "proto/tls/certificate.hpp"

using namespace flotilla;
using namespace flotilla::daemon;

namespace {
constexpr std::int64_t minute_ms = 60'000, day_ms = 24 * 60 * minute_ms, now_ms = 1'800'000'000'000;

class Notebook final : public Journal {
 public:
  const std::string& instance() const override { return instance_; }
  Status replay(const std::function<void(const v1::Event&)>&) override { return {}; }
  Status append(const std::vector<v1::Event>&) override { return {}; }
  std::string get(const std::string& name) override { return entries_[name]; }
  Status put(const std::string& name, const std::string& value) override {
    entries_[name] = value;
    return {};
  }

 private:
  std::string instance_ = std::string(16, 'i');
  std::map<std::string, std::string> entries_;
};
}  // namespace

TEST_CASE("a hub may be there while it is connected, and as long as one that nobody needs stays") {
  Notebook journal;
  HubNotes notes(journal);
  CHECK_FALSE(notes.may_be_there("front", now_ms));
  notes.connected("front");
  CHECK(notes.may_be_there("front", now_ms + 30 * day_ms));
  CHECK_FALSE(notes.may_be_there("other", now_ms));
  notes.let_go("front", now_ms);
  CHECK(notes.may_be_there("front", now_ms + 10 * minute_ms));
  CHECK_FALSE(notes.may_be_there("front", now_ms + 20 * minute_ms));
  notes.connected("front");
  notes.ended("front");
  CHECK_FALSE(notes.may_be_there("front", now_ms));
}

TEST_CASE("a daemon that was killed let go of its hubs at the latest when the next one starts") {
  Notebook journal;
  HubNotes notes(journal);
  notes.connected("front");
  notes.let_go("early", now_ms - 10 * minute_ms);
  for (const char* name : {"front", "early", "never"}) notes.daemon_started(name, now_ms);
  CHECK(notes.may_be_there("front", now_ms + 10 * minute_ms));
  CHECK_FALSE(notes.may_be_there("front", now_ms + 20 * minute_ms));
  CHECK_FALSE(notes.may_be_there("early", now_ms + 10 * minute_ms));
  CHECK_FALSE(notes.may_be_there("never", now_ms));
}

TEST_CASE("certificates of a hub are made once, and again before a hub that starts could outlive them") {
  Notebook journal;
  const auto first = hub_certificates(journal, "h1", now_ms);
  REQUIRE_FALSE(first.chain.empty());
  const auto half_a_year = hub_certificates(journal, "h1", now_ms + 182 * day_ms);
  CHECK(half_a_year.chain == first.chain);
  CHECK(half_a_year.key == first.key);
  for (const std::int64_t later : {now_ms + 200 * day_ms, now_ms + 1000 * day_ms}) {
    const auto renewed = hub_certificates(journal, "h1", later);
    CHECK(renewed.ca == first.ca);
    CHECK(renewed.chain != first.chain);
    CHECK(tls::valid_until_ms(renewed.chain).value() >= later + 364 * day_ms);
    CHECK(hub_certificates(journal, "h1", later).chain == renewed.chain);
    // What it issues fits its key.
    CHECK(tls::issue_server({renewed.chain, renewed.key}, renewed.ca, "h1", later));
  }
}
