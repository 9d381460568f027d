// Between a script's connection to the worker port and the worker's own channel: bytes as they come, nothing waited for.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

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
  enum class Read { some, end };
  bool from_client();
  bool from_worker();
  bool write_all(int to, const char* data, std::size_t size);
  bool answer(const wire::Header& asked, const std::string& error);

  int client_, worker_, wake_;
  std::uint64_t* counters_;
  MessageScan asked_, answered_;
  bool pending_ = false;  // a whole call has gone to the worker, or a part of one
  RelayEnd end_ = RelayEnd::client_left;
  std::string buffer_ = std::string(256u << 10, '\0');
};

}  // namespace flotilla::amuse
