// Between a script's connection to the worker port and the worker's own channel: bytes as they come, but short messages whole.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "client/amuse/core/message_scan.hpp"

namespace flotilla::amuse {

// How a relay ended.
enum class RelayEnd {
  stopped,      // the call that ends a worker was answered
  client_left,  // the script closed its connection
  worker_left,  // the worker is gone
  told,         // `wake` became readable
};

// One script and one worker; neither descriptor is owned. Used by one thread.
class Relay {
 public:
  // `counters`: calls, bytes to the worker, bytes from it, kept up to date.
  Relay(int client, int worker, int wake, std::uint64_t* counters) : client_(client), worker_(worker), wake_(wake), counters_(counters) {}
  RelayEnd run();
  // After worker_left: what was asked is answered with the error `cause`, and all that is asked from now on at once, until the
  // script leaves, or stops the worker: that is answered as a worker would.
  void answer_for_the_dead(const std::string& cause);

 private:
  // Shorter messages go on when they are whole: their sender writes them piece by piece, and each piece would wake their reader.
  static constexpr std::size_t whole_bytes = 16u << 10;

  // What has come and has not gone on.
  struct Part {
    static constexpr std::size_t limit = 256u << 10;
    std::unique_ptr<char[]> data{new char[limit]};  // not cleared
    std::size_t size = 0;
    bool in_the_middle = false;  // the beginning of its message has gone on
    bool may_wait() const { return !in_the_middle && size < whole_bytes; }
    char* space() const { return data.get() + size; }
    std::size_t room() const { return limit - size; }
    std::string_view add(std::size_t count) {
      size += count;
      return {data.get() + size - count, count};
    }
  };

  bool from_client();
  bool from_worker();
  bool pass_on(Part& part, const MessageScan& scan, int to);
  bool write_all(int to, const char* data, std::size_t size);
  bool answer(const wire::Header& asked, const std::string& error);

  int client_, worker_, wake_;
  std::uint64_t* counters_;
  MessageScan asked_, answered_;
  bool pending_ = false;  // a call has come from the script, or a part of one, and has no answer yet
  RelayEnd end_ = RelayEnd::client_left;
  Part asked_part_, answered_part_;
};

}  // namespace flotilla::amuse
