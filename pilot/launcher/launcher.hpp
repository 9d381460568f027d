// The command lines that jobs are started with. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "flotilla/v1/types.pb.h"

namespace flotilla::pilot {

struct Launch {
  std::vector<std::string> argv;
  std::vector<std::pair<std::string, std::string>> environment;  // laid over the job's own, which wins
};

// executable args... port 127.0.0.1 false, or through mpiexec with the flag true. `executable` is as it should be
// executed: absolute, or a name for PATH.
Launch build_worker_launch(const v1::WorkerSpec& worker, std::uint32_t processes, const std::string& executable, std::uint16_t port,
                           bool as_root);
Launch build_command_launch(const v1::CommandSpec& command);

}  // namespace flotilla::pilot
