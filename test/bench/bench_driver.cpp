// Measures one way to a worker, or one way to run commands, and prints JSON, one object a line.
//   bench_driver calls direct WORKER              the worker's own socket on loopback
//   bench_driver calls tunnel HOST PORT           whatever stands behind that address
//   bench_driver calls flotilla LABEL WORKER      a worker of ours, on a pilot with that label
//   bench_driver beside (direct | tunnel | flotilla) ...   the same ways: calls alone, and while a second channel moves 16 MiB arrays
//   bench_driver message LABEL WORKER BYTES       one message of that size there, and one back
//   bench_driver commands spawn N | flotilla N    /bin/true, N times: posix_spawn, one in flight for each processor; through daemon and pilot
//   bench_driver typed N COMMAND...               a command as typed, N times one after the other: from its start to its end
#include <flotilla/client.hpp>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <thread>

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

// One way to a worker: connections to it, and what keeps them.
class Way {
 public:
  // Says whether there is such a way.
  bool open(const std::vector<std::string>& words) {
    words_ = words;
    const bool direct = words.size() == 2 && words[0] == "direct";
    const bool other = words.size() == 3 && (words[0] == "tunnel" || words[0] == "flotilla");
    if (other && words[0] == "flotilla") daemon_ = std::make_unique<flotilla::Daemon>();
    return direct || other;
  }
  ~Way() {
    workers_.clear();
    for (const int fd : own_) close(fd);
    for (const pid_t pid : children_) waitpid(pid, nullptr, 0);
  }

  // A further worker.
  int connection() {
    if (words_[0] == "flotilla") {
      flotilla::WorkerSpec spec;
      spec.executable = "./bench_worker";
      spec.label = words_[1];
      spec.files = {{.path = words_[2], .name = "bench_worker", .mode = 0755}};
      workers_.push_back(daemon_->start_worker(spec));
      return workers_.back().fd();
    }
    if (words_[0] == "tunnel") {
      own_.push_back(bench::connect_to(words_[1], std::stoi(words_[2])));
    } else {
      int port = 0;
      const int listener = bench::listen_on("127.0.0.1", port);
      children_.push_back(spawn({words_[1], std::to_string(port), "127.0.0.1", "false"}));
      own_.push_back(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
      bench::no_delay(own_.back());
      close(listener);
    }
    return own_.back();
  }

 private:
  std::vector<std::string> words_;
  std::unique_ptr<flotilla::Daemon> daemon_;
  std::vector<flotilla::Worker> workers_;
  std::vector<int> own_;
  std::vector<pid_t> children_;
};

int calls(const std::vector<std::string>& words) {
  Way way;
  if (!way.open(words)) return 2;
  measure_calls(way.connection());
  return 0;
}

int beside(const std::vector<std::string>& words) {
  Way way;
  if (!way.open(words)) return 2;
  const int fd = way.connection(), bulk = way.connection();
  std::vector<char> data(sizeof(bench::Request) + 1024);
  const auto measure = [&](const char* what) {
    std::vector<double> times;
    for (const auto begin = Clock::now(); seconds_since(begin) < 3 || times.size() < 500;) {
      const auto one = Clock::now();
      call(fd, data, 1024, 1024);
      times.push_back(seconds_since(one) * 1e6);
    }
    std::printf("{\"what\": \"%s\", \"p50_us\": %.2f, \"p99_us\": %.2f}\n", what, percentile(times, 0.5), percentile(times, 0.99));
  };
  measure("warm");
  measure("alone");
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> moved{0};
  std::thread mover([&] {
    constexpr std::uint64_t size = 16u << 20;
    std::vector<char> array(sizeof(bench::Request) + size);
    while (!stop) {
      call(bulk, array, size, size);
      moved += 2 * size;
    }
  });
  while (moved == 0) call(fd, data, 1024, 1024);
  const auto begin = Clock::now();
  const std::uint64_t before = moved;
  measure("beside");
  std::printf("{\"what\": \"bulk\", \"MB_per_s\": %.1f}\n", static_cast<double>(moved - before) / seconds_since(begin) / 1e6);
  stop = true;
  mover.join();
  return 0;
}

int message(const std::vector<std::string>& words) {
  Way way;
  if (words.size() != 3 || !way.open({"flotilla", words[0], words[1]})) return 2;
  const auto size = std::stoull(words[2]);
  std::vector<char> data(sizeof(bench::Request) + size);
  const int fd = way.connection();
  call(fd, data, size, 1);
  call(fd, data, 1, size);
  std::printf("{\"what\": \"message\", \"bytes\": %llu}\n", size);
  return 0;
}

int commands(const std::vector<std::string>& words) {
  if (words.size() != 2) return 2;
  const int count = std::stoi(words[1]);
  double took = 0;
  if (words[0] == "spawn") {
    const int at_once = static_cast<int>(std::thread::hardware_concurrency());
    const auto begin = Clock::now();
    for (int started = 0, ended = 0; ended < count;) {
      while (started < count && started - ended < at_once) {
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
    if (!words.empty() && words[0] == "beside") code = beside({words.begin() + 1, words.end()});
    if (!words.empty() && words[0] == "message") code = message({words.begin() + 1, words.end()});
    if (!words.empty() && words[0] == "commands") code = commands({words.begin() + 1, words.end()});
    if (!words.empty() && words[0] == "typed") code = typed({words.begin() + 1, words.end()});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench: %s\n", error.what());
    return 1;
  }
  if (code == 2)
    std::fprintf(stderr,
                 "usage: bench_driver calls direct WORKER | calls tunnel HOST PORT | calls flotilla LABEL WORKER\n"
                 "       bench_driver beside (as calls) | message LABEL WORKER BYTES\n"
                 "       bench_driver commands spawn N | commands flotilla N | typed N COMMAND...\n");
  return code;
}
