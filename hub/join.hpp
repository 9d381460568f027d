// Joins two descriptors with a connected socket, byte for byte: what connectors and dialers do all their life.
#pragma once

namespace flotilla::hub {

enum class WhenInputEnds { leave, half_close };

// in -> socket, socket -> out. Blocking, no timer: one thread for each direction, whose write is the only thing that waits.
// Ends when the socket's other end has ended (and all of it was written), when `out` is gone, or when `in` ends (leave);
// with half_close the socket is told of the end and goes on. Does not return: the process exits with 0.
[[noreturn]] void join_and_exit(int in, int out, int socket, WhenInputEnds when);

}  // namespace flotilla::hub
