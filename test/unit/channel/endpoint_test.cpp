#include <rapidcheck.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <deque>
#include <random>
#include <string>

#include "proto/channel/endpoint.hpp"

using namespace flotilla;
using namespace flotilla::channel;

namespace {

const std::string ticket(ticket_bytes, 't');

std::string flatten(const Spans& spans) {
  std::string out;
  for (int i = 0; i < spans.count; ++i) out.append(static_cast<const char*>(spans.pieces[i].iov_base), spans.pieces[i].iov_len);
  return out;
}

// Puts at most `limit` bytes of `from` into the endpoint; returns how many it took.
std::size_t give(Endpoint& end, std::string_view from, std::size_t limit = ~std::size_t{}) {
  const Spans space = end.user_space();
  std::size_t done = 0;
  for (int i = 0; i < space.count; ++i) {
    const std::size_t count = std::min({space.pieces[i].iov_len, from.size() - done, limit - done});
    std::memcpy(space.pieces[i].iov_base, from.data() + done, count);
    done += count;
  }
  if (done) end.on_user_bytes(done);
  return done;
}
// Writes at most `limit` bytes; returns them.
std::string write(Endpoint& end, std::size_t limit = ~std::size_t{}) {
  std::string out = flatten(end.wire_out()).substr(0, limit);
  end.on_written(out.size());
  return out;
}
// Offers bytes of the wire; returns how many it took. Takes all deliverable bytes into `user`.
std::size_t feed(Endpoint& end, std::string_view bytes, std::string& user, std::size_t limit = ~std::size_t{}) {
  const iovec space = end.wire_space();
  const std::size_t count = std::min({space.iov_len, bytes.size(), limit});
  if (count == 0) return 0;
  std::memcpy(space.iov_base, bytes.data(), count);
  REQUIRE(end.on_wire_bytes(count));
  const iovec got = end.deliverable();
  user.append(static_cast<const char*>(got.iov_base), got.iov_len);
  end.on_delivered(got.iov_len);
  return count;
}

// Daemon and pilot, joined; what each user got.
struct Pair {
  explicit Pair(std::size_t limit = ring_limit_bytes) : daemon(Side::opener, 5, limit), pilot(Side::accepter, 5, limit) {}
  Endpoint daemon, pilot;
  std::string at_daemon, at_pilot;

  void connect(std::uint32_t epoch) {
    REQUIRE(daemon.open(epoch, ticket));
    auto request = parse_opening(write(daemon));
    REQUIRE(request);
    REQUIRE(pilot.accept(*request));
    const std::string answer = write(pilot, opening_bytes);
    REQUIRE(feed(daemon, answer, at_daemon) == opening_bytes);
    REQUIRE(daemon.connected());
  }
  // Everything that is under way arrives.
  void run() {
    for (;;) {
      std::string down = write(daemon), up = write(pilot);
      if (down.empty() && up.empty()) return;
      for (std::string_view rest = down; !rest.empty();) rest.remove_prefix(feed(pilot, rest, at_pilot));
      for (std::string_view rest = up; !rest.empty();) rest.remove_prefix(feed(daemon, rest, at_daemon));
    }
  }
  void acknowledge() {
    REQUIRE(daemon.on_ack(pilot.epoch(), pilot.take_ack()));
    REQUIRE(pilot.on_ack(daemon.epoch(), daemon.take_ack()));
  }
};

}  // namespace

TEST_CASE("bytes go both ways after the headers") {
  Pair pair;
  CHECK(give(pair.daemon, "early") == 5);  // before there is a wire
  CHECK_FALSE(pair.daemon.has_wire_out());
  pair.connect(1);
  CHECK(give(pair.pilot, "answer") == 6);
  pair.run();
  CHECK(pair.at_pilot == "early");
  CHECK(pair.at_daemon == "answer");
  CHECK(pair.daemon.ack_owed());
  CHECK_FALSE(pair.daemon.ack_due());  // six bytes can wait
  pair.acknowledge();
  CHECK(pair.daemon.acknowledged_by_peer() == 5);
  CHECK_FALSE(pair.daemon.ack_owed());
}

TEST_CASE("a reopened channel goes on where the peer stands") {
  Pair pair;
  pair.connect(1);
  give(pair.daemon, "0123456789");
  std::string sent = write(pair.daemon);
  feed(pair.pilot, std::string_view(sent).substr(0, 4), pair.at_pilot);  // the rest is lost with the connection
  pair.connect(2);
  CHECK(pair.daemon.acknowledged_by_peer() == 4);  // the header acknowledges too
  pair.run();
  CHECK(pair.at_pilot == "0123456789");
}

TEST_CASE("offsets that cannot be are refused") {
  Pair pair;
  pair.connect(1);
  give(pair.pilot, "abcdef");
  give(pair.daemon, "xyz");
  pair.run();
  pair.acknowledge();

  SECTION("the peer forgot what it had acknowledged") {
    auto refused = pair.pilot.accept({0, 5, 2, {}, 5});
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Code::internal);
  }
  SECTION("the peer has what was never sent") {
    give(pair.pilot, "taken, not sent");
    CHECK_FALSE(pair.pilot.accept({0, 5, 2, {}, 7}));
    CHECK_FALSE(pair.pilot.on_ack(2, 7));
  }
  SECTION("a lower or equal epoch is displaced and changes nothing") {
    CHECK(pair.pilot.accept({0, 5, 1, {}, 6}).error().code == Code::failed_precondition);
    CHECK(pair.pilot.connected());
    CHECK(pair.daemon.open(1, ticket).error().code == Code::failed_precondition);
  }
  SECTION("another channel") { CHECK_FALSE(pair.pilot.accept({0, 6, 2, {}, 6})); }
  SECTION("an acknowledgement of an older connection does no harm") {
    CHECK(pair.pilot.on_ack(0, 3));
    CHECK(pair.pilot.acknowledged_by_peer() == 6);
  }
  SECTION("an end before what was received") {
    CHECK_FALSE(pair.daemon.on_peer_end(5));
    CHECK(pair.daemon.on_peer_end(6));
    CHECK_FALSE(pair.daemon.on_peer_end(7));
    CHECK(pair.daemon.on_peer_end(6));  // said again
  }
  SECTION("bytes beyond the end") {
    CHECK(pair.pilot.on_peer_end(3));
    iovec space = pair.pilot.wire_space();
    std::memcpy(space.iov_base, "q", 1);
    CHECK_FALSE(pair.pilot.on_wire_bytes(1));
  }
}

TEST_CASE("an answer that belongs to another opening is refused, a refusal is told") {
  Endpoint daemon(Side::opener, 5);
  REQUIRE(daemon.open(3, ticket));
  const auto request = parse_opening(write(daemon));
  const auto answer_with = [&](Opening answer) {
    const auto bytes = format_opening(answer);
    std::memcpy(daemon.wire_space().iov_base, bytes.data(), bytes.size());
    return daemon.on_wire_bytes(bytes.size());
  };
  Opening answer = *request;
  answer.flags = opening_answer;
  SECTION("not an answer") { CHECK_FALSE(answer_with(*request)); }
  SECTION("epoch") {
    answer.epoch = 2;
    CHECK_FALSE(answer_with(answer));
  }
  SECTION("ticket") {
    answer.ticket[31] = 'x';
    CHECK_FALSE(answer_with(answer));
  }
  SECTION("refused") { CHECK(answer_with(refusal_of(*request)).error().code == Code::not_found); }
  SECTION("right") { CHECK(answer_with(answer)); }
}

TEST_CASE("the ring is bounded, and grows only when the wire is not what it waits for") {
  Pair pair(256 << 10);
  const std::string block(64 << 10, 'b');
  // Without a wire it keeps to its first size.
  std::size_t taken = 0;
  while (pair.daemon.wants_user_bytes()) taken += give(pair.daemon, block);
  CHECK(taken == ring_start_bytes);
  pair.connect(1);
  CHECK_FALSE(pair.daemon.wants_user_bytes());  // the wire is behind, not the peer
  for (int i = 0; i < 100; ++i) {
    taken += give(pair.daemon, block);
    pair.run();
  }
  CHECK(taken == 256 << 10);  // full at its limit: nothing was acknowledged
  CHECK(pair.daemon.user_space().empty());
  CHECK(pair.pilot.ack_due());
  pair.acknowledge();
  CHECK(pair.daemon.wants_user_bytes());
  pair.daemon.trim();
  CHECK(pair.daemon.ring_capacity() == 0);
  CHECK(give(pair.daemon, block) == ring_start_bytes);
  pair.run();
  CHECK(pair.at_pilot.size() == taken + ring_start_bytes);
}

TEST_CASE("each direction ends by itself; finished is when all is delivered and acknowledged") {
  Pair pair;
  pair.connect(1);
  give(pair.daemon, "question");
  pair.daemon.on_user_end();
  REQUIRE(pair.pilot.on_peer_end(pair.daemon.taken()));  // overtakes the bytes
  CHECK_FALSE(pair.pilot.peer_ended());
  pair.run();
  CHECK(pair.pilot.peer_ended());
  CHECK(pair.pilot.ack_due());  // the end is acknowledged at once
  give(pair.pilot, "answer");
  pair.pilot.on_user_end();
  CHECK_FALSE(pair.pilot.wants_user_bytes());
  pair.run();
  REQUIRE(pair.daemon.on_peer_end(pair.pilot.taken()));
  CHECK(pair.at_daemon == "answer");
  CHECK_FALSE(pair.daemon.finished());
  pair.acknowledge();
  CHECK(pair.daemon.finished());
  CHECK(pair.pilot.finished());
}

TEST_CASE("a user that takes no more does not hold the peer up") {
  Pair pair;
  pair.connect(1);
  give(pair.daemon, "abc");
  pair.pilot.discard_incoming();
  pair.run();
  CHECK(pair.at_pilot.empty());
  CHECK(pair.pilot.received() == 3);
  CHECK(pair.pilot.wants_wire_bytes());
}

TEST_CASE("whatever is cut wherever, the streams arrive whole, once, in order") {
  CHECK(rc::check("random cuts, sizes, acknowledgements, reopenings", [](std::uint32_t seed) {
    std::mt19937 generator(seed);
    const auto random = [&](std::size_t below) { return static_cast<std::size_t>(generator() % below); };
    const std::size_t limit = std::size_t{1} << random(13);
    Endpoint ends[2]{{Side::opener, 9, limit}, {Side::accepter, 9, limit}};
    std::string source[2], arrived[2];  // by sender, by receiver
    for (auto& text : source) {
      text.resize(random(20'000));
      for (auto& c : text) c = static_cast<char>(random(256));
    }
    std::size_t given[2]{};
    bool told_end[2]{};
    std::string air[2];                                           // on the wire, by sender
    std::deque<std::pair<std::uint32_t, std::uint64_t>> acks[2];  // under way on the link, by sender
    std::uint32_t epoch = 0;

    const auto cut = [&] {
      ends[0].disconnect();
      // The pilot notices later, or not at all before the next opening displaces it.
      if (random(2)) ends[1].disconnect();
    };
    const auto reopen = [&] {
      epoch += 1 + static_cast<std::uint32_t>(random(3));
      RC_ASSERT(ends[0].open(epoch, ticket));
      air[0].clear();
      air[1].clear();
    };
    bool pilot_waits_for_header = true;
    std::string header;
    reopen();
    int turns = 0;
    while (true) {
      RC_ASSERT(++turns < 2'000'000);
      for (int me : {0, 1})
        if (given[me] == source[me].size() && !ends[me].user_ended()) ends[me].on_user_end();
      if (ends[0].finished() && ends[1].finished()) break;
      const int me = static_cast<int>(random(2)), other = 1 - me;
      switch (random(40)) {
        case 0:
          cut();
          header.clear();
          pilot_waits_for_header = true;
          reopen();
          break;
        case 1:
          if (!acks[me].empty() && random(2)) acks[me].pop_front();  // the link lost it
          break;
        case 2:
          if (ends[me].user_ended() && !told_end[me]) {
            told_end[me] = true;
            RC_ASSERT(ends[other].on_peer_end(ends[me].taken()));
          }
          break;
        case 3:
        case 4:
        case 5:
        case 6:
          if (ends[me].ack_due() || (ends[me].ack_owed() && random(3) == 0) || random(30) == 0)
            if (ends[me].epoch()) acks[me].emplace_back(ends[me].epoch(), ends[me].take_ack());
          break;
        case 7:
        case 8:
        case 9:
        case 10:
          if (!acks[me].empty()) {
            RC_ASSERT(ends[other].on_ack(acks[me].front().first, acks[me].front().second));
            acks[me].pop_front();
          }
          break;
        case 11:
        case 12:
        case 13:
        case 14:
        case 15:
        case 16: given[me] += give(ends[me], std::string_view(source[me]).substr(given[me]), 1 + random(4000)); break;
        default: {
          if (me == 1 && pilot_waits_for_header) {
            write(ends[1], random(5000));  // into the old connection, from which nobody reads any more
            // The hub reads the header byte by byte and hands the connection over.
            const std::size_t count = std::min(opening_bytes - header.size(), air[0].size());
            header += air[0].substr(0, count);
            air[0].erase(0, count);
            if (header.size() < opening_bytes) break;
            auto request = parse_opening(header);
            RC_ASSERT(request.has_value());
            RC_ASSERT(ends[1].accept(*request));
            pilot_waits_for_header = false;
            air[1].clear();
            break;
          }
          if (me == 0 || !pilot_waits_for_header) air[me] += write(ends[me], 1 + random(5000));
          if (me == 1 || !pilot_waits_for_header) {
            // `me` reads what the other one sent.
            const std::size_t took = feed(ends[me], air[other], arrived[me], 1 + random(5000));
            air[other].erase(0, took);
          }
        }
      }
    }
    RC_ASSERT(arrived[1] == source[0]);
    RC_ASSERT(arrived[0] == source[1]);
  }));
}
