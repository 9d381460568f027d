// Brings a worker's output to where the script wants it, and hears from its first line where AMUSE is on that machine.
#pragma once

#include <condition_variable>
#include <memory>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>

#include "client/amuse/core/home_line.hpp"
#include "client/amuse/outputs.hpp"
#include "flotilla/client.hpp"

namespace flotilla::amuse {

class OutputFollower {
 public:
  // When `over` is requested no more output comes.
  OutputFollower(Job job, std::shared_ptr<Output> standard_output, std::shared_ptr<Output> standard_error, std::stop_token over);
  OutputFollower(const OutputFollower&) = delete;
  OutputFollower& operator=(const OutputFollower&) = delete;
  ~OutputFollower();  // when all of a job's output has come, or does not come any more: it must be ending
  // AMUSE's root directory on the worker's machine; empty when the output ended without, or that line does not come.
  std::string home();

 private:
  void follow();

  Job job_;
  std::shared_ptr<Output> out_, err_;
  std::mutex mutex_;
  std::condition_variable changed_;
  HomeLine home_;
  bool over_ = false;
  std::stop_source stop_;
  std::optional<std::stop_callback<std::function<void()>>> stops_too_;
  std::thread thread_;
};

}  // namespace flotilla::amuse
