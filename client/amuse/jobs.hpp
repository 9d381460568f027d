// Script and function jobs: submitted, followed, and what they leave brought here.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>

#include "client/amuse/core/job_request.hpp"
#include "client/amuse/outputs.hpp"
#include "flotilla/client.hpp"

namespace flotilla::amuse {

// One job, from its submission until all that it sends is here.
class FollowedJob {
 public:
  // `folder`: where the files of its output folder go; empty = none come.
  FollowedJob(Job job, std::shared_ptr<Output> standard_output, std::shared_ptr<Output> standard_error, std::filesystem::path folder);
  FollowedJob(const FollowedJob&) = delete;
  FollowedJob& operator=(const FollowedJob&) = delete;
  ~FollowedJob();  // when all has come, or does not come any more: the job must be ending
  std::string status() const;
  void wait(const std::function<bool()>& given_up) const;
  void cancel();
  // A function's value; FlotillaError with the cause where there is none. Only after its end.
  std::string value() const;
  // Why it failed; empty where it did not. Only after its end.
  std::string trouble() const;

 private:
  class Receiver;
  void follow(const std::shared_ptr<Output>& out, const std::shared_ptr<Output>& err, const std::filesystem::path& folder);

  Job job_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool over_ = false;
  std::optional<std::string> value_;
  std::string trouble_;
  std::stop_source stop_;
  std::thread thread_;
};

// By the script's ids. Called by the thread of the control connection alone; what goes wrong is a FlotillaError.
class Jobs {
 public:
  int submit(const Daemon& daemon, const ScriptRow& row, const std::string& root, bool debug, Outputs& outputs);
  int submit(const Daemon& daemon, const FunctionRow& row, const std::string& root, bool debug, Outputs& outputs);
  const ScriptRow& script(int id) const;
  const FunctionRow& function(int id) const;
  std::string script_status(int id) const;
  std::string function_status(int id) const;
  // These wait; `given_up`, asked now and then, ends that with an error.
  using GivenUp = std::function<bool()>;
  std::string function_value(int id, const GivenUp& given_up) const;
  void wait_for_scripts(const GivenUp& given_up) const;
  void cancel_script(int id);  // and forgets it
  void cancel_function(int id);
  void cancel_all();  // in a daemon that stays; what cannot be is told on stderr
  void clear();       // after cancel_all() or the daemon's end

 private:
  template <class Row>
  struct Entry {
    Row row;
    std::unique_ptr<FollowedJob> job;
  };
  std::map<int, Entry<ScriptRow>> scripts_;
  std::map<int, Entry<FunctionRow>> functions_;
  int count_ = 0;
};

}  // namespace flotilla::amuse
