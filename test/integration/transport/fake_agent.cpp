// A pretender of flotilla-agent for the transport's tests. `connect` is connector and hub in one process: it says hello, answers pings,
// echoes what comes on channels (over its channel socket, or as frames), and ends with EndHub or its stdin. What it is
// told in HubStart.env: FAKE=refuse|silent|stranger|crash|drop-first (closes the first channel's connection).
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <arpa/inet.h>

#include <boost/asio/post.hpp>
#include <cstdio>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <thread>

#include "proto/agent/helpers.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"
#include "proto/channel/fd_bridge.hpp"
#include "proto/channel/hand_over.hpp"
#include "proto/link/link.hpp"

using namespace flotilla;

namespace {

bool read_all(int fd, char* to, std::size_t size) {
  while (size > 0) {
    const auto count = read(fd, to, size);
    if (count <= 0) return false;
    to += count;
    size -= static_cast<std::size_t>(count);
  }
  return true;
}
bool write_all(int fd, const char* from, std::size_t size) {
  while (size > 0) {
    const auto count = write(fd, from, size);
    if (count <= 0) return false;
    from += count;
    size -= static_cast<std::size_t>(count);
  }
  return true;
}
void copy(int from, int to) {
  static thread_local char buffer[1 << 16];
  for (;;) {
    const auto count = read(from, buffer, sizeof buffer);
    if (count <= 0 || !write_all(to, buffer, static_cast<std::size_t>(count))) return;
  }
}

int verify(const char* wanted) {
  auto self = read_file("/proc/self/exe", 1u << 30);
  if (!self || to_hex(sha256(*self)) != wanted) return 3;
  std::printf("intact %s\n", build_version());
  return 0;
}

int dial(const char* host, int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  inet_pton(AF_INET, host, &address.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 1;
  std::thread up([fd] {
    copy(0, fd);
    shutdown(fd, SHUT_WR);
  });
  copy(fd, 1);
  _exit(0);
}

// Bytes for a wire, written by a thread of their own: the link must be read on, for it brings the acknowledgements.
struct Feed {
  std::mutex mutex;
  std::condition_variable changed;
  std::string waiting;
};

// One echoing channel.
struct Echo {
  std::shared_ptr<Feed> feed;
  std::unique_ptr<channel::FdBridge> bridge;
  std::thread thread;
  int frames = -1;  // our side of the wire that frames feed
  std::uint64_t sent = 0;
  std::uint32_t epoch = 0;
};

int connect_part() {
  unsigned char head[4];
  if (!read_all(0, reinterpret_cast<char*>(head), 4)) return 1;
  std::string body(std::size_t(head[0]) << 24 | std::size_t(head[1]) << 16 | std::size_t(head[2]) << 8 | head[3], '\0');
  v1::HubStart start;
  if (!read_all(0, body.data(), body.size()) || !start.ParseFromString(body)) return 1;
  const auto fake = start.env().count("FAKE") ? start.env().at("FAKE") : std::string();
  if (fake == "refuse") {
    std::printf("ERROR {\"code\":\"RESOURCE_EXHAUSTED\",\"message\":\"the hub has no room\",\"hint\":\"make some\"}\n");
    return 1;
  }
  if (fake == "crash") {
    std::fprintf(stderr, "fake agent: terminate called\n");
    return 134;
  }
  std::string folder = start.scratch_dir() + "/../fake-XXXXXX";  // the test's folder: it is cleared also when this is killed
  if (!mkdtemp(folder.data())) return 1;
  const auto path = folder + "/channels";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(listener, 16) != 0) return 1;
  const auto finish = [&](int code) {
    unlink(path.c_str());
    rmdir(folder.c_str());
    std::fflush(nullptr);
    _exit(code);
  };
  std::printf("FLOTILLA-HUB 1 %s %s\n", host_name().c_str(), path.c_str());
  std::fflush(stdout);

  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return 1;
  std::thread([&] {
    copy(0, pair[1]);
    finish(0);  // the connection is gone
  }).detach();
  std::thread([&] {
    copy(pair[1], 1);
    finish(0);
  }).detach();

  boost::asio::io_context io;
  auto work = boost::asio::make_work_guard(io);
  std::map<std::uint64_t, Echo> echoes;
  link::LinkPtr link;
  const auto echo_of = [&](std::uint64_t number) -> Echo& {
    auto& echo = echoes[number];
    if (echo.bridge) return echo;
    int user[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, user) != 0) std::abort();
    channel::BridgeHandlers handlers;
    handlers.on_ack = [&, number](std::uint32_t epoch, std::uint64_t received) {
      v1::Frame frame;
      frame.mutable_channel_ack()->set_channel(number);
      frame.mutable_channel_ack()->set_epoch(epoch);
      frame.mutable_channel_ack()->set_received(received);
      link->send(frame);
    };
    handlers.on_user_end = [&, number](std::uint64_t offset, bool) {
      v1::Frame frame;
      frame.mutable_channel_end()->set_channel(number);
      frame.mutable_channel_end()->set_final_offset(offset);
      link->send(frame);
    };
    echo.bridge = std::make_unique<channel::FdBridge>(
        channel::Side::accepter, number, unique_fd(user[0]), [&io](std::function<void()> f) { boost::asio::post(io, std::move(f)); },
        handlers);
    echo.thread = std::thread([fd = user[1]] {
      copy(fd, fd);
      shutdown(fd, SHUT_WR);
    });
    return echo;
  };
  std::thread([&] {
    if (fake == "drop-first") close(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    for (;;) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      char header[channel::opening_bytes];
      if (!read_all(fd, header, sizeof header)) continue;
      auto opening = channel::parse_opening({header, sizeof header});
      if (!opening) std::abort();
      boost::asio::post(io, [&, fd, opening = *opening] {
        echo_of(opening.channel).bridge->accept_wire(channel::make_socket_wire(unique_fd(fd)), opening);
      });
    }
  }).detach();

  const auto on_data = [&](const v1::ChannelData& data) {
    auto& echo = echo_of(data.channel());
    std::string bytes = data.data();
    if (data.offset() == 0) {
      int wire[2];
      if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, wire) != 0) std::abort();
      auto opening = channel::parse_opening(bytes.substr(0, channel::opening_bytes));
      if (!opening) std::abort();
      bytes.erase(0, channel::opening_bytes);
      if (echo.frames >= 0) shutdown(echo.frames, SHUT_RDWR);
      echo.frames = wire[1];
      echo.feed = std::make_shared<Feed>();
      std::thread([fd = wire[1], feed = echo.feed] {
        for (;;) {
          std::string bytes;
          {
            std::unique_lock lock(feed->mutex);
            feed->changed.wait(lock, [&] { return !feed->waiting.empty(); });
            bytes.swap(feed->waiting);
          }
          if (!write_all(fd, bytes.data(), bytes.size())) return;
        }
      }).detach();
      echo.epoch = data.epoch();
      std::thread([&io, &link, fd = wire[1], number = data.channel(), epoch = data.epoch()] {
        std::uint64_t sent = 0;
        static thread_local char buffer[1 << 16];
        for (;;) {
          const auto count = read(fd, buffer, sizeof buffer);
          if (count <= 0) return;
          v1::Frame frame;
          auto* out = frame.mutable_channel_data();
          out->set_channel(number);
          out->set_epoch(epoch);
          out->set_offset(sent);
          out->set_data(buffer, static_cast<std::size_t>(count));
          sent += static_cast<std::uint64_t>(count);
          boost::asio::post(io, [&link, frame] { link->send(frame); });
        }
      }).detach();
      echo.bridge->accept_wire(channel::make_socket_wire(unique_fd(wire[0])), *opening);
    }
    if (data.epoch() == echo.epoch && !bytes.empty()) {
      std::lock_guard lock(echo.feed->mutex);
      echo.feed->waiting += bytes;
      echo.feed->changed.notify_one();
    }
  };

  link::Handlers handlers;
  handlers.on_frame = [&](const link::LinkPtr& from, v1::Frame frame) {
    if (frame.has_ping()) {
      v1::Frame answer;
      answer.mutable_pong()->set_id(frame.ping().id());
      from->send(answer);
    } else if (frame.has_end_hub()) {
      v1::Frame answer;
      answer.mutable_goodbye()->set_reason("told to");
      from->send(answer);
      from->close();
    } else if (frame.has_channel_ack()) {
      echo_of(frame.channel_ack().channel()).bridge->on_ack(frame.channel_ack().epoch(), frame.channel_ack().received());
    } else if (frame.has_channel_end()) {
      echo_of(frame.channel_end().channel()).bridge->on_peer_end(frame.channel_end().final_offset());
    } else if (frame.has_channel_data()) {
      on_data(frame.channel_data());
    }
  };
  handlers.on_closed = [&](const link::LinkPtr&, const std::string&) { finish(0); };
  link = link::connect_fd(io, unique_fd(pair[0]), handlers, link::keepalive_remote);
  if (fake != "silent") {
    v1::Frame frame;
    auto* hello = frame.mutable_hello();
    hello->set_protocol(protocol_version);
    hello->set_protocol_min(protocol_minimum);
    hello->set_build(build_version());
    hello->set_instance(start.instance());
    hello->set_host(host_name());
    hello->set_pid(static_cast<std::uint32_t>(getpid()));
    hello->set_link_token(fake == "stranger" ? "guessed" : start.link_token());
    hello->mutable_hub()->set_hub_id(start.hub_id());
    hello->mutable_hub()->set_channel_socket(path);
    link->send(frame);
  }
  io.run();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && !std::strcmp(argv[1], "verify")) return verify(argv[2]);
  if (argc >= 2 && !std::strcmp(argv[1], "connect")) return connect_part();
  if (argc >= 2 && !std::strcmp(argv[1], "ask")) return ask_main(argc - 1, argv + 1);
  if (argc >= 2 && !std::strcmp(argv[1], "pass-fd")) return pass_fd_main(argc - 1, argv + 1);
  if (argc == 4 && !std::strcmp(argv[1], "dial")) return dial(argv[2], std::atoi(argv[3]));
  return 2;
}
