// The conversation with the other machine's shell: is the agent there, else bring it; then the connector and its hub.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "daemon/transport/core/bootstrap.hpp"
#include "daemon/transport/core/connector.hpp"
#include "daemon/transport/session.hpp"

namespace flotilla::daemon {

struct BringRequest {
  std::string resource;
  std::string scratch_dir;
  std::string instance;         // hex
  std::filesystem::path agent;  // the local file
  std::filesystem::path cache_dir;
  bool trial = false;  // for a new hub: one that runs already can do without its scratch_dir
};

struct Brought {
  std::unique_ptr<RemoteCommand> connector;  // has just been started; waits for HubStart on its stdin
  std::string agent;                         // its path there
  bool uploaded = false;
};
Result<Brought> bring_agent(Session& session, ThreadControl& control, Observer& observer, const BringRequest& request);

Result<HubAnswer> start_hub(RemoteCommand& connector, Observer& observer, const v1::HubStart& start);

}  // namespace flotilla::daemon
