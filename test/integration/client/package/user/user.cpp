#include <flotilla/client.hpp>
#include <flotilla/code.hpp>
#include <flotilla/worker.hpp>
#include <iostream>

// Exits with 0 when a job runs, when the worker that argv[1] names adds, and when the typed error of a job that fails crosses the
// library's border.
int main(int, char** argv) {
  flotilla::Daemon daemon({.start = false});
  std::cout << daemon.run({.argv = {"echo", "works"}}).standard_output;
  flotilla::Worker worker = daemon.start_worker({.executable = argv[1]});
  flotilla::RemoteCode code(worker.fd(), worker.code_options<flotilla::CodeOptions>());
  if (code.call<std::int32_t>("add", 2, 3) != 5) return 2;
  try {
    daemon.run({.argv = {"false"}});
  } catch (const flotilla::JobFailedError& error) {
    return error.exit()->code == 1 ? 0 : 1;
  }
  return 1;
}
