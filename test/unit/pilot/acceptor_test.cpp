#include "pilot/worker/acceptor.hpp"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>

using namespace flotilla;
using namespace flotilla::pilot;
using namespace std::chrono_literals;

namespace {

struct Listening {
  Listening() {
    REQUIRE(mkdtemp(folder));
    path = std::string(folder) + "/s";
    REQUIRE(acceptor.open_at(path, [this](unique_fd each) { taken.push_back(std::move(each)); }));
  }
  ~Listening() { std::filesystem::remove_all(folder); }
  unique_fd try_to_connect() const {
    unique_fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fd.reset();
    return fd;
  }
  unique_fd connect() const {
    unique_fd fd = try_to_connect();
    REQUIRE(fd);
    return fd;
  }

  char folder[32] = "/tmp/fl-acceptor-XXXXXX";
  std::string path;
  boost::asio::io_context io;
  Acceptor acceptor{io, "the test"};
  std::vector<unique_fd> taken;
};

// As many descriptors as are open now and no more, for as long as it lives.
struct NoDescriptors {
  NoDescriptors() {
    REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
    const unique_fd next(dup(0));
    rlimit now = before;
    now.rlim_cur = static_cast<rlim_t>(next.get());
    REQUIRE(setrlimit(RLIMIT_NOFILE, &now) == 0);
  }
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before); }
  rlimit before{};
};

}  // namespace

TEST_CASE("connections are taken as they come, until it is closed") {
  Listening at;
  const auto first = at.connect(), second = at.connect();
  while (at.taken.size() < 2) REQUIRE(at.io.run_one_for(10s) == 1);
  at.acceptor.close();
  CHECK_FALSE(at.try_to_connect());
}

TEST_CASE("without descriptors it waits a moment, and then takes who waits") {
  Listening at;
  const auto visitor = at.connect();
  {
    const NoDescriptors none;
    CHECK(at.io.run_for(350ms) < 10);  // not as often as it can
    CHECK(at.taken.empty());
  }
  while (at.taken.empty()) REQUIRE(at.io.run_one_for(10s) == 1);
}

TEST_CASE("who takes a connection may close it, or destroy it") {
  Listening at;
  auto other = std::make_unique<Acceptor>(at.io, "the other");
  int count = 0;
  REQUIRE(other->open_at(at.path, [&](unique_fd) {
    ++count;
    other.reset();
  }));
  const auto first = at.connect(), second = at.connect();
  while (count == 0) REQUIRE(at.io.run_one_for(10s) == 1);
  at.acceptor.close();
  at.io.run();
  CHECK(count == 1);
}
