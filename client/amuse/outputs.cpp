#include "client/amuse/outputs.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "proto/base/random.hpp"

namespace flotilla::amuse {
namespace {

constexpr int reader_patience_ms = 3'000;

class Connection final : public Output {
 public:
  explicit Connection(unique_fd fd) : fd_(std::move(fd)) {}
  void write(std::string_view bytes) override {
    const std::lock_guard lock(mutex_);
    while (fd_ && !bytes.empty()) {
      const ssize_t count = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count >= 0) {
        bytes.remove_prefix(static_cast<std::size_t>(count));
        continue;
      }
      if (errno == EINTR) continue;
      pollfd room{fd_.get(), POLLOUT, 0};
      // The script has ended, or reads no more, as AMUSE's own reader after its first byte: nobody else waits for it.
      if ((errno != EAGAIN && errno != EWOULDBLOCK) || ::poll(&room, 1, reader_patience_ms) <= 0) fd_.reset();
    }
  }

 private:
  std::mutex mutex_;
  unique_fd fd_;
};

class File final : public Output {
 public:
  explicit File(std::string path) : path_(std::move(path)) {
    fd_.reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
    if (!fd_) tell();
  }
  void write(std::string_view bytes) override {
    while (fd_ && !bytes.empty()) {
      const ssize_t count = ::write(fd_.get(), bytes.data(), bytes.size());
      if (count >= 0) {
        bytes.remove_prefix(static_cast<std::size_t>(count));
      } else if (errno != EINTR) {
        tell();
        fd_.reset();
      }
    }
  }

 private:
  void tell() const { std::fprintf(stderr, "output of a worker is lost: cannot write %s: %s\n", path_.c_str(), std::strerror(errno)); }
  std::string path_;
  unique_fd fd_;
};

}  // namespace

std::string Outputs::add(unique_fd connection) {
  const auto hex = random_hex(16);
  const auto name = hex.substr(0, 8) + "-" + hex.substr(8, 4) + "-" + hex.substr(12, 4) + "-" + hex.substr(16, 4) + "-" + hex.substr(20);
  const std::lock_guard lock(mutex_);
  connections_[name] = std::make_shared<Connection>(std::move(connection));
  return name;
}

std::shared_ptr<Output> Outputs::open(const std::string& target) {
  // AMUSE makes every target a path of its own first.
  const auto slash = target.find_last_of('/');
  const auto last = slash == std::string::npos ? target : target.substr(slash + 1);
  {
    const std::lock_guard lock(mutex_);
    if (const auto it = connections_.find(last); it != connections_.end()) return it->second;
  }
  if (target.empty() || target == "/dev/null") return nullptr;
  return std::make_shared<File>(target);
}

}  // namespace flotilla::amuse
