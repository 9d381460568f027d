#include "hub/forward.hpp"

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hub/core/node_script.hpp"
#include "hub/core/record.hpp"
#include "hub/hub_start.hpp"
#include "hub/join.hpp"
#include "hub/spawn.hpp"
#include "proto/base/paths.hpp"

namespace flotilla::hub {
namespace {
using namespace std::chrono_literals;
constexpr int connect_timeout_s = 4;  // a dead front end must not hold up the login for long
constexpr auto answer_limit = 12s;    // login and answer
}  // namespace

std::vector<std::string> forward_argv(const std::string& host, const std::string& local_channels, const std::string& far_channels,
                                      const std::string& program) {
  return {"ssh", "-T",
          "-x",  "-a",
          "-o",  "BatchMode=yes",
          "-o",  "ConnectTimeout=" + std::to_string(connect_timeout_s),
          "-o",  "ServerAliveInterval=15",
          "-o",  "StreamLocalBindUnlink=yes",
          "-o",  "StreamLocalBindMask=0177",
          "-L",  local_channels + ":" + far_channels,
          host,  "exec '" + program + "' connect --only-running"};
}

void forward_to_other_host(const Places& places, const v1::HubStart& start) {
  const auto text = read_file(places.state_file, 64u << 20);
  if (!text) return;
  const auto record = parse_record(*text);
  if (!record || record->over || record->host.empty() || record->host == host_name() || record->instance != start.instance()) return;
  const std::string program = own_program().string();
  if (!check_host(record->host) || program.find('\'') != std::string::npos) return;
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return;
  unique_fd ours(ends[0]), theirs(ends[1]);
  Spawn what;
  what.program = "ssh";
  what.argv = forward_argv(record->host, places.channel_socket().string(), record->runtime_dir + "/channels.sock", program);
  what.in = what.out = theirs.get();
  auto child = spawn(what);
  if (!child) return;
  theirs.reset();
  const auto until = std::chrono::steady_clock::now() + answer_limit;
  std::string line;
  bool good = bool(write_all(ours.get(), format_hub_start(start)));
  while (good && (line.empty() || line.back() != '\n') && line.size() < 4096) {
    char byte;
    good = bool(read_exactly(ours.get(), &byte, 1, until));
    if (good) line += byte;
  }
  if (!good || !line.starts_with(hub_line_start)) {
    kill(-child->pid, SIGKILL);
    reap(*child);
    return;
  }
  if (!write_all(STDOUT_FILENO, format_hub_line(record->host, places.channel_socket().string()))) _exit(1);
  join_and_exit(STDIN_FILENO, STDOUT_FILENO, ours.get(), WhenInputEnds::leave);
}

}  // namespace flotilla::hub
