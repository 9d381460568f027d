// The web page's server: HTTP on 127.0.0.1 only, asynchronous, all on the one thread of the io_context that it is
// given (every call here must be made on that thread). It reads; nothing can be changed through it.
//
//   /                                     the page (web/), with a token in the link, a cookie afterwards
//   GET /api/v1/info                      v1::DaemonInfo
//   GET /api/v1/snapshot                  {"id", "info", "omitted_jobs", "changes": [v1::Change, ...]}
//   GET /api/v1/events                    server-sent events, see README.md
//   GET /api/v1/jobs/ID                   v1::Job
//   GET /api/v1/jobs/ID/output?stream=1&tail=N   the last N bytes of what it wrote, as text
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "flotilla/v1/client.pb.h"
#include "proto/base/result.hpp"

namespace flotilla {

// What the server shows. Called on the io_context's thread only; must not block.
struct MonitorSource {
  virtual ~MonitorSource() = default;
  virtual v1::DaemonInfo info() = 0;
  // The present state, one change for each resource, pilot and job.
  virtual void for_each(const std::function<void(const v1::Change&)>& tell) = 0;
  virtual std::optional<v1::Job> job(std::uint64_t id) = 0;
  // The last `tail_bytes` of stream 1 (stdout) or 2 (stderr), as far as the daemon has it.
  virtual Result<std::string> output(std::uint64_t id, std::uint32_t stream, std::uint64_t tail_bytes) = 0;
};

struct MonitorLimits {
  std::size_t connections = 64;        // a browser opens up to 6 for one page
  std::size_t watchers = 16;           // of them event streams
  std::size_t snapshot_jobs = 20'000;  // the newest; the page lists no more with comfort
  std::size_t log_entries = 8'192;     // changes that a watcher may lag behind before it is reset
  std::size_t log_bytes = 8u << 20;
  std::chrono::milliseconds flush = std::chrono::milliseconds(100);  // least time between two batches of a watcher
  std::chrono::milliseconds heartbeat = std::chrono::seconds(15);    // also: a write that takes longer ends the stream
  std::chrono::milliseconds request = std::chrono::seconds(30);      // for a request to arrive, and for its answer to leave
  std::chrono::milliseconds unwatched = std::chrono::seconds(60);    // after the last watcher changes are no longer kept
};

struct MonitorOptions {
  std::uint16_t port = 0;       // 0 = any
  std::uint16_t last_port = 0;  // with port 0, tried first: pages that are open find a daemon that was started again
  std::string token;            // empty = a fresh random one
  bool admit_user = false;      // this user's own processes on this machine need no token
  MonitorLimits limits;
};

class Monitor {
 public:
  // `source` must live until end().
  Monitor(boost::asio::io_context& io, MonitorSource& source, MonitorOptions options);
  ~Monitor();  // ends
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  // Listens. On failure nothing listens; the error names the port.
  Status start();
  std::uint16_t port() const;  // 0 before start
  std::string url() const;     // with the token; empty before start
  // Whether changed() would be told to anybody: no page has been open of late when not, and the trouble of building a
  // v1::Change can be saved.
  bool wanted();
  // Something is new: told to every page within `flush`. Does nothing when nobody watches.
  void changed(const v1::Change& change);
  // Stops listening and closes every connection; nothing of the source is touched afterwards.
  void end();

 private:
  friend class MonitorSession;
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace flotilla
