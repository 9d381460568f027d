#include "daemon/core/hub_frames.hpp"

namespace flotilla::daemon {

bool speaks_for(const State& state, const std::string& resource, PilotId pilot) {
  const auto it = state.pilots.find(pilot);
  return it == state.pilots.end() || it->second.spec.resource() == resource;
}

bool may_say(const State& state, const std::string& resource, const v1::Frame& frame) {
  const NodeId peer = parse_peer(frame.peer());
  switch (frame.body_case()) {
    case v1::Frame::kLaunchReport: return speaks_for(state, resource, PilotId{frame.launch_report().pilot()});
    case v1::Frame::kNodeJoined: {
      const auto& node = frame.node_joined().node();
      return peer == NodeId{PilotId{node.pilot()}, node.node()} && speaks_for(state, resource, peer.pilot);
    }
    case v1::Frame::kGoodbye:
    case v1::Frame::kPing:
    case v1::Frame::kPong:
    case v1::Frame::kLogData:
      if (frame.peer().empty()) return true;
      break;
    default: break;
  }
  return peer.pilot && state.pilots.contains(peer.pilot) && speaks_for(state, resource, peer.pilot);
}

bool has_channel(const State& state, NodeId node, std::uint64_t channel) {
  const Job* job = state.job(JobId{channel});
  return job && job->worker() && job->node == node;
}

}  // namespace flotilla::daemon
