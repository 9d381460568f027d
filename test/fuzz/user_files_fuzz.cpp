// What users write: configuration, descriptions of jobs and resources, durations, sizes. Any bytes: nothing crashes, and an error
// says something.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "client/cli/core/units.hpp"
#include "client/cli/description.hpp"
#include "daemon/coordinator/config.hpp"

using namespace flotilla;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}
template <class T>
void told(const Result<T>& result) {
  if (!result) require(!result.error().message.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  told(daemon::parse_config(text, "config.toml"));
  told(cli::parse_jobs(text, "jobs.toml"));
  told(cli::parse_resources(text, "resources.toml"));
  told(cli::parse_input_file(text));
  told(cli::parse_signal(text));
  told(cli::parse_assignment(text));
  if (const auto ms = daemon::parse_duration(text)) require(*ms >= 0);
  told(daemon::parse_size(text));
  if (const auto ms = cli::parse_duration(text)) {
    require(*ms >= 0);
    require(!cli::format_duration(*ms).empty());
  }
  if (const auto bytes = cli::parse_size(text)) require(*bytes >= 0);
  require(cli::width(cli::printable(text, 20)) <= 20);
  (void)cli::wrap(text, 20, 2);
  require(!cli::shell_quote(text).empty());
  return 0;
}
