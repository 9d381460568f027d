// A worker that gives back what it gets: every type, both ways of declaring. Its twin is echo_worker.py.
#include <flotilla/worker.hpp>

#include <fstream>

using flotilla::Call;
using flotilla::InOut;

int main(int argc, char** argv) {
  flotilla::WorkerProgram program;
  std::vector<double> kept[7];

  program.function("echo_int32", [](std::int32_t in, std::int32_t& out) { return out = in, 0; });
  program.function("echo_int64", [](std::int64_t in, std::int64_t& out) { return out = in, 0; });
  program.function("echo_float32", [](float in, float& out) { return out = in, 0; });
  program.function("echo_float64", [](double in, double* out) { return *out = in, 0; });
  program.function("echo_bool", [](bool in, bool& out) { return out = in, 0; });
  program.function("echo_string", [](std::string_view in, std::string& out) { return out = in, 0; });
  program.function("echo_all",
                   [](double a, const std::string& b, std::int32_t c, bool d, std::int64_t e, float f, std::int32_t g, float& f_out,
                      std::int64_t& e_out, bool& d_out, std::int32_t& c_out, std::string& b_out, double& a_out, std::int32_t& g_out) {
                     a_out = a, b_out = b, c_out = c, d_out = d, e_out = e, f_out = f, g_out = g;
                     return 0;
                   });
  program.function("echo_arrays",
                   [](std::span<const std::string_view> text, std::span<const bool> flag, std::span<const std::int32_t> number,
                      std::span<std::string> text_out, std::span<bool> flag_out, std::span<std::int32_t> number_out) {
                     std::copy(text.begin(), text.end(), text_out.begin());
                     std::copy(flag.begin(), flag.end(), flag_out.begin());
                     std::copy(number.begin(), number.end(), number_out.begin());
                     return 0;
                   });
  program.function("double_it", [](InOut<std::int32_t> x) { return *x *= 2, 0; });
  program.function("double_all", [](InOut<std::span<double>> x) {
    for (double& value : *x) value *= 2;
    return 0;
  });
  program.function("return_code", [](std::int32_t code) { return code; });
  program.function("fail", [](std::string_view text) -> int { throw std::runtime_error(std::string(text)); });
  program.function("no_result", [] {});
  program.function("half", [](double x) { return x / 2; });
  program.function("echo_units", [](Call& call, double x, double& out) {
    call.set_reply_units({call.units().begin(), call.units().end()});
    return out = x, 0;
  });
  program.function("put", [&](std::span<const double> a, std::span<const double> b, std::span<const double> c, std::span<const double> d,
                              std::span<const double> e, std::span<const double> f, std::span<const double> g) {
    int i = 0;
    for (auto& column : {a, b, c, d, e, f, g}) kept[i++].assign(column.begin(), column.end());
    return 0;
  });
  program.function("get", [&](std::span<double> a, std::span<double> b, std::span<double> c, std::span<double> d, std::span<double> e,
                              std::span<double> f, std::span<double> g) {
    int i = 0;
    for (auto& column : {a, b, c, d, e, f, g}) {
      if (kept[i].size() != column.size()) return -1;
      std::copy(kept[i].begin(), kept[i].end(), column.begin());
      ++i;
    }
    return 0;
  });
  // Takes without keeping, gives what is there: the cost of the messages alone.
  program.function("sink", [&](std::span<const double>, std::span<const double>, std::span<const double>, std::span<const double>,
                               std::span<const double>, std::span<const double>, std::span<const double>) { return 0; });
  program.function("source", [&](std::span<double>, std::span<double>, std::span<double>, std::span<double>, std::span<double>,
                                 std::span<double>, std::span<double>) { return 0; });
  // Returns when somebody has written a line to the named pipe.
  program.function("wait_for", [](const std::string& path, std::string& line) {
    std::ifstream pipe(path);
    std::getline(pipe, line);
    return 0;
  });
  program.function("die", [](std::int32_t code) -> int { ::_exit(code); });
  program.function("by_hand", 4711, [](std::int32_t& answer) { return answer = 42, 0; });
  program.function("ranks", [&](std::int32_t& ranks) { return ranks = program.ranks(), 0; });
  program.function("fail_on_rank", [&](std::int32_t rank) -> int {
    if (program.rank() == rank) throw std::runtime_error("as told");
    return 0;
  });
  program.function("own_argument",
                   [&](std::string& first) { return first = program.arguments().empty() ? "" : program.arguments()[0], 0; });
  return program.run(argc, argv);
}
