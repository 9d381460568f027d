// The resource's setup lines: run once by /bin/sh before the pilot registers; what they leave in the environment is for jobs.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <string>
#include <vector>

#include "pilot/process/environment.hpp"
#include "proto/base/result.hpp"

namespace flotilla::pilot {

// The script: each line a complete command, the first that fails ends it and is named. Pure.
std::string build_setup_script(const std::vector<std::string>& lines, const std::string& agent);

// Blocks, at most `limit`; runs before the io_context does (a signal that ends this process is the way out). The error carries
// what the lines wrote to stderr. `on_line`: now and then the last line that they wrote.
Result<Environment> run_setup(const std::vector<std::string>& lines, const Environment& environment, const std::string& folder,
                              const std::string& host, std::chrono::milliseconds limit,
                              const std::function<void(std::string)>& on_line = {});

}  // namespace flotilla::pilot
