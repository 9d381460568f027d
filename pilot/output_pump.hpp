// One output stream of a job: from its pipe or terminal into the spool, from the spool to the daemon under its credit.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <string>

#include "flotilla/v1/link.pb.h"
#include "pilot/core/output_flow.hpp"
#include "pilot/process/spool.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {

constexpr std::size_t tail_bytes = 4096;  // of stderr, for the reason of an end

class OutputPump : public std::enable_shared_from_this<OutputPump> {
 public:
  // `send` is given a frame without the attempt's id. `folder`: where a spool file goes.
  OutputPump(boost::asio::io_context& io, std::uint32_t stream, std::string folder, std::function<void(v1::OutputData)> send);

  void open(unique_fd fd);  // the reading end; made non-blocking here
  // Reads what is there without waiting, then closes: nobody who matters writes any more.
  void finish();
  void on_window(std::uint64_t offset, std::uint64_t credit, bool again);
  void on_link_up(std::uint64_t known);
  void on_link_down();
  void stop();

  std::uint64_t produced() const { return flow_.produced(); }
  const std::string& tail() const { return tail_; }  // at most 2 * tail_bytes

 private:
  enum class Got { data, nothing, end };
  Got read_once();
  void take(std::string_view data);
  void wait();
  void pump();
  void keep_more();
  void drop_taken();

  boost::asio::io_context& io_;
  std::uint32_t stream_;
  std::function<void(v1::OutputData)> send_;
  boost::asio::posix::stream_descriptor source_;
  bool waiting_ = false, told_ = false;
  Spool spool_;
  OutputFlow flow_;
  std::string unkept_;  // produced, and behind what the spool holds: it had no room; nothing more is read until it has
  boost::asio::steady_timer retry_;
  std::string tail_;
};

}  // namespace flotilla::pilot
