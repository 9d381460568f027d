// Where in a known_hosts file a host stands, so that an error can name the line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flotilla::daemon {

// Line numbers (from 1) of the entries for the host; for another port than 22 the file has "[host]:port".
// Understands lists, patterns (* ? !) and hashed names (|1|salt|hash).
std::vector<int> find_known_host_lines(std::string_view file, std::string_view host, int port);

}  // namespace flotilla::daemon
