#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "pilot/guard.hpp"
#include "pilot/pilot.hpp"
#include "proto/base/programs.hpp"

extern char** environ;

namespace flotilla {
namespace {

constexpr const char* usage =
    "Usage: flotilla-agent pilot < START\n\n"
    "Offers this node's slots and runs jobs. START is the JSON of flotilla.v1.PilotStart; it comes from the daemon or a\n"
    "hub and holds a secret. When the pilot has registered, `STARTED <guard pid> <pilot pid>` is printed and both live on.\n";

// What the setup lines leave behind, for the jobs: on descriptor 3, entries ended by NUL.
int print_environment() {
  std::string all;
  for (char** entry = environ; *entry; ++entry) {
    all += *entry;
    all.push_back('\0');
  }
  std::size_t done = 0;
  while (done < all.size()) {
    const ssize_t n = write(3, all.data() + done, all.size() - done);
    if (n <= 0) return 1;
    done += static_cast<std::size_t>(n);
  }
  return 0;
}

}  // namespace

int pilot_main(int argc, char** argv) {
  if (argc == 1) return pilot::start_pilot();
  if (!std::strcmp(argv[1], "--serve") && argc >= 3) return pilot::serve_pilot(std::atoi(argv[2]));
  if (!std::strcmp(argv[1], "--print-environment")) return print_environment();
  const bool help = !std::strcmp(argv[1], "--help");
  std::fputs(usage, help ? stdout : stderr);
  return help ? 0 : 2;
}

}  // namespace flotilla
