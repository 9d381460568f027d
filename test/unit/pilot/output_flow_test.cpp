#include "pilot/core/output_flow.hpp"

#include <catch2/catch.hpp>

using namespace flotilla::pilot;

namespace {
std::uint64_t send_all(OutputFlow& flow) {
  std::uint64_t total = 0;
  while (const auto count = flow.sendable()) {
    flow.on_sent(count);
    total += count;
  }
  return total;
}
}  // namespace

TEST_CASE("nothing goes without a link, then at most the credit") {
  OutputFlow flow;
  flow.on_produced(3 << 20);
  CHECK(flow.sendable() == 0);
  flow.on_link_up(0);
  CHECK(flow.sendable() == output_chunk_bytes);
  CHECK(send_all(flow) == first_credit_bytes);
  flow.on_window(1 << 20, 1 << 20);
  CHECK(flow.taken() == 1 << 20);
  CHECK(send_all(flow) == 1 << 20);
  flow.on_window(0, 1 << 20);  // an old one changes nothing
  CHECK(flow.sendable() == 0);
  flow.on_window(1ull << 40, 1);  // nor one that was never produced
  CHECK(flow.taken() == 1 << 20);
}

TEST_CASE("after a reconnect it goes on where the daemon says") {
  OutputFlow flow;
  flow.on_link_up(0);
  flow.on_produced(1000);
  send_all(flow);
  flow.on_window(400, first_credit_bytes);
  flow.on_link_down();
  flow.on_produced(10);
  CHECK(flow.sendable() == 0);
  flow.on_link_up(700);
  CHECK(flow.taken() == 700);
  CHECK(flow.sent() == 700);
  CHECK(send_all(flow) == 310);
  flow.on_link_down();
  flow.on_link_up(0);  // a daemon that says nothing: not before what was dropped
  CHECK(flow.sent() == 700);
}

TEST_CASE("what the daemon could not keep goes again, as far as it is held") {
  OutputFlow flow;
  flow.on_link_up(0);
  flow.on_produced(1000);
  flow.on_eof();
  CHECK(flow.oldest_goes_next());
  send_all(flow);
  flow.on_eof_sent();
  CHECK_FALSE(flow.oldest_goes_next());
  flow.on_window(400, first_credit_bytes);
  CHECK(flow.sendable() == 0);
  flow.on_sent_in_vain(400);
  CHECK(flow.sent() == 400);
  CHECK(flow.oldest_goes_next());
  CHECK(send_all(flow) == 600);
  CHECK(flow.eof_due());
  flow.on_sent_in_vain(300);  // an older word: what was dropped cannot come
  CHECK(flow.sent() == 400);
  flow.on_sent_in_vain(1ull << 40);  // nor does an absurd one count
  CHECK(flow.sent() == 400);
}

TEST_CASE("the end is told once a link, with the last data or by itself; of an empty stream not at all") {
  OutputFlow flow;
  flow.on_link_up(0);
  flow.on_produced(5);
  CHECK_FALSE(flow.eof_goes_with(5));
  flow.on_sent(5);
  CHECK_FALSE(flow.eof_due());
  flow.on_eof();
  CHECK(flow.eof_due());
  flow.on_eof_sent();
  CHECK_FALSE(flow.eof_due());
  flow.on_link_down();
  flow.on_link_up(5);
  CHECK(flow.eof_due());
  OutputFlow empty;
  empty.on_link_up(0);
  empty.on_eof();
  CHECK_FALSE(empty.eof_due());
  OutputFlow together;
  together.on_link_up(0);
  together.on_produced(5);
  together.on_eof();
  CHECK(together.eof_goes_with(5));
}

TEST_CASE("reading stops at the limit and goes on when something was taken") {
  OutputFlow flow;
  flow.on_produced(spool_limit_bytes - 1);
  CHECK(flow.may_read());
  flow.on_produced(1);
  CHECK_FALSE(flow.may_read());
  flow.on_window(10, 1 << 20);
  CHECK(flow.may_read());
}
