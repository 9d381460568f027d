#include <flotilla/client.hpp>
#include <flotilla/code.hpp>
#include <flotilla/worker.hpp>
#include <iostream>

// Exits with 0 when a job runs, and when the typed error of one that fails crosses the library's border.
int main() {
  flotilla::Daemon daemon({.start = false});
  std::cout << daemon.run({.argv = {"echo", "works"}}).standard_output;
  try {
    daemon.run({.argv = {"false"}});
  } catch (const flotilla::JobFailedError& error) {
    return error.exit()->code == 1 ? 0 : 1;
  }
  return 1;
}
