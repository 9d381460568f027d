// A daemon as a pilot sees it, for tests: listens on a unix socket, starts the real flotilla-agent, keeps what comes.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "flotilla/v1/link.pb.h"
#include "proto/base/unique_fd.hpp"
#include "proto/link/link.hpp"

namespace flotilla::test {

using namespace std::chrono_literals;

struct StartOutcome {
  int code = -1;
  std::string out, err;
  pid_t guard = 0, pilot = 0;
};

struct SeenJob {
  int started = 0, connected = 0, ends = 0, given_back = 0, kept = 0;
  v1::AttemptRunning running;
  v1::AttemptEnded end;
  std::string hand_over_socket;
  std::string out, err;
  bool out_eof = false, err_eof = false;
  bool complete() const { return ends > 0 && out.size() >= end.stdout_bytes() && err.size() >= end.stderr_bytes(); }
};

class FakeDaemon {
 public:
  FakeDaemon();
  ~FakeDaemon();  // ends pilot and guard by their pids, checks nothing

  static inline std::function<void(v1::PilotStart&)> prepare;  // applied by the next constructor
  v1::PilotStart start;                                        // changed before launch()
  StartOutcome launch();                                       // runs the loop until the starter has ended
  bool run_until(const std::function<bool()>& done, std::chrono::milliseconds limit = 10s);
  void run_for(std::chrono::milliseconds time);

  void send(v1::Frame frame);
  // The next free job id.
  std::uint64_t submit(v1::JobSpec spec, const std::function<void(v1::StartAttempt&)>& change = {});
  std::uint64_t submit_shell(const std::string& script, const std::function<void(v1::JobSpec&)>& change = {});
  SeenJob& job(std::uint64_t id) { return jobs[id]; }
  bool wait_end(std::uint64_t id, std::chrono::milliseconds limit = 10s);
  bool wait_running(std::uint64_t id, std::chrono::milliseconds limit = 10s);
  void cancel(std::uint64_t id, std::int64_t grace_ms = 1000);
  void forget(std::uint64_t id);
  void cut_link();  // aborts the present one; the pilot dials again
  void stop_listening();
  void listen();
  bool linked() const { return welcomed; }

  std::filesystem::path dir;
  boost::asio::io_context io;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{io.get_executor()};
  StartOutcome outcome;
  int hellos = 0, endings = 0, goodbyes = 0;
  bool welcomed = false;
  v1::Hello hello;  // the last
  v1::PilotEnding ending;
  v1::Welcome welcome;  // changed before a pilot comes
  std::map<std::uint64_t, SeenJob> jobs;
  std::map<std::uint64_t, std::uint64_t> inputs_taken;
  std::vector<v1::NodeStatus> statuses;
  std::vector<v1::NeedBlob> needs;
  std::uint64_t blob_taken = 0;  // told last
  std::vector<v1::LogData> logs;
  std::vector<v1::ChannelRefused> refusals;
  std::function<void(const v1::NeedBlob&)> on_need;
  std::function<void(const v1::AttemptEnded&)> on_end;
  std::function<void(const v1::ChannelAck&)> on_channel_ack;
  std::function<void(const v1::ChannelEnd&)> on_channel_end;
  std::function<void(const v1::ChannelData&)> on_channel_data;
  bool take_output = true;  // answers OutputData with a window
  bool auto_forget = false;

 private:
  void accept_one();
  void on_frame(const link::LinkPtr& link, v1::Frame frame);

  unique_fd listener_;
  boost::asio::posix::stream_descriptor acceptor_;
  std::unique_ptr<link::Server> server_;
  link::LinkPtr link_;
  std::uint64_t next_job_ = 1;
};

bool process_exists(pid_t pid);
// Processes (no zombies) whose environment names this instance.
std::vector<pid_t> processes_of(const std::string& instance);
std::string read_whole(const std::filesystem::path& file);

}  // namespace flotilla::test
