// Where a hub's things lie.
//   runtime  /tmp/fl-UID-<8 hex>/   link.sock (connectors), pilots.sock (pilots beside it), channels.sock, locks, pP.N/ of pilots
//   scratch  SCRATCH/flotilla/      hubs/<hub id>.json (state, 0600), logs/hub-<hub id>.log
// SCRATCH is what the resource says; else ~/.cache, else /tmp/flotilla-UID, else /dev/shm/flotilla-UID.
#pragma once

#include <filesystem>
#include <string>

#include "flotilla/v1/link.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::hub {

struct Places {
  std::filesystem::path runtime, scratch;
  std::filesystem::path link_socket() const { return runtime / "link.sock"; }
  std::filesystem::path pilot_socket() const { return runtime / "pilots.sock"; }
  std::filesystem::path channel_socket() const { return runtime / "channels.sock"; }
  std::filesystem::path start_lock() const { return runtime / "start.lock"; }  // held while a hub is started
  std::filesystem::path hub_lock() const { return runtime / "hub.lock"; }      // held by the hub as long as it lives
  std::filesystem::path state_file, log_file;
  bool trial = false;  // all of it in `runtime`, and nothing stays
};

// Makes the directories. Refuses a start without instance or hub id.
Result<Places> make_places(const v1::HubStart& start);

// The path of this program's file, for starting more of it and carrying it on.
std::filesystem::path own_program();

}  // namespace flotilla::hub
