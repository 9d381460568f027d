// Channels of workers beside the link: whole, in order, across connections, and without forwarding.
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <boost/asio/post.hpp>
#include <cstring>
#include <thread>

#include "proto/base/random.hpp"
#include "test/integration/transport/machine.hpp"

namespace {

// The client's half of a channel. Blocking; used by a thread of the test.
struct Client {
  explicit Client(Side& side, std::uint64_t number) {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fd.reset(pair[0]);
    side.channels->add(number, unique_fd(pair[1]));
  }
  bool write(const char* data, std::size_t size) const {
    while (size > 0) {
      const auto count = ::send(fd.get(), data, size, MSG_NOSIGNAL);
      if (count <= 0) return false;
      data += count;
      size -= static_cast<std::size_t>(count);
    }
    return true;
  }
  bool read(char* data, std::size_t size) const {
    while (size > 0) {
      const auto count = ::recv(fd.get(), data, size, 0);
      if (count <= 0) return false;
      data += count;
      size -= static_cast<std::size_t>(count);
    }
    return true;
  }
  unique_fd fd;
};

void open(Side& side, std::uint64_t number, std::uint32_t epoch) {
  side.connection->open_channel({number, epoch, random_bytes(32), "1.0"});
}

// Sends `size` bytes while reading them back, and compares.
bool echo(const Client& client, std::size_t size) {
  std::string sent(size, '\0');
  std::uint64_t state = size * 2654435761u + 1;
  for (auto& byte : sent) byte = static_cast<char>((state = state * 6364136223846793005u + 1442695040888963407u) >> 56);
  std::string got(size, '\0');
  bool wrote = false;
  std::thread writer([&] { wrote = client.write(sent.data(), sent.size()); });
  const bool read = client.read(got.data(), got.size());
  if (!read) shutdown(client.fd.get(), SHUT_RDWR);
  writer.join();
  return wrote && read && sent == got;
}

template <class Work>
bool in_thread(Side& side, Work&& work, std::chrono::milliseconds limit = 60s) {
  std::atomic<bool> done{false};
  bool result = false;
  std::thread thread([&] {
    result = work();
    done = true;
  });
  const bool in_time = side.until([&] { return done.load(); }, limit);
  if (!in_time) WARN("the other side of the channel is still waiting");
  if (!in_time) side.connection.reset();
  thread.join();
  return in_time && result;
}

}  // namespace

TEST_CASE("bytes come back whole over a channel of their own") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      Machine machine(home);
      Side side(home);
      side.connect(side.config(machine, transport));
      REQUIRE(side.until_connected());
      Client client(side, 1);
      open(side, 1, 1);
      CHECK(in_thread(side, [&] { return echo(client, 1) && echo(client, 100'000) && echo(client, 50'000'000); }));
      const auto counted = side.channels->counters(1);
      CHECK(counted.bytes_to_worker == 50'100'001);
      CHECK(counted.bytes_from_worker == 50'100'001);
      // Each direction ends by itself: what was written is still echoed.
      CHECK(in_thread(side, [&] {
        char byte = 'x';
        if (!client.write(&byte, 1)) return false;
        shutdown(client.fd.get(), SHUT_WR);
        return client.read(&byte, 1) && byte == 'x' && recv(client.fd.get(), &byte, 1, 0) == 0;
      }));
      side.channels->remove(1);
    }
  }
}

TEST_CASE("several channels at once, one of them with a reader that sleeps") {
  Home home;
  Machine machine(home);
  Side side(home);
  side.connect(side.config(machine));
  REQUIRE(side.until_connected());
  Client sleepy(side, 1), quick(side, 2), other(side, 3);
  for (std::uint64_t number = 1; number <= 3; ++number) open(side, number, 1);
  // The sleepy one's bytes come back and are not read: its own stream stops, no other.
  std::atomic<bool> stop{false};
  std::thread feeder([&] {
    const std::string piece(1 << 20, 's');
    while (!stop && sleepy.write(piece.data(), piece.size())) {}
  });
  CHECK(in_thread(side, [&] { return echo(quick, 5'000'000) && echo(other, 5'000'000); }));
  stop = true;
  shutdown(sleepy.fd.get(), SHUT_RDWR);
  feeder.join();
  for (std::uint64_t number = 1; number <= 3; ++number) side.channels->remove(number);
}

TEST_CASE("a channel goes on over the next connection where the last one broke") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      Machine machine(home);
      Side side(home);
      auto config = side.config(machine, transport);
      // The fake hub dies with its connection: it forgets the channel, and says so.
      side.connect(config);
      REQUIRE(side.until_connected());
      Client client(side, 1);
      open(side, 1, 1);
      CHECK(in_thread(side, [&] { return echo(client, 1'000'000); }));
      std::optional<std::uint64_t> broken;
      std::optional<Error> failed;
      side.channels->on_broken = [&](std::uint64_t number) { broken = number; };
      side.channels->on_failed = [&](std::uint64_t, const Error& error) { failed = error; };
      // Only the channel's connection is displaced: a newer one takes over in the middle of bulk.
      CHECK(in_thread(side, [&] {
        std::atomic<bool> going{true};
        std::uint32_t epoch = 1;
        std::thread reopen([&] {
          for (int i = 0; i < 5; ++i) {
            boost::asio::post(side.io, [&] { open(side, 1, ++epoch); });
            for (int wait = 0; wait < 20 && going; ++wait) poll(nullptr, 0, 5);
          }
        });
        const bool ok = echo(client, 60'000'000);
        going = false;
        reopen.join();
        return ok;
      }));
      CHECK_FALSE(failed);
      machine.end_connections();
      REQUIRE(side.until([&] { return side.ended.has_value(); }));
      CHECK(side.until([&] { return broken == 1; }));
      broken.reset();
      side.connect(config);
      REQUIRE(side.until_connected());
      open(side, 1, 99);
      // The new pretender has never heard of the stream and refuses it: the owner is told, and the client sees the end.
      CHECK(side.until([&] { return failed.has_value(); }));
      CHECK_FALSE(broken);
      char byte;
      CHECK(recv(client.fd.get(), &byte, 1, 0) == 0);
      side.channels->remove(1);
    }
  }
}

TEST_CASE("where forwarding is forbidden the link carries the bytes") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      Machine machine(home, "AllowStreamLocalForwarding no\nAllowTcpForwarding no\n");
      Side side(home);
      std::uint32_t epoch = 1;
      side.channels->on_broken = [&](std::uint64_t number) { open(side, number, ++epoch); };
      side.connect(side.config(machine, transport));
      REQUIRE(side.until_connected());
      Client client(side, 1);
      open(side, 1, epoch);
      CHECK(in_thread(side, [&] { return echo(client, 1) && echo(client, 3'000'000); }));
      CHECK(epoch <= 2);
      side.channels->remove(1);
    }
  }
}

TEST_CASE("one channel that ended early does not stand for all of them") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      Machine machine(home);
      Side side(home);
      int frames = 0;
      side.channels->send_frame = [&](std::uint64_t, v1::Frame frame) {
        frames += frame.has_channel_data();
        frame.set_peer("1.0");
        side.connection->send(std::move(frame));
      };
      std::uint32_t epoch = 1;
      side.channels->on_broken = [&](std::uint64_t number) { open(side, number, ++epoch); };
      auto config = side.config(machine, transport);
      (*config.spec.mutable_env())["FAKE"] = "drop-first";
      side.connect(config);
      REQUIRE(side.until_connected());
      Client client(side, 1);
      open(side, 1, epoch);
      CHECK(in_thread(side, [&] { return echo(client, 100'000); }));
      CHECK(epoch == 2);
      CHECK(frames == 0);
      side.channels->remove(1);
    }
  }
}

TEST_CASE("a client that goes is told, and a removed channel ends its client") {
  Home home;
  Machine machine(home);
  Side side(home);
  side.connect(side.config(machine));
  REQUIRE(side.until_connected());
  std::vector<std::uint64_t> gone;
  side.channels->on_user_gone = [&](std::uint64_t number) { gone.push_back(number); };
  Client leaver(side, 1);
  open(side, 1, 1);
  CHECK(in_thread(side, [&] { return echo(leaver, 10); }));
  leaver.fd.reset();
  CHECK(side.until([&] { return gone == std::vector<std::uint64_t>{1}; }));
  side.channels->remove(1);

  Client stayer(side, 2);
  open(side, 2, 1);
  CHECK(in_thread(side, [&] { return echo(stayer, 10); }));
  side.channels->remove(2);
  char byte;
  CHECK(recv(stayer.fd.get(), &byte, 1, 0) == 0);
  side.until([] { return false; }, 100ms);
  CHECK(gone.size() == 1);
}
