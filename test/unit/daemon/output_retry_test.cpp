#include "daemon/core/output_retry.hpp"

#include <catch2/catch.hpp>

using namespace flotilla;
using namespace flotilla::daemon;

TEST_CASE("while the disk is full one stream tries for all, each in its turn; when one is kept all are asked for") {
  OutputRetry retry;
  const JobOutput a{JobId{1}, 1}, b{JobId{1}, 2}, c{JobId{7}, 1};
  CHECK_FALSE(retry.next());
  CHECK(retry.on_refused(a));
  CHECK_FALSE(retry.on_refused(a));
  CHECK(retry.on_refused(b));
  CHECK(retry.on_refused(c));
  CHECK(retry.next() == a);
  CHECK(retry.next() == b);
  CHECK(retry.next() == c);
  CHECK(retry.next() == a);
  CHECK(retry.on_kept(b, true) == std::vector{a, c});
  CHECK(retry.on_kept(b, true).empty());   // nothing had been refused of it
  CHECK(retry.on_kept(a, false).empty());  // what was there already says nothing of the disk
  CHECK(retry.next() == c);
  retry.forget(JobId{7});
  CHECK(retry.empty());
  CHECK_FALSE(retry.next());
}
