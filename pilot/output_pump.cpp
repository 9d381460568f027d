#include "pilot/output_pump.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "proto/base/log.hpp"

namespace flotilla::pilot {
namespace {
using namespace std::chrono_literals;
constexpr std::size_t read_bytes = 64u << 10;  // what a pipe holds
constexpr auto retry_interval = 1s;            // a full disk does not tell when it has room again
}  // namespace

OutputPump::OutputPump(boost::asio::io_context& io, std::uint32_t stream, std::string folder, std::function<void(v1::OutputData)> send)
    : io_(io), stream_(stream), send_(std::move(send)), source_(io), spool_(std::move(folder)), retry_(io) {}

void OutputPump::open(unique_fd fd) {
  fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  source_.assign(fd.release());
  wait();
}

void OutputPump::stop() {
  send_ = nullptr;
  retry_.cancel();
  boost::system::error_code ignored;
  source_.close(ignored);
}

void OutputPump::wait() {
  if (waiting_ || !source_.is_open() || !flow_.may_read() || !unkept_.empty()) return;
  waiting_ = true;
  source_.async_wait(boost::asio::posix::stream_descriptor::wait_read, [weak = weak_from_this()](const boost::system::error_code& error) {
    auto self = weak.lock();
    if (!self) return;
    self->waiting_ = false;
    if (error || !self->source_.is_open()) return;
    if (self->read_once() == Got::end) {
      self->source_.close();
      self->flow_.on_eof();
    }
    self->pump();
    self->wait();
  });
}

OutputPump::Got OutputPump::read_once() {
  char buffer[read_bytes];
  for (;;) {
    const ssize_t n = read(source_.native_handle(), buffer, sizeof buffer);
    if (n > 0) {
      take({buffer, static_cast<std::size_t>(n)});
      return Got::data;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Got::nothing;
    return Got::end;  // also EIO: a terminal that nobody has open any more
  }
}

void OutputPump::take(std::string_view data) {
  tail_.append(data.substr(data.size() > 2 * tail_bytes ? data.size() - 2 * tail_bytes : 0));
  if (tail_.size() > 2 * tail_bytes) tail_.erase(0, tail_.size() - tail_bytes);
  flow_.on_produced(data.size());
  if (unkept_.empty()) {
    auto kept = spool_.append(data);
    if (kept) return;
    if (!std::exchange(told_, true)) spdlog::warn("output waits until it can be kept or sent: {}", kept.error().message);
  }
  unkept_.append(data);
  keep_more();
}

void OutputPump::keep_more() {
  std::size_t kept = 0;
  while (kept < unkept_.size()) {
    const auto piece = std::string_view(unkept_).substr(kept, read_bytes);
    if (!spool_.append(piece)) break;
    kept += piece.size();
    spool_.drop_below(flow_.taken());  // it may have been sent and taken from here
  }
  unkept_.erase(0, kept);
  if (unkept_.empty()) {
    retry_.cancel();
    return;
  }
  retry_.expires_after(retry_interval);
  retry_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    auto self = weak.lock();
    if (error || !self) return;
    self->keep_more();
    self->wait();
  });
}

void OutputPump::finish() {
  if (source_.is_open()) {
    // The pipe's content at most: a process that was handed the pipe and is none of the job's must not hold us here.
    for (int i = 0; i < 64 && read_once() == Got::data; ++i) {}
    source_.close();
  }
  flow_.on_eof();
  pump();
}

void OutputPump::pump() {
  if (!send_) return;
  while (std::uint64_t count = flow_.sendable()) {
    const std::uint64_t spooled = spool_.end();
    if (flow_.sent() < spooled) count = std::min(count, spooled - flow_.sent());
    auto data =
        flow_.sent() < spooled ? spool_.read(flow_.sent(), count) : Result<std::string>(unkept_.substr(flow_.sent() - spooled, count));
    if (!data) {
      spdlog::error("{}", data.error().message);
      return;
    }
    v1::OutputData message;
    message.set_stream(stream_);
    message.set_offset(flow_.sent());
    message.set_oldest(flow_.oldest_goes_next());
    if (flow_.eof_goes_with(count)) {
      message.set_eof(true);
      flow_.on_eof_sent();
    }
    message.set_data(std::move(*data));
    flow_.on_sent(count);
    send_(std::move(message));
  }
  if (flow_.eof_due()) {
    v1::OutputData message;
    message.set_stream(stream_);
    message.set_offset(flow_.sent());
    message.set_eof(true);
    flow_.on_eof_sent();
    send_(std::move(message));
  }
}

void OutputPump::drop_taken() {
  spool_.drop_below(flow_.taken());
  if (!unkept_.empty()) keep_more();
}

void OutputPump::on_window(std::uint64_t offset, std::uint64_t credit, bool again) {
  flow_.on_window(offset, credit);
  if (again) flow_.on_sent_in_vain(offset);
  drop_taken();
  pump();
  wait();
}

void OutputPump::on_link_up(std::uint64_t known) {
  flow_.on_link_up(known);
  drop_taken();
  pump();
  wait();
}

void OutputPump::on_link_down() { flow_.on_link_down(); }

}  // namespace flotilla::pilot
