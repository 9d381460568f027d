// The program `flotilla`: the command line, and the daemon.
#include <csignal>
#include <cstdio>
#include <cstring>
#include <unistd.h>

#include "client/amuse/control.hpp"
#include "client/amuse/private_daemon.hpp"
#include "proto/base/programs.hpp"

int main(int argc, char** argv) {
#ifdef FLOTILLA_WITH_DAEMON
  if (argc >= 3 && std::strcmp(argv[1], "daemon") == 0 && std::strcmp(argv[2], "run") == 0) {
    bool help = false;
    for (int i = 3; i < argc; ++i) help = help || std::strcmp(argv[i], "--help") == 0 || std::strcmp(argv[i], "-h") == 0;
    if (!help) return flotilla::daemon_main(argc - 2, argv + 2);
  }
#endif
  // As AMUSE starts a worker: with a port, a host and a flag.
  if (argc == 6 && std::strcmp(argv[1], "amuse") == 0 && std::strcmp(argv[2], "serve") == 0) {
    std::signal(SIGPIPE, SIG_IGN);  // whoever reads its words may go before it has cleared away
    return flotilla::amuse::run_control(argc - 2, argv + 2, "/proc/self/exe");
  }
  if ((argc == 4 || argc == 5) && std::strcmp(argv[1], "amuse") == 0 && std::strcmp(argv[2], "guard") == 0)
    return flotilla::amuse::run_guard(argv[3], argc == 5);
  const int code = flotilla::cli_main(argc, argv);
  std::fflush(nullptr);
#ifdef __SANITIZE_ADDRESS__
  return code;  // so that leaks are looked for
#else
  _exit(code);  // gRPC's clean-up at exit takes longer than a short command
#endif
}
