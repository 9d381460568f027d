// Run on a pseudo terminal by client_test. Asks what argv says (kind and text) and prints the answer; or, with "leave", a socket and a
// file, leaves the daemon there as soon as something is written to the file, whatever question stands.
#include <cstring>
#include <flotilla/client.hpp>
#include <fstream>
#include <iostream>

int main(int, char** argv) {
  if (!std::strcmp(argv[1], "leave")) {
    {
      const flotilla::Daemon daemon({.socket = argv[2]});
      daemon.resource("far").connect();
      std::ifstream(argv[3]).get();
    }
    std::cout << "left." << std::endl;
    return 0;
  }
  flotilla::Prompt prompt;
  prompt.kind = !std::strcmp(argv[1], "secret") ? flotilla::Prompt::Kind::secret : flotilla::Prompt::Kind::host_key;
  prompt.resource = "far";
  prompt.text = argv[2];
  const auto answer = flotilla::ask_on_terminal(prompt);
  std::cout << "answer=" << answer.value_or("none") << "." << std::endl;
}
