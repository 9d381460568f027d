// Logs: by level, to one bounded file that is rotated (4 files of 4 MiB), 0600. No secret is ever logged.
// Use spdlog's macros or functions (spdlog::info, ...) after init_log.
#pragma once

#include <spdlog/spdlog.h>

#include <filesystem>
#include <string>
#include <vector>

#include "proto/base/result.hpp"

namespace flotilla {

enum class LogTo { file, file_and_stderr };

Status init_log(const std::filesystem::path& file, LogTo to = LogTo::file);
void set_log_debug(bool debug);
// FOLDER/HOST-NAME leads to the log; "~" is the home. A log is worth no failure: one that cannot be made is told in the log.
void link_log(const std::filesystem::path& file, const std::string& folder, const std::string& host);
// The log and what its rotations have made.
std::vector<std::filesystem::path> files_of_log(const std::filesystem::path& file);

}  // namespace flotilla
