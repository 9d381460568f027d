#include <flotilla/worker.hpp>

int main(int argc, char** argv) {
  flotilla::WorkerProgram program;
  program.function("add", [](std::int32_t a, std::int32_t b, std::int32_t& sum) {
    sum = a + b;
    return 0;
  });
  return program.run(argc, argv);
}
