// What a job reads: what came with it, then what comes over the link, into its pipe or terminal as it takes it.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {

class InputPump : public std::enable_shared_from_this<InputPump> {
 public:
  enum class Kind { pipe, terminal };
  explicit InputPump(boost::asio::io_context& io) : sink_(io) {}

  void add_own(std::string data);  // came with the job: not counted. Before all else
  void add(std::string data);      // also before open()
  // From the link. What is here already is dropped, and what lies beyond a gap: it comes again.
  void add_at(std::uint64_t offset, std::string data, bool eof);
  void add_eof();  // a terminal gets its end-of-file character
  std::uint64_t received() const { return given_; }
  bool eof_received() const { return eof_received_; }
  void open(unique_fd fd, Kind kind);
  void stop();
  void on_link_up();  // what was told on the last link may be lost
  // How much of the input has left this process (or never will: nobody reads): each 256 KiB, and when nothing is held.
  std::function<void(std::uint64_t bytes)> on_taken;

 private:
  void pump();
  void report();

  boost::asio::posix::stream_descriptor sink_;
  Kind kind_ = Kind::pipe;
  std::deque<std::string> queue_;
  std::size_t written_ = 0;                             // of the front
  std::uint64_t own_ = 0;                               // not written yet
  std::uint64_t given_ = 0, taken_ = 0, reported_ = 0;  // of all input
  bool eof_ = false, eof_received_ = false, waiting_ = false, stopped_ = false;
};

}  // namespace flotilla::pilot
