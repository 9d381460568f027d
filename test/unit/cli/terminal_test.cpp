// What the command line draws on a terminal, on a pseudo terminal in the place of stderr; and moments as it shows them.
#include "client/cli/terminal.hpp"

#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>

#include "client/cli/local_time.hpp"
#include "proto/base/unique_fd.hpp"

using namespace flotilla;
using namespace flotilla::cli;

namespace {

// In the place of stderr while it lives.
class Stderr {
 public:
  explicit Stderr(int fd) : before_(dup(2)) { REQUIRE(dup2(fd, 2) == 2); }
  ~Stderr() { dup2(before_.get(), 2); }
  Stderr(const Stderr&) = delete;
  Stderr& operator=(const Stderr&) = delete;

 private:
  unique_fd before_;
};

struct Terminal {
  explicit Terminal(unsigned short columns = 40) {
    int ends[2];
    REQUIRE(openpty(&ends[0], &ends[1], nullptr, nullptr, nullptr) == 0);
    master.reset(ends[0]);
    slave.reset(ends[1]);
    width(columns);
    setenv("TERM", "xterm", 1);
    setenv("NO_COLOR", "1", 1);
  }
  ~Terminal() { unsetenv("NO_COLOR"); }
  void width(unsigned short columns) {
    const winsize size{24, columns, 0, 0};
    REQUIRE(ioctl(master.get(), TIOCSWINSZ, &size) == 0);
  }
  // What was written since the last time; on a pseudo terminal it is there as soon as write() has returned.
  std::string written() {
    std::string text;
    for (pollfd polled{master.get(), POLLIN, 0}; poll(&polled, 1, 0) == 1;) {
      char buffer[4096];
      const ssize_t n = read(master.get(), buffer, sizeof buffer);
      if (n <= 0) break;
      text.append(buffer, static_cast<std::size_t>(n));
    }
    return text;
  }
  unique_fd master, slave;
};

const std::string erased = "\r\033[K";

}  // namespace

TEST_CASE("the one line is written over, and gone at the end") {
  Terminal terminal;
  const Stderr instead(terminal.slave.get());
  {
    StatusLine line;
    CHECK(line.visible());
    CHECK(terminal.written().empty());
    line.show("uploading data: 10 %");
    CHECK(terminal.written() == erased + "uploading data: 10 %");
    line.show("uploading data: 10 %");
    CHECK(terminal.written().empty());  // nothing new
    line.show("uploading data: 20 %");
    CHECK(terminal.written() == erased + "uploading data: 20 %");
    line.clear();
    CHECK(terminal.written() == erased);
    line.clear();
    CHECK(terminal.written().empty());
    line.show("waiting");
    CHECK(terminal.written() == erased + "waiting");
  }
  CHECK(terminal.written() == erased);
}

TEST_CASE("a question has the terminal for itself") {
  Terminal terminal;
  const Stderr instead(terminal.slave.get());
  StatusLine line;
  line.show("logging in");
  terminal.written();
  line.pause();
  CHECK(terminal.written() == erased);
  line.show("sending the agent");
  CHECK(terminal.written().empty());
  line.resume();
  line.show("sending the agent");
  CHECK(terminal.written() == erased + "sending the agent");
}

TEST_CASE("it never takes a second line, also after the window became smaller, and text cannot move the cursor") {
  Terminal terminal(20);
  const Stderr instead(terminal.slave.get());
  StatusLine line;
  line.show(std::string(50, 'x'));
  CHECK(terminal.written() == erased + std::string(18, 'x') + "…");
  terminal.width(10);
  line.show(std::string(50, 'y'));
  CHECK(terminal.written() == erased + std::string(8, 'y') + "…");
  line.show("a\nb\033[2Jc");
  CHECK(terminal.written() == erased + "a b?[2Jc");
}

TEST_CASE("in a pipe there is no such line") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const unique_fd out(ends[0]), in(ends[1]);
  {
    const Stderr instead(in.get());
    StatusLine line;
    CHECK_FALSE(line.visible());
    line.show("uploading");
    line.pause();
    line.resume();
    line.clear();
  }
  pollfd polled{out.get(), POLLIN, 0};
  CHECK(poll(&polled, 1, 0) == 0);
}

TEST_CASE("moments: today the time alone") {
  setenv("TZ", "UTC", 1);
  tzset();
  const std::int64_t noon = 1'795'176'000'000;  // 2026-11-20 12:00:00 UTC
  CHECK(format_moment(noon, noon + 60'000) == "12:00:00");
  CHECK(format_moment(noon, noon + 86'400'000) == "2026-11-20 12:00:00");
  CHECK(format_moment(0, noon) == "-");
}
