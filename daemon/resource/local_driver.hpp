// Starts pilots on this machine: `flotilla-agent pilot` with PilotStart on its stdin. The pilot lives in a session of its own
// and outlives the daemon.
#pragma once

#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>

#include "flotilla/v1/link.pb.h"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

class LocalDriver {
 public:
  using Report = std::function<void(v1::LaunchReport)>;
  LocalDriver(boost::asio::io_context& io, std::filesystem::path agent, Report report);
  ~LocalDriver();
  // Reports STARTED, or FAILED with stderr and exit code.
  void launch(const v1::PilotStart& start);
  // Ends a start under way, with all that it has started.
  void stop(std::uint64_t pilot);
  // Starts that have neither succeeded nor wholly ended.
  std::size_t under_way() const { return launches_.size(); }

 private:
  struct Launch;
  boost::asio::io_context& io_;
  std::filesystem::path agent_;
  Report report_;
  std::map<std::uint64_t, std::shared_ptr<Launch>> launches_;
  void take_progress(Launch& launch);
  void finish(const std::shared_ptr<Launch>& launch);
};

// A pidfd of the guard of a pilot that runs here; none when there is no such pilot.
unique_fd guard_of(int pilot_pid);
bool process_ended(const unique_fd& pidfd);

// Watches a process that is not a child: calls back once it is gone (at once when it already is).
class ProcessWatch {
 public:
  static std::shared_ptr<ProcessWatch> start(boost::asio::io_context& io, int pid, std::function<void()> gone);
  virtual ~ProcessWatch() = default;
};

}  // namespace flotilla::daemon
