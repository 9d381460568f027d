// What the io thread and a connection's own thread have in common: tasks one way, events the other way, questions, the end.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

using Deadline = std::chrono::steady_clock::time_point;
inline Deadline after(std::chrono::milliseconds time) { return std::chrono::steady_clock::now() + time; }
// For poll(): milliseconds, rounded up, 0 when it is over.
int milliseconds_until(Deadline deadline);

Error stopped_error();
Error timeout_error(std::string message, std::string hint = {});

class ThreadControl : public std::enable_shared_from_this<ThreadControl> {
 public:
  explicit ThreadControl(boost::asio::io_context& io);

  // ---- io thread
  // Runs in the connection's thread, when that waits next. Who comes too late is dropped without a word: what a task must tell
  // in any case, its destructor tells.
  void post(std::function<void()> task);
  // From any thread: the thread looks again at what it waits for.
  void wake();
  // The thread is to end; no event runs after this returns.
  void stop();
  // A socket that the thread may be blocked in is shut down by stop().
  void set_socket(int fd);
  // The local address of that socket, if this machine has it no longer; else empty. io thread.
  std::string vanished_address() const;

  // ---- the connection's thread
  bool stopping() const;
  int wake_fd() const { return wake_.get(); }  // readable: run_tasks() or the end
  void run_tasks();
  void end_tasks();  // the thread waits no more
  // Runs `event` on the io thread, unless stop() came before.
  void to_io(std::function<void()> event);
  // Waits for fd, or a task (which is run), or the end. Returns the revents, 0 when the time is over, or an error.
  Result<short> wait(int fd, short events, Deadline deadline);
  // Around a call that nothing can interrupt (a name look-up). Returns false when the end has come already: do not start.
  bool begin_uninterruptible();
  void end_uninterruptible();
  // io thread, after stop(): the thread may take long to end, it must be left to itself.
  bool uninterruptible() const;
  // Runs `start` on the io thread and waits for what it passes to its argument.
  template <class T>
  Result<T> await(std::function<void(std::function<void(Result<T>)>)> start, Deadline deadline);

 private:
  boost::asio::io_context& io_;
  unique_fd wake_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::function<void()>> tasks_;
  bool stopping_ = false, uninterruptible_ = false, tasks_ended_ = false;
  unique_fd socket_;
};

template <class T>
Result<T> ThreadControl::await(std::function<void(std::function<void(Result<T>)>)> start, Deadline deadline) {
  struct Shared {
    std::optional<Result<T>> result;
    bool given_up = false;
  };
  auto shared = std::make_shared<Shared>();
  auto self = shared_from_this();
  to_io([self, shared, start = std::move(start)] {
    start([self, shared](Result<T> result) {
      std::lock_guard lock(self->mutex_);
      if (!shared->given_up && !shared->result) shared->result.emplace(std::move(result));
      self->changed_.notify_all();
    });
  });
  std::unique_lock lock(mutex_);
  const bool in_time = changed_.wait_until(lock, deadline, [&] { return stopping_ || shared->result; });
  shared->given_up = true;
  if (shared->result) return std::move(*shared->result);
  return fail(in_time ? stopped_error() : timeout_error("no answer came in time"));
}

}  // namespace flotilla::daemon
