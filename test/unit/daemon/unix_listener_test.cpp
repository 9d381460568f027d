#include "daemon/coordinator/unix_listener.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <vector>

#include "proto/channel/hand_over.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {
struct Place {
  Place() {
    char name[] = "/tmp/fl-listener-test-XXXXXX";
    path = mkdtemp(name);
  }
  ~Place() { fs::remove_all(path); }
  fs::path path;
};

struct Listening {
  explicit Listening(const fs::path& path, std::chrono::milliseconds look = UnixListener::look_interval)
      : listener(
            io, path,
            [this](unique_fd fd) {
              arrived.push_back(std::move(fd));
              io.stop();
            },
            look) {
    REQUIRE(listener.start());
  }
  bool one_comes() {
    const auto before = arrived.size();
    io.restart();
    io.run_for(20s);
    return arrived.size() == before + 1;
  }
  boost::asio::io_context io;
  std::vector<unique_fd> arrived;
  UnixListener listener;
};

// Nothing more can be opened while it lives.
struct NoDescriptors {
  NoDescriptors() {
    getrlimit(RLIMIT_NOFILE, &before);
    unique_fd next(open("/dev/null", O_RDONLY | O_CLOEXEC));
    rlimit now = before;
    now.rlim_cur = static_cast<rlim_t>(next.get());
    next.reset();
    REQUIRE(setrlimit(RLIMIT_NOFILE, &now) == 0);
  }
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before); }
  rlimit before{};
};
}  // namespace

TEST_CASE("a socket for this user alone; its file goes with it") {
  Place place;
  const auto path = place.path / "x.sock";
  {
    Listening l(path);
    struct stat info {};
    REQUIRE(stat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0600);
    auto client = channel::connect_unix(path);
    REQUIRE(client);
    REQUIRE(l.one_comes());
    CHECK((fcntl(l.arrived.front().get(), F_GETFD) & FD_CLOEXEC) != 0);
  }
  CHECK_FALSE(fs::exists(path));
}

TEST_CASE("another user is turned away, also one who gets at the socket") {
  if (geteuid() != 0) {
    WARN("only root can be another user: not tried");
    return;
  }
  Place place;
  const auto path = place.path / "x.sock";
  Listening l(path);
  fs::permissions(place.path, fs::perms::all);
  fs::permissions(path, fs::perms::all);
  const pid_t stranger = fork();
  if (stranger == 0) {  // waits for its connection to be closed
    constexpr uid_t nobody = 65534;
    char byte;
    if (setgid(nobody) != 0 || setuid(nobody) != 0) _exit(1);
    auto socket = channel::connect_unix(path);
    _exit(socket && read(socket->get(), &byte, 1) == 0 ? 0 : 2);
  }
  REQUIRE(stranger > 0);
  int status = -1;
  const auto limit = std::chrono::steady_clock::now() + 20s;
  while (waitpid(stranger, &status, WNOHANG) == 0 && std::chrono::steady_clock::now() < limit) {
    l.io.restart();
    l.io.run_for(10ms);
  }
  CHECK(status == 0);
  CHECK(l.arrived.empty());
  auto own = channel::connect_unix(path);
  REQUIRE(own);
  CHECK(l.one_comes());
}

TEST_CASE("without descriptors a listener rests, and takes who waits when there are some again") {
  Place place;
  Listening l(place.path / "x.sock");
  auto client = channel::connect_unix(place.path / "x.sock");
  REQUIRE(client);
  {
    NoDescriptors none;
    CHECK(l.io.run_for(300ms) < 20);  // turns of the loop
    CHECK(l.arrived.empty());
  }
  CHECK(l.one_comes());
}

TEST_CASE("a socket whose file or folder was removed is bound again") {
  Place place;
  const auto path = place.path / "run" / "x.sock";
  fs::create_directory(path.parent_path());
  Listening l(path, 20ms);
  for (const auto& victim : {path, path.parent_path()}) {
    fs::remove_all(victim);
    REQUIRE_FALSE(channel::connect_unix(path));
    l.io.restart();
    while (!fs::exists(path)) l.io.run_one_for(20s);
    auto client = channel::connect_unix(path);
    REQUIRE(client);
    CHECK(l.one_comes());
  }
}
