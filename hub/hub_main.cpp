// `flotilla-agent hub`: started by a connector in a session of its own; HubStart comes on stdin, READY or why not goes to stdout.
#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "hub/hub.hpp"
#include "hub/hub_start.hpp"
#include "proto/base/log.hpp"
#include "proto/base/open_files.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/programs.hpp"
#include "proto/base/version.hpp"

namespace flotilla {
namespace {

using namespace std::chrono_literals;
constexpr auto start_limit = 30s;

constexpr const char* usage =
    "usage: flotilla-agent hub HUB-ID\n\n"
    "The hub of a resource. It is started by `flotilla-agent connect`, which writes what it must know (HubStart) to its stdin.\n"
    "Its log is logs/hub-HUB-ID.log below scratch_dir/flotilla, ~/.cache/flotilla, /tmp/flotilla-UID or /dev/shm/flotilla-UID.\n";

int refuse(const Error& error) {
  spdlog::error("the hub cannot start: {}", error.text());
  (void)hub::write_all(STDOUT_FILENO, hub::format_error_line(error));
  return 1;
}

}  // namespace

int hub_main(int argc, char** argv) {
  if (argc == 2 && !std::strcmp(argv[1], "--help")) {
    std::fputs(usage, stdout);
    return 0;
  }
  if (argc != 2) {
    std::fputs(usage, stderr);
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  signal(SIGHUP, SIG_IGN);  // it outlives every login
  if (chdir("/") != 0) return 1;
  umask(0077);
  auto start = hub::read_hub_start(STDIN_FILENO, start_limit);
  if (!start) return refuse(start.error());
  auto places = hub::make_places(*start);
  if (!places) return refuse(places.error());
  if (auto logging = init_log(places->log_file); !logging) return refuse(logging.error());
  set_log_debug(start->debug());
  if (const auto& links = start->traces().log_links(); !links.empty()) link_log(places->log_file, links, host_name());
  spdlog::info("hub {} of '{}', build {}, pid {}", start->hub_id(), start->resource(), build_version(), getpid());

  raise_open_file_limit();                         // each pilot and each channel has a descriptor here
  static auto& io = *new boost::asio::io_context;  // never destroyed: the link's own thread may still post to it at the very end
  auto opened = hub::Hub::open(io, *start, *places);
  if (!opened) return refuse(opened.error());
  if (auto said = hub::write_all(STDOUT_FILENO, hub::ready_line); !said) spdlog::warn("nobody waits for this hub any more");
  // The connector's pipes must not be held for the rest of our life.
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd <= 2; ++fd) dup2(null, fd);
  close(null);
  (*opened)->run();
  opened->reset();
  spdlog::shutdown();
  _exit(0);  // the link's own thread may be in its last steps: not while static objects are destroyed
}

}  // namespace flotilla
