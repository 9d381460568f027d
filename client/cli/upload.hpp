// Files for jobs go into the daemon's store, once for each content.
#pragma once

#include "client/cli/daemon_client.hpp"
#include "client/cli/description.hpp"
#include "client/cli/terminal.hpp"

namespace flotilla::cli {

// Uploads what the description names and fills in spec.files and stdin_data.
Status upload(DaemonClient& client, JobDescription& job, StatusLine& line);

}  // namespace flotilla::cli
