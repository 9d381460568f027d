// One attempt on this node: its folder and files, its process or worker, its streams, until the daemon says that it may be
// forgotten. Decisions are in the core; this makes them happen. On the io thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "flotilla/v1/link.pb.h"
#include "pilot/core/attempt_table.hpp"
#include "pilot/input_pump.hpp"
#include "pilot/output_pump.hpp"
#include "pilot/process/blob_store.hpp"
#include "pilot/process/environment.hpp"
#include "pilot/process/processes.hpp"
#include "pilot/worker/hand_over.hpp"
#include "pilot/worker/worker_gate.hpp"

namespace flotilla::pilot {

class RemoteChannels;

// A job's folder; the last that uses it removes it.
class JobFolder {
 public:
  enum class Keep { remove, stay };
  JobFolder(std::filesystem::path path, Keep keep, std::function<void(std::filesystem::path)> remove)
      : path_(std::move(path)), keep_(keep), remove_(std::move(remove)) {}
  ~JobFolder() {
    if (keep_ == Keep::remove) remove_(path_);
  }
  JobFolder(const JobFolder&) = delete;
  JobFolder& operator=(const JobFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  Keep keep_;
  std::function<void(std::filesystem::path)> remove_;
};

// What all jobs of a pilot share.
struct JobServices {
  boost::asio::io_context& io;
  std::string host;
  bool on_client_host = false;  // the client's folders are here
  bool keep_folders = false;    // of all jobs (debug)
  std::filesystem::path home, jobs_dir, spool_dir;
  std::string hand_over_socket;
  Environment environment;  // cleaned, with the setup's and the resource's variables and the pilot's FLOTILLA_*
  Processes& processes;
  BlobStore& blobs;
  HandOver& hand_over;
  RemoteChannels& channels;
  std::function<void(v1::Frame)> send;                       // dropped while there is no link
  std::function<void(std::function<void()>)> in_background;  // what blocks; one after the other
  std::function<void(std::filesystem::path)> remove_folder;  // in the background
  std::function<void()> outlive_pilot;                       // a folder was made that stays when the pilot is gone
  std::function<void(Attempt, const std::string& sha256)> need_blob;
  std::function<const class Job*(Attempt)> find;
  // The table follows: started, exited, ended. After on_ended the pilot reports the end.
  std::function<void(Attempt)> on_started, on_exited;
  std::function<void(Attempt, Ending)> on_ended;
  std::function<void(Attempt, EndOrder)> end_attempt;  // as if it had been canceled, for the job's own reasons
};

class Job : public std::enable_shared_from_this<Job> {
 public:
  Job(JobServices& services, v1::StartAttempt start);
  ~Job();

  // It has its slots: folder, files, process. Failures end it through on_ended.
  void prepare();
  void on_blob(const std::string& sha256, const std::optional<Error>& error);
  // The table noted the order: the process is ended (TERM, grace, KILL), or the preparation is stopped.
  void carry_out(const EndOrder& order);

  // It is being ended: no more grace.
  void hasten();

  void signal(int number);
  void add_input(std::uint64_t offset, std::string data, bool eof);
  void resize(const v1::WindowSize& window);
  void on_window(const v1::OutputWindow& window);
  void on_link_up(const v1::AttemptReport* known);
  void on_link_down();

  void fill(v1::AttemptReport& report) const;
  std::uint64_t stdout_bytes() const { return out_ ? out_->produced() : 0; }
  std::uint64_t stderr_bytes() const { return err_ ? err_->produced() : 0; }
  const JobFacts& facts() const { return facts_; }
  const v1::AttemptId& wire_id() const { return start_.id(); }
  bool is_worker() const { return start_.spec().has_worker(); }
  std::optional<ChannelCounts> channel_counts() const;
  std::shared_ptr<JobFolder> folder() const { return folder_; }
  const Environment& environment() const { return environment_; }
  // How it ended, with the last of stderr, complete after on_ended.
  void complete(v1::ExitReason& reason) const;

 private:
  enum class Step { created, preparing, running, leaving, over };

  Status choose_folder();
  void place_files();
  void start();
  Status start_command();
  Status start_worker();
  void limit_start();
  struct Streams;
  Status open_streams(Streams& streams);
  Status open_terminal(Streams& streams);
  void make_environment();
  void follow_process(pid_t pid, Moment started);
  void on_connected(unique_fd socket);
  void on_client_gone(const std::string& cause);
  void on_exit(ProcessEnd end);
  void on_gone();
  void finish(Ending ending);
  void fail_start(const Error& error, v1::ExitKind kind = v1::START_FAILED);
  void kill_after(std::chrono::milliseconds grace);
  std::string stderr_tail() const;

  JobServices& services_;
  v1::StartAttempt start_;
  Attempt id_;
  JobFacts facts_;
  Step step_ = Step::created;
  std::optional<EndOrder> order_;
  std::shared_ptr<JobFolder> folder_;
  Environment environment_;
  std::vector<std::string> missing_blobs_;
  pid_t pid_ = 0;
  ProcessEnd end_;
  std::shared_ptr<OutputPump> out_, err_;
  std::shared_ptr<InputPump> in_;
  unique_fd terminal_;                 // the master's end
  std::filesystem::path stderr_path_;  // where stderr went to a file
  std::unique_ptr<WorkerGate> gate_;
  bool connected_ = false, linked_ = false, client_gone_ = false;
  Timer limit_, kill_;
  std::string tail_;
};

}  // namespace flotilla::pilot
