// How many descriptors a process may have open.
#pragma once

#include <sys/types.h>

namespace flotilla {

// As many as the system lets us have, up to what is enough for thousands of pilots or jobs. Once, at the start.
void raise_open_file_limit();
// For a child, at once after its start: what raise_open_file_limit() found. Programs that use select() rely on it.
void restore_open_file_limit(pid_t child);

}  // namespace flotilla
