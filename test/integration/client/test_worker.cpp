// A code with the ways to end that the tests need.
#include <csignal>
#include <cstdio>
#include <flotilla/worker.hpp>
#include <numeric>

int main(int argc, char** argv) {
  flotilla::WorkerProgram program;
  program.function("add", [](std::int32_t a, std::int32_t b, std::int32_t& sum) {
    sum = a + b;
    return 0;
  });
  program.function("total", [](std::span<const double> values, std::span<double> totals) {
    const double total = std::accumulate(values.begin(), values.end(), 0.0);
    for (auto& each : totals) each = total;
    return 0;
  });
  program.function("leave", [](std::int32_t code) {
    std::fputs("the last words\n", stderr);
    std::fflush(stderr);
    _exit(code);
    return 0;
  });
  program.function("fall", [] {
    raise(SIGKILL);
    return 0;
  });
  return program.run(argc, argv);
}
