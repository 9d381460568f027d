// Asks what argv says (kind and text) and prints the answer: run on a pseudo terminal by client_test.
#include <cstring>
#include <flotilla/client.hpp>
#include <iostream>

int main(int, char** argv) {
  flotilla::Prompt prompt;
  prompt.kind = !std::strcmp(argv[1], "secret") ? flotilla::Prompt::Kind::secret : flotilla::Prompt::Kind::host_key;
  prompt.resource = "far";
  prompt.text = argv[2];
  const auto answer = flotilla::ask_on_terminal(prompt);
  std::cout << "answer=" << answer.value_or("none") << "." << std::endl;
}
