#include "client/amuse/private_daemon.hpp"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"

namespace flotilla::amuse {
namespace fs = std::filesystem;

PrivateDaemon::PrivateDaemon(const PrivateDaemonOptions& options) : keep_(options.debug) {
  const auto name = "amuse-" + std::to_string(getpid()) + "-" + random_hex(3);
  folder_ = state_dir() / name;
  const auto failed = [](const Error& error) {
    FlotillaError::Details details;
    details.code = ErrorCode::failed_precondition;
    details.message = error.message;
    details.hint = error.hint;
    return FailedPreconditionError(details);
  };
  if (auto made = make_private_dir(folder_); !made) throw failed(made.error());
  std::string config = "[local_pilot]\nstart = false\n\n[pilots]\ncutoff = \"5m\"\n\n[daemon]\n";
  if (options.web_port > 0) config += "web_port = " + std::to_string(options.web_port) + "\n";
  if (options.debug) config += "debug = true\n";
  if (auto written = write_file(folder_ / "config.toml", config); !written) throw failed(written.error());
  setenv("FLOTILLA_STATE_DIR", (folder_ / "state").c_str(), 1);
  setenv("FLOTILLA_CONFIG", (folder_ / "config.toml").c_str(), 1);
  unsetenv("FLOTILLA_RUNTIME_DIR");
  DaemonOptions how;
  how.program = options.program;
  how.on_waiting = [](const WaitNotice&) {};  // the script is told when it is over
  daemon_ = std::make_unique<Daemon>(how);
}

PrivateDaemon::~PrivateDaemon() { end(); }

void PrivateDaemon::end() {
  if (!daemon_) return;
  try {
    daemon_->shutdown(true);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "the daemon of this script could not be ended: %s\n", error.what());
  }
  daemon_.reset();
  std::error_code ignored;
  fs::remove_all(runtime_dir(), ignored);
  if (!keep_) fs::remove_all(folder_, ignored);
}

}  // namespace flotilla::amuse
