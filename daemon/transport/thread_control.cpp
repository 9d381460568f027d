#include "daemon/transport/thread_control.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace flotilla::daemon {

int milliseconds_until(Deadline deadline) {
  const auto left = deadline - std::chrono::steady_clock::now();
  if (left <= left.zero()) return 0;
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count() + 1;
  return ms > 3'600'000 ? 3'600'000 : static_cast<int>(ms);
}

Error stopped_error() { return {Code::canceled, "the connection was ended from here", {}, Retry::no, {}}; }
Error timeout_error(std::string message, std::string hint) { return {Code::timeout, std::move(message), std::move(hint), Retry::yes, {}}; }

ThreadControl::ThreadControl(boost::asio::io_context& io) : io_(io), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void ThreadControl::post(std::function<void()> task) {
  std::lock_guard lock(mutex_);
  if (stopping_ || tasks_ended_) return;
  tasks_.push_back(std::move(task));
  wake();
}

void ThreadControl::wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] auto written = ::write(wake_.get(), &one, sizeof one);
}

void ThreadControl::stop() {
  end_tasks();
  std::lock_guard lock(mutex_);
  stopping_ = true;
  if (socket_) ::shutdown(socket_.get(), SHUT_RDWR);
  socket_.reset();
  wake();
  changed_.notify_all();
}

void ThreadControl::set_socket(int fd) {
  std::lock_guard lock(mutex_);
  socket_.reset(fd >= 0 ? ::fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1);
  if (stopping_ && socket_) ::shutdown(socket_.get(), SHUT_RDWR);
}

std::string ThreadControl::vanished_address() const {
  sockaddr_storage own{};
  {
    std::lock_guard lock(mutex_);
    socklen_t size = sizeof own;
    if (!socket_ || ::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&own), &size) != 0) return {};
  }
  const auto address_of = [](const sockaddr* address) -> std::string {
    char text[INET6_ADDRSTRLEN] = "";
    if (address && address->sa_family == AF_INET)
      inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof text);
    if (address && address->sa_family == AF_INET6)
      inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text, sizeof text);
    return text;
  };
  const auto mine = address_of(reinterpret_cast<const sockaddr*>(&own));
  if (mine.empty() || mine.starts_with("127.") || mine == "::1") return {};  // all of 127.0.0.0/8 is there without being listed
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return {};
  bool there = false;
  for (const ifaddrs* each = list; each && !there; each = each->ifa_next) there = address_of(each->ifa_addr) == mine;
  ::freeifaddrs(list);
  return there ? "" : mine;
}

bool ThreadControl::stopping() const {
  std::lock_guard lock(mutex_);
  return stopping_;
}

bool ThreadControl::begin_uninterruptible() {
  std::lock_guard lock(mutex_);
  if (stopping_) return false;
  return uninterruptible_ = true;
}
void ThreadControl::end_uninterruptible() {
  std::lock_guard lock(mutex_);
  uninterruptible_ = false;
}
bool ThreadControl::uninterruptible() const {
  std::lock_guard lock(mutex_);
  return uninterruptible_;
}

void ThreadControl::run_tasks() {
  std::vector<std::function<void()>> tasks;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;  // the eventfd stays readable: whoever waits sees the end
    std::uint64_t count;
    [[maybe_unused]] auto got = ::read(wake_.get(), &count, sizeof count);
    tasks.swap(tasks_);
  }
  for (auto& task : tasks) task();
}

void ThreadControl::end_tasks() {
  std::vector<std::function<void()>> dropped;  // outside of the lock, and they may own us
  std::lock_guard lock(mutex_);
  tasks_ended_ = true;
  tasks_.swap(dropped);
}

void ThreadControl::to_io(std::function<void()> event) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  boost::asio::post(io_, [self = shared_from_this(), event = std::move(event)] {
    // stop() runs on this thread too: what was posted before it must not run after it.
    if (!self->stopping()) event();
  });
}

Result<short> ThreadControl::wait(int fd, short events, Deadline deadline) {
  for (;;) {
    if (stopping()) return fail(stopped_error());
    pollfd polled[2]{{wake_.get(), POLLIN, 0}, {fd, events, 0}};
    const int ready = ::poll(polled, fd >= 0 ? 2 : 1, milliseconds_until(deadline));
    if (ready < 0 && errno != EINTR) return fail(errno_error(Code::internal, "wait"));
    if (ready == 0) return short{0};
    if (ready < 0) continue;
    if (polled[0].revents) run_tasks();
    if (fd >= 0 && polled[1].revents) return polled[1].revents;
  }
}

}  // namespace flotilla::daemon
