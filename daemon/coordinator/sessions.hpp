// Calls that stay open: a client at a job's output and input, a client at a log.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <string>

#include "daemon/coordinator/coordinator.hpp"

namespace flotilla::daemon {

// One Attach call. It reads the output from the store, so that a slow client holds up nobody.
struct Coordinator::AttachSession : std::enable_shared_from_this<AttachSession> {
  AttachSession(Coordinator& owner, TwoWayStreamPtr<v1::AttachInput, v1::AttachOutput> s) : c(owner), stream(std::move(s)) {}
  void begin();
  void on_message(v1::AttachInput message);
  void open(v1::AttachOpen open);
  void joined(JobId id);
  void on_job_changed();
  void pump();  // sends what there is, and the end when all is out
  void leave();
  void tell(const Job& job);
  void feed(std::string data, bool eof);
  void tell_input_begins();

  Coordinator& c;
  TwoWayStreamPtr<v1::AttachInput, v1::AttachOutput> stream;
  JobId id;
  std::uint64_t offsets[2] = {0, 0};
  bool opened = false, follow = true, output_only = false, cancel_with_client = false, over = false;
  bool detached = false;
  bool told = false;  // the first state
  v1::JobState last_state = v1::JOB_SUBMITTED;
  bool last_unreachable = false;
  // Where this client's input begins; while the flow is not known: beyond what the pilot has.
  std::uint64_t input_begins = 0;
  bool input_told = false;
};

// One ReadLogs call.
struct Coordinator::LogSession {
  OutStreamPtr<v1::LogChunk> stream;
  std::string host;
  std::string resource;        // whose hub or pilot was asked,
  NodeId node;                 // and which pilot's node, if it was one
  std::function<void()> stop;  // tells the other side
  // The daemon's own log:
  std::string path;
  std::uint64_t offset = 0;
  std::uint64_t inode = 0;
  std::unique_ptr<boost::asio::steady_timer> timer;
  void on_data(const v1::LogData& data);
};

}  // namespace flotilla::daemon
