#include "proto/base/log.hpp"

#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/stat.h>

#include <algorithm>

#include "proto/base/paths.hpp"

namespace flotilla {
namespace fs = std::filesystem;
namespace {
constexpr std::size_t log_file_bytes = 4u << 20;  // a day of info-level messages of a busy daemon
constexpr std::size_t log_files = 3;              // beside the present one
}  // namespace

Status init_log(const std::filesystem::path& file, LogTo to) {
  try {
    spdlog::file_event_handlers nobody_else;  // also the files that a rotation makes
    nobody_else.after_open = [](const spdlog::filename_t&, std::FILE* opened) { fchmod(fileno(opened), 0600); };
    std::vector<spdlog::sink_ptr> sinks{
        std::make_shared<spdlog::sinks::rotating_file_sink_mt>(file.string(), log_file_bytes, log_files, false, nobody_else)};
    if (to == LogTo::file_and_stderr) sinks.push_back(std::make_shared<spdlog::sinks::stderr_sink_mt>());
    auto logger = std::make_shared<spdlog::logger>("", sinks.begin(), sinks.end());
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
    logger->flush_on(spdlog::level::info);
    spdlog::set_default_logger(std::move(logger));
    return {};
  } catch (const spdlog::spdlog_ex& problem) {
    return fail(Code::permission_denied, std::string("cannot write the log: ") + problem.what());
  }
}

void set_log_debug(bool debug) {
  const auto level = debug ? spdlog::level::debug : spdlog::level::info;
  spdlog::set_level(level);
  spdlog::flush_on(level);
}

void link_log(const fs::path& file, const std::string& folder, const std::string& host) {
  const fs::path dir =
      folder == "~" || folder.starts_with("~/") ? home_dir() / folder.substr(std::min<std::size_t>(2, folder.size())) : fs::path(folder);
  const fs::path link = dir / (host + "-" + file.filename().string());
  std::error_code problem;
  fs::create_directories(dir, problem);
  fs::remove(link, problem);
  fs::create_symlink(file, link, problem);
  if (problem) spdlog::warn("there is no {}: {}", link.string(), problem.message());
}

std::vector<fs::path> files_of_log(const fs::path& file) {
  std::vector<fs::path> files{file};
  for (std::size_t i = 1; i <= log_files; ++i)
    files.push_back(file.parent_path() / (file.stem().string() + "." + std::to_string(i) + file.extension().string()));
  return files;
}

}  // namespace flotilla
