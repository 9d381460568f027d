#include "client/amuse/relay.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <string_view>
#include <utility>

namespace flotilla::amuse {
namespace {

// Bytes, 0 at the end (a connection that broke has ended).
std::size_t read_some(int fd, char* to, std::size_t size) {
  for (;;) {
    const ssize_t count = ::recv(fd, to, size, 0);
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

bool Relay::pass_on(Part& part, const MessageScan& scan, int to) {
  part.in_the_middle = !scan.between();
  return write_all(to, part.data.get(), std::exchange(part.size, 0));
}

bool Relay::from_client() {
  const auto count = read_some(client_, asked_part_.space(), asked_part_.room());
  if (count == 0) {
    end_ = RelayEnd::client_left;
    return false;
  }
  pending_ = true;
  bool ended = false;
  for (auto rest = asked_part_.add(count); !rest.empty();) {
    rest.remove_prefix(asked_.take(rest));
    if (!asked_.between()) continue;
    ++counters_[0];
    ended = true;
  }
  counters_[1] += count;
  return (!ended && asked_part_.may_wait()) || pass_on(asked_part_, asked_, worker_);
}

bool Relay::from_worker() {
  const auto count = read_some(worker_, answered_part_.space(), answered_part_.room());
  if (count == 0) {
    end_ = RelayEnd::worker_left;
    return false;
  }
  bool ended = false;
  for (auto rest = answered_part_.add(count); !rest.empty();) {
    rest.remove_prefix(answered_.take(rest));
    if (!answered_.between()) continue;
    pending_ = !asked_.between();
    ended = true;
  }
  counters_[2] += count;
  if (!ended && answered_part_.may_wait()) return true;
  if (!pass_on(answered_part_, answered_, client_)) return false;
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
  if (answered_part_.in_the_middle) return;
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
    asked_part_.size = 0;
    const auto count = read_some(client_, asked_part_.space(), asked_part_.room());
    if (count == 0) return;
    for (auto rest = asked_part_.add(count); !rest.empty();) {
      rest.remove_prefix(asked_.take(rest));
      waits = asked_.between();  // a script asks once and waits
    }
  }
}

}  // namespace flotilla::amuse
