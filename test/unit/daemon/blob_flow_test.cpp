#include "daemon/core/blob_flow.hpp"

#include <catch2/catch.hpp>

using flotilla::daemon::BlobFlow;

TEST_CASE("a file is no further ahead of its pilot than its window") {
  BlobFlow flow{1000, 1000};  // begun anew in the middle
  std::uint64_t sent = 0;
  while (flow.may_send(1)) {
    flow.offset += 256u << 10;
    sent += 256u << 10;
  }
  CHECK(sent == BlobFlow::most_bytes);
  flow.on_taken(1000 + (512u << 10));
  CHECK(flow.may_send(1));
  flow.on_taken(0);  // an old word
  CHECK(flow.taken == 1000 + (512u << 10));
  flow.on_taken(~0ull);  // more than was sent
  CHECK(flow.taken == flow.offset);
}

TEST_CASE("one that does not tell is not waited for") {
  BlobFlow flow{1ull << 40, 0, false};
  CHECK(flow.may_send(1));
}

TEST_CASE("many share what may be on its way, none stands still") {
  CHECK(BlobFlow::window(0) == BlobFlow::most_bytes);
  CHECK(BlobFlow::window(8) == BlobFlow::all_bytes / 8);
  CHECK(BlobFlow::window(10'000) == BlobFlow::least_bytes);
}
