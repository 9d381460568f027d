// Answers ReadLog: the tail of a log file, and what is added while it is followed, over rotations too. On the io thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <functional>
#include <memory>

#include "flotilla/v1/link.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::hub {

class LogReader {
 public:
  using Send = std::function<void(v1::LogData)>;
  LogReader(boost::asio::io_context& io, std::filesystem::path file, Send send);
  ~LogReader();
  void handle(const v1::ReadLog& request);
  // Another file, that nobody writes to any more.
  void read_once(const v1::ReadLog& request, const Result<std::filesystem::path>& file);
  void stop_all();  // who asked is gone

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace flotilla::hub
