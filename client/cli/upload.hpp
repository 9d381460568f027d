// Files for jobs go into the daemon's store, once for each content.
#pragma once

#include <map>
#include <string>

#include "client/cli/daemon_client.hpp"
#include "client/cli/description.hpp"
#include "client/cli/terminal.hpp"

namespace flotilla::cli {

// What was sent by one command: a file that many jobs have is read once.
using SentFiles = std::map<std::string, v1::InputFile>;  // by path and what changes with the content

// Uploads what the description names and fills in spec.files and stdin_data. CANCELED after a signal that ends us, where it was blocked.
Status upload(DaemonClient& client, JobDescription& job, StatusLine& line, SentFiles& sent);

}  // namespace flotilla::cli
