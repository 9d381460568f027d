// What a script asks for at the worker port, and what Flotilla is asked for then. Pure.
#pragma once

#include <string>
#include <vector>

#include "flotilla/client.hpp"
#include "flotilla/message.hpp"

namespace flotilla::amuse {

inline constexpr std::int32_t start_worker_id = 10101010;  // function id of the first message on a worker's connection
inline constexpr std::string_view worker_greeting = "TYPE_WORKER", output_greeting = "TYPE_OUTPUT";
static_assert(worker_greeting.size() == output_greeting.size());

struct WorkerRequest {
  std::string executable;                    // relative to AMUSE's root directory here, or absolute
  std::string stdout_target, stderr_target;  // a path here, "/dev/null", or the name of an output connection
  std::string label;                         // empty = any pilot
  std::string folder;                        // of the worker, here
  std::string interpreter;                   // of a Python code; empty = the one that is found where it runs
  unsigned processes = 1;
  unsigned threads = 0;  // 0 = leave alone
  bool dynamic_python = false;
  std::string name() const;  // the last part of `executable`
};

// Throws MessageError with what is missing or out of range.
WorkerRequest parse_worker_request(const wire::Message& message);

struct WorkerLimits {
  Duration queue{60'000};
  Duration start{60'000};
  bool debug = false;
};

// The first line of a worker's stderr, by its first rank: where AMUSE is on that machine.
inline constexpr std::string_view home_mark = "flotilla-amuse-home: ";

// `root`: AMUSE's root directory here. `sources`: for dynamic Python code, the files to lay into its folder.
WorkerSpec make_worker_spec(const WorkerRequest& request, const std::string& root, const std::vector<std::string>& sources,
                            const WorkerLimits& limits);

// POSIX shell scripts that find AMUSE where they run ($FLOTILLA_AMUSE_DIR, or look for it), in the same way. This one says so, and
// becomes the worker.
std::string worker_script();
// Says what AMUSE, codes and MPI there are, for parse_probe(). Arguments: "amuse", "", "".
std::string probe_script();

}  // namespace flotilla::amuse
