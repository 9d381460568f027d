// A program of this machine (the system's ssh, a ProxyCommand) with its stdin and stdout on one socket.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

class Child {
 public:
  enum class Errors { dropped, piped };
  // By posix_spawn, in a session of its own (no terminal to ask on). `env` is added to ours ("NAME=value").
  static Result<std::unique_ptr<Child>> start(const std::vector<std::string>& argv, const std::vector<std::string>& env, Errors errors);
  ~Child();  // kills it if it runs, and reaps it
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  int stdio() const { return stdio_.get(); }
  unique_fd take_stdio() { return std::move(stdio_); }
  int errors() const { return errors_.get(); }  // pipe, non-blocking; -1 when dropped
  pid_t pid() const { return pid_; }
  int exited_fd() const { return pidfd_.get(); }  // readable when it has ended
  // The wait status, if it has ended.
  std::optional<int> ended();
  void close_stdio() { stdio_.reset(); }

 private:
  Child() = default;
  pid_t pid_ = -1;
  unique_fd stdio_, errors_, pidfd_;
  std::optional<int> status_;
};

// "exit code 3", "signal 9".
std::string describe_status(int wait_status);

}  // namespace flotilla::daemon
