// Handing workers' sockets to local clients (PROTOCOL.md 5.1), over one unix socket for all workers of a pilot.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "flotilla/v1/types.pb.h"
#include "pilot/worker/acceptor.hpp"
#include "proto/base/ids.hpp"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {

struct ChannelCounts {
  std::uint64_t calls = 0, to_worker = 0, from_worker = 0;
};

class HandOver {
 public:
  explicit HandOver(boost::asio::io_context& io) : io_(io), acceptor_(io, "the socket of workers' channels") {}
  ~HandOver();

  Status listen(const std::filesystem::path& socket);
  // The worker's socket waits for who brings the ticket. on_taken: it is the client's now, nobody here keeps a duplicate.
  // on_client_gone: the client's connection ended. Neither runs after end().
  void offer(Attempt attempt, std::string ticket, unique_fd worker, std::function<void()> on_taken, std::function<void()> on_client_gone);
  // The worker has ended: told to the client that holds it, or to the one that comes with the ticket.
  void end(Attempt attempt, const v1::ExitReason& reason);
  void forget(Attempt attempt);
  std::optional<ChannelCounts> counts(Attempt attempt) const;

 private:
  struct Offer;
  struct Visitor;  // a connection whose ticket is not known yet

  void wait_for_line(const std::shared_ptr<Visitor>& visitor);
  void on_line(unique_fd client, const std::string& line);
  void wait_for_end(const std::shared_ptr<Offer>& offer);

  boost::asio::io_context& io_;
  Acceptor acceptor_;
  // Shared, so that a reaction that is queued already sees that its object is gone.
  std::map<Attempt, std::shared_ptr<Offer>> offers_;
  std::list<std::shared_ptr<Visitor>> visitors_;
};

}  // namespace flotilla::pilot
