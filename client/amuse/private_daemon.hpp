// A daemon of this script's own: nobody else's pilots, jobs or page, and nothing of it is left afterwards.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "flotilla/client.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::amuse {

struct PrivateDaemonOptions {
  std::string program;  // flotilla
  int web_port = 0;     // 0 = any free one
  bool debug = false;   // its files are kept
};

// One at a time. Its methods may be called from any thread.
class PrivateDaemon {
 public:
  // Sets FLOTILLA_STATE_DIR and its like in this process, and starts the daemon. Throws FlotillaError.
  explicit PrivateDaemon(const PrivateDaemonOptions& options);
  PrivateDaemon(const PrivateDaemon&) = delete;
  PrivateDaemon& operator=(const PrivateDaemon&) = delete;
  ~PrivateDaemon();  // end()
  // A handle for calls that are made now: a daemon that died is started again, and then has another.
  Daemon daemon() const;
  // What `act` gives for the daemon. Called once more when the daemon died under it: what it asked for may then have been done twice.
  template <class Act>
  auto call(Act act) const {
    const auto [daemon, start] = current();
    try {
      return act(daemon);
    } catch (const UnavailableError&) {
      if (!back_since(start)) throw;
    }
    return act(current().first);
  }
  const std::filesystem::path& folder() const { return folder_; }
  // Every job, pilot and hub, the daemon, and its files. Once.
  void end();

 private:
  std::pair<Daemon, unsigned> current() const;
  bool back_since(unsigned start) const;
  void start();
  void keep_alive();

  std::string program_;
  std::filesystem::path folder_;
  bool keep_;
  unique_fd guard_;    // a guard waits at the other end: without a last word it does what end() does
  unique_fd ending_;   // readable when the daemon's end is no accident any more
  unique_fd process_;  // of the daemon; only of the thread that keeps it alive, once that is there

  mutable std::mutex mutex_;  // what follows
  mutable std::condition_variable changed_;
  std::optional<Daemon> daemon_;
  unsigned starts_ = 0;
  bool running_ = false;  // as far as is known
  bool over_ = false;     // it is not started again
  std::thread keeper_;    // not under the mutex
};

// The guard's program: waits on its stdin, and ends the daemon of `folder` when the script's process has died without a word.
// `keep`: its files stay.
int run_guard(const std::filesystem::path& folder, bool keep);

}  // namespace flotilla::amuse
