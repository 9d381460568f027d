#include "hub/log_reader.hpp"

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <map>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::hub {
namespace {
namespace asio = boost::asio;
constexpr std::size_t chunk_bytes = 256u << 10;
constexpr std::uint64_t default_tail_bytes = 64u << 10;
}  // namespace

class LogReader::Impl : public std::enable_shared_from_this<LogReader::Impl> {
 public:
  Impl(asio::io_context& io, std::filesystem::path file, Send send) : file_(std::move(file)), send_(std::move(send)), watch_(io) {}

  void handle(const v1::ReadLog& request) {
    if (request.stop()) {
      followers_.erase(request.request());
      return;
    }
    begin(request, file_, request.follow());
  }
  void read_once(const v1::ReadLog& request, const Result<std::filesystem::path>& file) {
    if (file) return begin(request, *file, false);
    refuse(request, file.error().message);
  }
  void stop_all() { followers_.clear(); }

 private:
  struct Follower {
    unique_fd fd;
    ino_t inode = 0;
  };

  void refuse(const v1::ReadLog& request, const std::string& why) {
    v1::LogData data;
    data.set_request(request.request());
    data.set_error(why);
    data.set_eof(true);
    send_(std::move(data));
  }
  void begin(const v1::ReadLog& request, const std::filesystem::path& file, bool follow) {
    Follower follower;
    follower.fd.reset(open(file.c_str(), O_RDONLY | O_CLOEXEC));
    v1::LogData first;
    first.set_request(request.request());
    first.set_path(file.string());
    struct stat info {};
    if (!follower.fd || fstat(follower.fd.get(), &info) != 0)
      return refuse(request, errno_error(Code::not_found, "read the log " + file.string()).message);
    const std::uint64_t tail = request.tail_bytes() ? request.tail_bytes() : default_tail_bytes;
    const auto size = static_cast<std::uint64_t>(info.st_size);
    if (size > tail) lseek(follower.fd.get(), static_cast<off_t>(size - tail), SEEK_SET);
    follower.inode = info.st_ino;
    send_(std::move(first));
    pump(request.request(), follower, !follow);
    if (!follow) return;
    followers_[request.request()] = std::move(follower);
    watch();
  }
  void pump(std::uint64_t request, Follower& follower, bool last) {
    std::string buffer(chunk_bytes, '\0');
    for (;;) {
      const ssize_t n = read(follower.fd.get(), buffer.data(), buffer.size());
      if (n <= 0) break;
      v1::LogData data;
      data.set_request(request);
      data.set_data(buffer.data(), static_cast<std::size_t>(n));
      send_(std::move(data));
    }
    if (!last) return;
    v1::LogData data;
    data.set_request(request);
    data.set_eof(true);
    send_(std::move(data));
  }

  void on_change() {
    struct stat info {};
    const bool there = stat(file_.c_str(), &info) == 0;
    for (auto& [request, follower] : followers_) {
      pump(request, follower, false);
      if (!there || info.st_ino == follower.inode) continue;
      follower.fd.reset(open(file_.c_str(), O_RDONLY | O_CLOEXEC));
      follower.inode = info.st_ino;
      if (follower.fd) pump(request, follower, false);
    }
  }

  void watch() {
    if (watch_.is_open()) return;
    unique_fd fd(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!fd || inotify_add_watch(fd.get(), file_.parent_path().c_str(), IN_MODIFY | IN_CREATE | IN_MOVED_TO) < 0) return;
    watch_.assign(fd.release());
    wait();
  }
  void wait() {
    watch_.async_read_some(asio::buffer(events_), [weak = weak_from_this()](const boost::system::error_code& error, std::size_t) {
      const auto self = weak.lock();
      if (!self || error) return;
      if (self->followers_.empty()) {
        self->watch_.close();
        return;
      }
      self->on_change();
      self->wait();
    });
  }

  std::filesystem::path file_;
  Send send_;
  asio::posix::stream_descriptor watch_;
  std::map<std::uint64_t, Follower> followers_;
  alignas(inotify_event) std::array<char, 4096> events_{};
};

LogReader::LogReader(asio::io_context& io, std::filesystem::path file, Send send)
    : impl_(std::make_shared<Impl>(io, std::move(file), std::move(send))) {}
LogReader::~LogReader() { impl_->stop_all(); }
void LogReader::handle(const v1::ReadLog& request) { impl_->handle(request); }
void LogReader::read_once(const v1::ReadLog& request, const Result<std::filesystem::path>& file) { impl_->read_once(request, file); }
void LogReader::stop_all() { impl_->stop_all(); }

}  // namespace flotilla::hub
