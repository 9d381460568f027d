// A stream's way where the disk is full: a limit on file sizes stands for that.
#include "pilot/output_pump.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <string>

using namespace flotilla;
using namespace flotilla::pilot;
using namespace std::chrono_literals;

namespace {

class FullDisk {
 public:
  FullDisk() {
    std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit none{0, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &none);
  }
  ~FullDisk() { make_room(); }
  void make_room() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

struct Stream {
  Stream() {
    char name[] = "/tmp/flpump-XXXXXX";
    folder = mkdtemp(name);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
    writer.reset(ends[1]);
    fcntl(writer.get(), F_SETFL, O_NONBLOCK);
    pump = std::make_shared<OutputPump>(io, 1, folder, [this](v1::OutputData data) {
      REQUIRE(data.offset() == got.size());
      got += data.data();
      eof = data.eof();
    });
    pump->open(unique_fd(ends[0]));
  }
  ~Stream() {
    pump->stop();
    std::filesystem::remove_all(folder);
  }
  // Until nothing more goes in.
  void fill() {
    std::string piece(4096, 'x');
    for (;;) {
      for (auto& c : piece) c = static_cast<char>('a' + counter++ % 26);
      const ssize_t n = write(writer.get(), piece.data(), piece.size());
      if (n > 0) written.append(piece, 0, static_cast<std::size_t>(n));
      const auto before = pump->produced();
      run();
      if (n < 0 && pump->produced() == before) return;
    }
  }
  void run() {
    io.restart();
    io.poll();
  }

  std::string folder;
  boost::asio::io_context io;
  unique_fd writer;
  std::shared_ptr<OutputPump> pump;
  std::string written, got;
  bool eof = false;
  unsigned counter = 0;
};

constexpr std::uint64_t credit = 1u << 20;
constexpr std::uint64_t window_step = 128u << 10;  // as the daemon acknowledges

}  // namespace

TEST_CASE("on a full disk output goes on as it is taken, in steps") {
  FullDisk disk;
  Stream stream;
  stream.pump->on_link_up(0);
  stream.fill();
  for (int round = 0; round < 20; ++round) {
    const auto before = stream.got.size();
    stream.pump->on_window(before / window_step * window_step, credit, false);
    stream.fill();
    CHECK(stream.got.size() > before);
  }
  stream.writer.reset();
  stream.pump->finish();
  stream.pump->on_window(stream.got.size(), credit, false);
  CHECK(stream.got == stream.written);
  CHECK(stream.eof);
}

TEST_CASE("a disk that fills up while a file is used, and is made room on, loses and stops nothing") {
  Stream stream;
  while (stream.written.size() < 3 * spool_memory_bytes) {  // nobody takes it
    stream.counter += 1;
    const std::string piece(4096, static_cast<char>('a' + stream.counter % 26));
    REQUIRE(write(stream.writer.get(), piece.data(), piece.size()) == 4096);
    stream.written += piece;
    stream.run();
  }
  FullDisk disk;
  stream.fill();
  const auto held = stream.pump->produced();
  SECTION("it is sent, and the rest fits into memory") {
    stream.pump->on_link_up(0);
    stream.pump->on_window(stream.got.size() / window_step * window_step, credit, false);
    stream.fill();
    CHECK(stream.pump->produced() > held);
  }
  SECTION("room is found without anybody's doing") {
    disk.make_room();
    stream.io.restart();
    while (stream.pump->produced() == held && stream.io.run_one_for(10s) > 0) {}
    CHECK(stream.pump->produced() > held);
  }
  SECTION("its process ends: what was read is kept all the same") {}
  stream.writer.reset();
  stream.pump->finish();
  CHECK(stream.pump->produced() == stream.written.size());
  stream.pump->on_link_up(stream.got.size());
  for (int i = 0; i < 100 && !stream.eof; ++i) stream.pump->on_window(stream.got.size(), credit, false);
  CHECK(stream.got == stream.written);
}
