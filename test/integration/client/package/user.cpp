#include <flotilla/client.hpp>
#include <flotilla/code.hpp>
#include <flotilla/worker.hpp>
#include <iostream>

// Exits with 0 when the typed error crosses the library's border.
int main() {
  try {
    flotilla::Daemon daemon({.socket = "/nowhere/daemon.sock"});
  } catch (const flotilla::UnavailableError& error) {
    std::cout << error.what() << "\n";
    return 0;
  }
  return 1;
}
