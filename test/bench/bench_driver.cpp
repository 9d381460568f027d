// Measures one way to a worker, or one way to run commands, and prints JSON, one object a line.
//   bench_driver calls direct WORKER              the worker's own socket on loopback
//   bench_driver calls tunnel HOST PORT           whatever stands behind that address
//   bench_driver calls flotilla LABEL WORKER      a worker of ours, on a pilot with that label
//   bench_driver commands spawn N | flotilla N    /bin/true, N times: posix_spawn with two in flight; through daemon and pilot
//   bench_driver typed N COMMAND...               a command as typed, N times one after the other: from its start to its end
#include <flotilla/client.hpp>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "test/bench/wire.hpp"

extern char** environ;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

pid_t spawn(const std::vector<std::string>& argv) {
  std::vector<char*> words;
  for (const auto& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  pid_t pid = 0;
  if ((errno = posix_spawnp(&pid, words[0], nullptr, nullptr, words.data(), environ)) != 0) bench::die("start " + argv[0]);
  return pid;
}

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(std::ceil(share * values.size())) - 1)];
}

void call(int fd, std::vector<char>& data, std::uint64_t there, std::uint64_t back) {
  // One write for request and data, as a message of a worker is.
  bench::Request request{there, back};
  std::memcpy(data.data(), &request, sizeof request);
  if (!bench::write_all(fd, data.data(), sizeof request + there) || !bench::read_all(fd, data.data(), back))
    bench::die("the worker is gone");
}

void measure_calls(int fd) {
  std::vector<char> data(sizeof(bench::Request) + (64u << 20));
  constexpr double least = 0.7;  // seconds for one figure
  for (const std::uint64_t size : {1ull, 1024ull, 16ull << 10, 64ull << 10}) {
    for (int i = 0; i < 200; ++i) call(fd, data, size, size);
    std::vector<double> times;
    const auto begin = Clock::now();
    while (times.size() < 500 || seconds_since(begin) < least) {
      const auto one = Clock::now();
      call(fd, data, size, size);
      times.push_back(seconds_since(one) * 1e6);
    }
    std::printf("{\"what\": \"call\", \"bytes\": %llu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"calls\": %zu}\n",
                static_cast<unsigned long long>(size), percentile(times, 0.5), percentile(times, 0.99), times.size());
  }
  for (const std::uint64_t size : {1ull << 20, 16ull << 20, 64ull << 20}) {
    for (const bool put : {true, false}) {
      call(fd, data, put ? size : 1, put ? 1 : size);
      std::vector<double> rates;
      const auto begin = Clock::now();
      while (rates.size() < 5 || (seconds_since(begin) < least && rates.size() < 500)) {
        const auto one = Clock::now();
        call(fd, data, put ? size : 1, put ? 1 : size);
        rates.push_back(static_cast<double>(size) / seconds_since(one) / 1e6);
      }
      std::printf("{\"what\": \"%s\", \"bytes\": %llu, \"MB_per_s\": %.1f}\n", put ? "put" : "get", static_cast<unsigned long long>(size),
                  percentile(rates, 0.5));
    }
  }
  std::fflush(stdout);
}

int calls(const std::vector<std::string>& words) {
  if (words.size() == 2 && words[0] == "direct") {
    int port = 0;
    const int listener = bench::listen_on("127.0.0.1", port);
    const pid_t worker = spawn({words[1], std::to_string(port), "127.0.0.1", "false"});
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    bench::no_delay(fd);
    measure_calls(fd);
    close(fd);
    waitpid(worker, nullptr, 0);
    return 0;
  }
  if (words.size() == 3 && words[0] == "tunnel") {
    measure_calls(bench::connect_to(words[1], std::stoi(words[2])));
    return 0;
  }
  if (words.size() == 3 && words[0] == "flotilla") {
    const flotilla::Daemon daemon;
    flotilla::WorkerSpec spec;
    spec.executable = "./bench_worker";
    spec.label = words[1];
    spec.files = {{.path = words[2], .name = "bench_worker", .mode = 0755}};
    const flotilla::Worker worker = daemon.start_worker(spec);
    measure_calls(worker.fd());
    return 0;
  }
  return 2;
}

int commands(const std::vector<std::string>& words) {
  if (words.size() != 2) return 2;
  const int count = std::stoi(words[1]);
  double took = 0;
  if (words[0] == "spawn") {
    const auto begin = Clock::now();
    for (int started = 0, ended = 0; ended < count;) {
      while (started < count && started - ended < 2) {
        spawn({"/bin/true"});
        ++started;
      }
      waitpid(-1, nullptr, 0);
      ++ended;
    }
    took = seconds_since(begin);
  } else {
    const flotilla::Daemon daemon;
    daemon.run({.argv = {"/bin/true"}});
    const auto begin = Clock::now();
    flotilla::CommandSpec spec;
    spec.argv = {"/bin/true"};
    const auto jobs = daemon.submit_many(std::vector<flotilla::CommandSpec>(static_cast<std::size_t>(count), spec));
    for (const auto& info : daemon.wait_all(jobs))
      if (info.state != flotilla::JobState::finished) {
        std::fprintf(stderr, "bench: job %llu: %s\n", static_cast<unsigned long long>(info.id), info.message.c_str());
        return 1;
      }
    took = seconds_since(begin);
    std::vector<double> alone;
    for (int i = 0; i < 200; ++i) {
      const auto one = Clock::now();
      daemon.submit(spec).wait();
      alone.push_back(seconds_since(one) * 1e3);
    }
    std::printf("{\"what\": \"one command, submit to result\", \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n", percentile(alone, 0.5),
                percentile(alone, 0.99));
  }
  std::printf("{\"what\": \"commands\", \"per_s\": %.1f, \"count\": %d}\n", count / took, count);
  return 0;
}

int typed(const std::vector<std::string>& words) {
  if (words.size() < 2) return 2;
  const int count = std::stoi(words[0]);
  const std::vector<std::string> argv(words.begin() + 1, words.end());
  std::vector<double> times;
  for (int i = 0; i < count; ++i) {
    const auto begin = Clock::now();
    int status = 0;
    waitpid(spawn(argv), &status, 0);
    times.push_back(seconds_since(begin) * 1e3);
    if (status != 0) {
      std::fprintf(stderr, "bench: %s ended with status %d\n", argv[0].c_str(), status);
      return 1;
    }
  }
  std::printf("{\"what\": \"typed\", \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n", percentile(times, 0.5), percentile(times, 0.99));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  int code = 2;
  try {
    if (!words.empty() && words[0] == "calls") code = calls({words.begin() + 1, words.end()});
    if (!words.empty() && words[0] == "commands") code = commands({words.begin() + 1, words.end()});
    if (!words.empty() && words[0] == "typed") code = typed({words.begin() + 1, words.end()});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench: %s\n", error.what());
    return 1;
  }
  if (code == 2)
    std::fprintf(stderr,
                 "usage: bench_driver calls direct WORKER | calls tunnel HOST PORT | calls flotilla LABEL WORKER\n"
                 "       bench_driver commands spawn N | commands flotilla N | typed N COMMAND...\n");
  return code;
}
