// flotilla-agent: carried to every machine, started there as hub, connector, dialer or pilot.
#include <cstdio>
#include <cstring>

#include "proto/agent/helpers.hpp"
#include "proto/base/programs.hpp"
#include "proto/base/version.hpp"

namespace {

struct Part {
  const char* name;
  int (*run)(int, char**);
  const char* what;
};
constexpr Part parts[] = {
    {"hub", flotilla::hub_main, "the long-lived hub of a resource"},
    {"connect", flotilla::connect_main, "joins stdin and stdout to the hub; starts it if it is not running"},
    {"dial", flotilla::dial_main, "joins stdin and stdout to HOST PORT"},
    {"pilot", flotilla::pilot_main, "offers this node's slots and runs jobs"},
    {"verify", flotilla::verify_main, "compares this file with a SHA-256"},
    {"pass-fd", flotilla::pass_fd_main, "a gateway's connection for the system's ssh"},
    {"ask", flotilla::ask_main, "a question of the system's ssh"},
};

int usage(std::FILE* to) {
  std::fprintf(to, "flotilla-agent %s: the part of Flotilla that runs on other machines.\n\n", flotilla::build_version());
  for (const auto& part : parts) std::fprintf(to, "  flotilla-agent %-8s %s\n", part.name, part.what);
  std::fprintf(to, "\nIt is started by the daemon; there is rarely a reason to start it by hand.\n");
  return to == stdout ? 0 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return usage(stderr);
  if (!std::strcmp(argv[1], "--help")) return usage(stdout);
  if (!std::strcmp(argv[1], "--version")) {
    std::printf("%s\n", flotilla::build_version());
    return 0;
  }
  for (const auto& part : parts)
    if (!std::strcmp(argv[1], part.name)) return part.run(argc - 1, argv + 1);
  std::fprintf(stderr, "flotilla-agent: there is no part '%s'\n", argv[1]);
  return usage(stderr);
}
