// A daemon of this script's own: nobody else's pilots, jobs or page, and nothing of it is left afterwards.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "flotilla/client.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::amuse {

struct PrivateDaemonOptions {
  std::string program;  // flotilla
  int web_port = 0;     // 0 = any free one
  bool debug = false;   // its files are kept
};

class PrivateDaemon {
 public:
  // Sets FLOTILLA_STATE_DIR and its like in this process, and starts the daemon. Throws FlotillaError.
  explicit PrivateDaemon(const PrivateDaemonOptions& options);
  PrivateDaemon(const PrivateDaemon&) = delete;
  PrivateDaemon& operator=(const PrivateDaemon&) = delete;
  ~PrivateDaemon();  // end()
  const Daemon& daemon() const { return *daemon_; }
  const std::filesystem::path& folder() const { return folder_; }
  // Every job, pilot and hub, the daemon, and its files. Once.
  void end();

 private:
  std::string program_;
  std::filesystem::path folder_;
  bool keep_;
  std::unique_ptr<Daemon> daemon_;
  unique_fd guard_;  // a guard waits at the other end: without a last word it does what end() does
};

// The guard's program: waits on its stdin, and ends the daemon of `folder` when the script's process has died without a word.
int run_guard(const std::filesystem::path& folder);

}  // namespace flotilla::amuse
