// Starts the processes of pilots: beside the hub as a child, on nodes through the site's own ssh. Asynchronous; everything
// that it started and that has not become a pilot ends with it.
#pragma once

#include <boost/asio/io_context.hpp>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "flotilla/v1/link.pb.h"
#include "hub/core/core.hpp"
#include "hub/core/node_script.hpp"

namespace flotilla::hub {

struct StarterServices {
  // What the pilot gets on stdin (JSON). `hub_address` is the hub's own address as the node sees it, `node_address` the
  // node's (both may be empty); not asked for pilots beside the hub.
  std::function<Result<std::string>(const StartOrder& order, const NodeLine& node)> make_start;
  std::function<void(NodeId, const StartResult&)> on_result;
  std::function<void(NodeId, const std::string& message)> on_progress;  // what the setup lines say
  std::map<std::string, std::string> env;                               // of every process started
};

class Starter {
 public:
  Starter(boost::asio::io_context& io, StarterServices services);
  ~Starter();
  void start(const StartOrder& order);
  // on_result follows, with the word that it was stopped.
  void cancel(NodeId node);

 private:
  class Attempt;
  void next();
  void done(NodeId node, const StartResult& result);
  const Agent& agent();

  boost::asio::io_context& io_;
  StarterServices services_;
  std::deque<StartOrder> waiting_;
  std::map<NodeId, std::shared_ptr<Attempt>> running_;
  std::optional<Agent> agent_;
};

}  // namespace flotilla::hub
