// Answers the daemon's questions (passwords, second factors, host keys) on the user's terminal while a command runs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "client/cli/daemon_client.hpp"
#include "client/cli/terminal.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::cli {

class Prompter {
 public:
  // `resource` empty = questions of all. Without a terminal every question is refused, with a line on stderr that says so.
  // `on_question`: a question begins or ends; called on a thread of the prompter's.
  Prompter(DaemonClient& client, const std::string& resource, bool accept_new_host_keys, StatusLine& line,
           std::function<void()> on_question = {});
  ~Prompter();
  Prompter(const Prompter&) = delete;
  Prompter& operator=(const Prompter&) = delete;
  // A question stands on the terminal, or is about to: keys are its answer, nobody else may read them.
  bool asks() const { return asks_; }
  // Held by whoever reads the terminal; not given while a question stands there.
  std::unique_lock<std::mutex> take_keys() { return std::unique_lock(keys_, std::try_to_lock); }

 private:
  void read();
  void answer();
  void ask_one(const v1::Prompt& prompt);

  std::unique_ptr<PromptStream> stream_;
  StatusLine& line_;
  const std::function<void()> on_question_;
  std::atomic<bool> asks_{false};
  std::mutex keys_;
  std::mutex mutex_;  // guards the next three
  std::condition_variable changed_;
  std::deque<v1::Prompt> waiting_;
  std::uint64_t asked_ = 0;  // the question that stands on the terminal
  bool ended_ = false;
  unique_fd withdrawn_;  // eventfd: the question on the terminal is void
  std::thread reader_, answerer_;
};

}  // namespace flotilla::cli
