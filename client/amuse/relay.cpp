#include "client/amuse/relay.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <string_view>

namespace flotilla::amuse {
namespace {

// Bytes, 0 at the end (a connection that broke has ended).
std::size_t read_some(int fd, std::string& to) {
  for (;;) {
    const ssize_t count = ::recv(fd, to.data(), to.size(), 0);
    if (count >= 0) return static_cast<std::size_t>(count);
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return 0;
    pollfd wait{fd, POLLIN, 0};
    ::poll(&wait, 1, -1);
  }
}

}  // namespace

// False: `to` is gone, or the other side is while `to` does not take anything (end_ says which).
bool Relay::write_all(int to, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t count = ::send(to, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) {
      data += count;
      size -= static_cast<std::size_t>(count);
      continue;
    }
    if (errno == EINTR) continue;
    end_ = to == worker_ ? RelayEnd::worker_left : RelayEnd::client_left;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
    pollfd waits[3] = {{to, POLLOUT, 0}, {to == worker_ ? client_ : -1, POLLRDHUP, 0}, {wake_, POLLIN, 0}};
    ::poll(waits, 3, -1);
    if (waits[2].revents) {
      end_ = RelayEnd::told;
      return false;
    }
    if (waits[1].revents & (POLLRDHUP | POLLHUP | POLLERR)) {  // nobody waits for the answer any more
      end_ = RelayEnd::client_left;
      return false;
    }
  }
  return true;
}

bool Relay::from_client() {
  const auto count = read_some(client_, buffer_);
  if (count == 0) {
    end_ = RelayEnd::client_left;
    return false;
  }
  pending_ = true;
  for (std::string_view rest(buffer_.data(), count); !rest.empty();) {
    rest.remove_prefix(asked_.take(rest));
    if (asked_.between()) ++counters_[0];
  }
  counters_[1] += count;
  return write_all(worker_, buffer_.data(), count);
}

bool Relay::from_worker() {
  const auto count = read_some(worker_, buffer_);
  if (count == 0) {
    end_ = RelayEnd::worker_left;
    return false;
  }
  for (std::string_view rest(buffer_.data(), count); !rest.empty();) {
    rest.remove_prefix(answered_.take(rest));
    if (answered_.between()) pending_ = !asked_.between();
  }
  counters_[2] += count;
  if (!write_all(client_, buffer_.data(), count)) return false;
  if (answered_.between() && answered_.header().function_id == wire::stop_id && asked_.has_header() &&
      asked_.header().function_id == wire::stop_id) {
    end_ = RelayEnd::stopped;
    return false;
  }
  return true;
}

RelayEnd Relay::run() {
  for (;;) {
    pollfd waits[3] = {{worker_, POLLIN, 0}, {client_, POLLIN, 0}, {wake_, POLLIN, 0}};
    if (::poll(waits, 3, -1) < 0) continue;
    if (waits[2].revents) return RelayEnd::told;
    if (waits[0].revents && !from_worker()) return end_;
    if (waits[1].revents && !from_client()) return end_;
  }
}

bool Relay::answer(const wire::Header& asked, const std::string& error) {
  wire::Header reply{wire::native_big_endian, false, asked.call_id, asked.function_id, asked.call_count};
  std::string message;
  wire::PackedStrings strings;
  if (asked.function_id != wire::stop_id) {
    reply.error = true;
    reply.counts[wire::string_type] = 1;
    strings.add(error);
  }
  unsigned char head[wire::header_size];
  wire::format_header(reply, head);
  message.assign(reinterpret_cast<const char*>(head), sizeof head);
  message.append(reinterpret_cast<const char*>(strings.lengths.data()), strings.lengths.size() * 4);
  message += strings.text;
  return write_all(client_, message.data(), message.size());
}

void Relay::answer_for_the_dead(const std::string& cause) {
  // In the middle of an answer there is no way to say it: the script sees the end of the connection.
  if (!answered_.between()) return;
  bool waits = pending_ && asked_.between();
  for (;;) {
    if (waits) {
      const bool stop = asked_.header().function_id == wire::stop_id;
      if (!answer(asked_.header(), cause) || stop) return;
      waits = false;
    }
    pollfd both[2] = {{client_, POLLIN, 0}, {wake_, POLLIN, 0}};
    if (::poll(both, 2, -1) < 0) continue;
    if (both[1].revents) return;
    const auto count = read_some(client_, buffer_);
    if (count == 0) return;
    for (std::string_view rest(buffer_.data(), count); !rest.empty();) {
      rest.remove_prefix(asked_.take(rest));
      waits = asked_.between();  // a script asks once and waits
    }
  }
}

}  // namespace flotilla::amuse
