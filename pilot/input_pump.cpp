#include "pilot/input_pump.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace flotilla::pilot {
namespace {
constexpr std::uint64_t report_interval_bytes = 256u << 10;
}

void InputPump::add_own(std::string data) {
  if (data.empty()) return;
  own_ += data.size();
  queue_.push_back(std::move(data));
}

void InputPump::on_link_up() {
  if (taken_ > 0 && on_taken) on_taken(reported_ = taken_);
}

void InputPump::add(std::string data) {
  if (data.empty()) return;
  given_ += data.size();
  if (stopped_ || eof_) {
    taken_ = given_;
    report();
    return;
  }
  queue_.push_back(std::move(data));
  pump();
}

void InputPump::add_at(std::uint64_t offset, std::string data, bool eof) {
  if (offset > given_) return;
  data.erase(0, std::min<std::uint64_t>(given_ - offset, data.size()));
  add(std::move(data));
  if (!eof || eof_received_) return;
  eof_received_ = true;
  add_eof();
}

void InputPump::report() {
  if (taken_ == reported_ || (!queue_.empty() && taken_ - reported_ < report_interval_bytes)) return;
  reported_ = taken_;
  if (on_taken) on_taken(taken_);
}

void InputPump::add_eof() {
  if (stopped_ || eof_) return;
  if (kind_ == Kind::terminal) {
    queue_.push_back("\x04");
    pump();
    return;
  }
  eof_ = true;
  pump();
}

void InputPump::open(unique_fd fd, Kind kind) {
  kind_ = kind;
  if (kind == Kind::terminal && eof_) {  // it came before the terminal was there
    eof_ = false;
    queue_.push_back("\x04");
  }
  fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  sink_.assign(fd.release());
  pump();
}

void InputPump::stop() {
  stopped_ = true;
  queue_.clear();
  taken_ = given_;
  report();
  boost::system::error_code ignored;
  sink_.close(ignored);
}

void InputPump::pump() {
  if (waiting_ || !sink_.is_open()) return;
  while (!queue_.empty()) {
    const auto& front = queue_.front();
    const ssize_t n = write(sink_.native_handle(), front.data() + written_, front.size() - written_);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      waiting_ = true;
      report();
      sink_.async_wait(boost::asio::posix::stream_descriptor::wait_write,
                       [weak = weak_from_this()](const boost::system::error_code& error) {
                         auto self = weak.lock();
                         if (!self) return;
                         self->waiting_ = false;
                         if (!error) self->pump();
                       });
      return;
    }
    if (n < 0) {  // nobody reads any more
      stop();
      return;
    }
    written_ += static_cast<std::size_t>(n);
    const std::uint64_t own = std::min<std::uint64_t>(own_, static_cast<std::uint64_t>(n));
    own_ -= own;
    taken_ = std::min(given_, taken_ + static_cast<std::uint64_t>(n) - own);  // an end-of-file character is not counted
    if (written_ == front.size()) {
      queue_.pop_front();
      written_ = 0;
    }
  }
  report();
  if (eof_) stop();
}

}  // namespace flotilla::pilot
