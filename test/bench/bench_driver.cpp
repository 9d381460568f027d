// Measures one way to a worker, or one way to run commands, and prints JSON, one object a line.
//   bench_driver calls direct WORKER              the worker's own socket on loopback
//   bench_driver calls tunnel HOST PORT           whatever stands behind that address
//   bench_driver calls flotilla LABEL WORKER      a worker of ours, on a pilot with that label
//   bench_driver calls amuse PORT LABEL WORKER    the same as an AMUSE script has it, by the worker port of `flotilla amuse serve`
//   bench_driver beside WAY                       the same ways: calls alone, and while a second channel moves 16 MiB arrays
//   bench_driver message BYTES WAY                one message of that size there, and one back
//   bench_driver turns (calls | arrays | beside | first) ROUNDS WAY / WAY   two ways or more in turn: a line for each round of each
//   bench_driver start WAY                        a worker: when it was asked for, when it was there, when its first answer came
//   bench_driver commands spawn N | flotilla N    /bin/true, N times: posix_spawn, one in flight for each processor; through daemon and pilot
//   bench_driver typed N COMMAND...               a command as typed, N times one after the other: from its start to its end
#include <flotilla/client.hpp>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <deque>
#include <memory>
#include <stdexcept>
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

constexpr std::size_t head = bench::wire::header_size;

void call(int fd, std::vector<char>& data, std::uint64_t there, std::uint64_t back) {
  // One write for header and data, as a message of a worker is.
  bench::put_header(data.data(), bench::request_id, bench::wire::header_count(back, "bytes"), there);
  if (!bench::write_all(fd, data.data(), head + there) || !bench::read_all(fd, data.data(), head + back)) bench::die("the worker is gone");
}

void measure_calls(int fd) {
  std::vector<char> data(head + (64u << 20));
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
    const bool amuse = words.size() == 4 && words[0] == "amuse";
    const bool other = words.size() == 3 && (words[0] == "tunnel" || words[0] == "flotilla");
    if (other && words[0] == "flotilla") daemon_ = std::make_unique<flotilla::Daemon>();
    return direct || amuse || other;
  }
  ~Way() { end_all(); }

  // Ends its workers.
  void end_all() {
    workers_.clear();
    for (const int fd : own_) close(fd);
    for (const pid_t pid : children_) waitpid(pid, nullptr, 0);
    own_.clear();
    children_.clear();
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
    } else if (words_[0] == "amuse") {
      own_.push_back(bench::connect_to("127.0.0.1", std::stoi(words_[1])));
      ask_for_worker(own_.back(), words_[2], words_[3]);
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
  // What AMUSE's distributed channel begins with.
  static void ask_for_worker(int fd, const std::string& label, const std::string& worker) {
    bench::wire::PackedStrings strings;
    for (const auto& each : {worker, std::string("/dev/null"), std::string("/dev/null"), label, std::string("/")}) strings.add(each);
    bench::wire::Header header{.big_endian = bench::wire::native_big_endian, .call_id = 1, .function_id = 10101010};
    header.counts[bench::wire::int32_type] = 2;
    header.counts[bench::wire::bool_type] = 1;
    header.counts[bench::wire::string_type] = static_cast<std::int32_t>(strings.lengths.size());
    unsigned char raw[head];
    bench::wire::format_header(header, raw);
    std::int32_t processes_and_threads[2] = {1, 0};
    bool dynamic_python = false;
    iovec parts[] = {{raw, head},
                     {processes_and_threads, sizeof processes_and_threads},
                     {&dynamic_python, 1},
                     {strings.lengths.data(), strings.lengths.size() * 4},
                     {strings.text.data(), strings.text.size()}};
    if (!bench::write_all(fd, "TYPE_WORKER", 11)) bench::die("the worker port");
    bench::wire::FdStream stream(fd);
    stream.write(parts, 5);
    bench::wire::Message answer;
    if (!bench::wire::receive(stream, answer)) throw std::runtime_error("the worker port closed the connection");
    if (answer.header.error) throw std::runtime_error(answer.strings.empty() ? "no worker" : std::string(answer.strings[0]));
  }

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
  std::vector<char> data(head + 1024);
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
    std::vector<char> array(head + size);
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
  if (words.size() < 2 || !way.open({words.begin() + 1, words.end()})) return 2;
  const auto size = std::stoull(words[0]);
  std::vector<char> data(head + size);
  const int fd = way.connection();
  call(fd, data, size, 1);
  call(fd, data, 1, size);
  std::printf("{\"what\": \"message\", \"bytes\": %llu}\n", size);
  return 0;
}

// Two or more ways, one after the other, again and again: what else the machine does meets all of them.
class Turns {
 public:
  int run(const std::vector<std::string>& words) {
    if (words.size() < 4) return 2;
    what_ = words[0];
    const int rounds = std::stoi(words[1]);
    for (auto at = words.begin() + 2; at < words.end();) {
      const auto end = std::find(at, words.end(), "/");
      auto& each = ways_.emplace_back();
      each.index = ways_.size() - 1;
      if (!each.way.open({at, end})) return 2;
      at = end == words.end() ? end : end + 1;
    }
    if (what_ != "calls" && what_ != "arrays" && what_ != "beside" && what_ != "first") return 2;
    for (auto& each : ways_) {
      if (what_ != "first") each.fd = each.way.connection();
      if (what_ == "beside") each.bulk = each.way.connection();
    }
    // Round 0 warms up.
    for (round_ = 0; round_ <= rounds; ++round_) {
      if (what_ == "calls") calls_in_slices();
      else
        for (auto& each : ways_) one(each);
    }
    return 0;
  }

 private:
  struct Each {
    Way way;
    std::size_t index = 0;
    int fd = -1, bulk = -1;
  };

  void say(const Each& each, const char* what, const char* unit, double p50, double p99) {
    if (round_ == 0) return;
    std::printf("{\"way\": %zu, \"round\": %d, \"what\": \"%s\", \"unit\": \"%s\", \"p50\": %.3f, \"p99\": %.3f}\n", each.index, round_,
                what, unit, p50, p99);
    std::fflush(stdout);
  }

  // Short slices in turn make one round: what comes and goes within it meets all ways as well.
  void calls_in_slices() {
    std::vector<std::vector<double>> times(ways_.size());
    for (int slice = 0; slice < 20; ++slice)
      for (auto& each : ways_) {
        auto& all = times[each.index];
        const auto more = small(each, 0.02, 20);
        all.insert(all.end(), more.begin(), more.end());
      }
    for (auto& each : ways_) say_calls(each, "call", times[each.index]);
  }

  void one(Each& each) {
    if (what_ == "arrays") {
      for (const bool put : {true, false}) {
        constexpr std::uint64_t size = 8'000'000;  // 10^6 doubles
        std::vector<double> rates;
        for (const auto begin = Clock::now(); rates.size() < 3 || seconds_since(begin) < 0.3;) {
          const auto start = Clock::now();
          call(each.fd, data_, put ? size : 1, put ? 1 : size);
          rates.push_back(static_cast<double>(size) / seconds_since(start) / 1e6);
        }
        say(each, put ? "put" : "get", "MB/s", percentile(rates, 0.5), percentile(rates, 0.01));
      }
    }
    if (what_ == "beside") {
      say_calls(each, "alone", small(each, 0.5, 300));
      std::atomic<bool> stop{false};
      std::atomic<std::uint64_t> moved{0};
      std::thread mover([&] {
        constexpr std::uint64_t size = 16u << 20;
        std::vector<char> array(head + size);
        while (!stop) {
          call(each.bulk, array, size, size);
          moved += 2 * size;
        }
      });
      while (moved == 0) call(each.fd, data_, 8, 8);
      const auto begin = Clock::now();
      const std::uint64_t before = moved;
      say_calls(each, "beside", small(each, 1, 300));
      const double rate = static_cast<double>(moved - before) / seconds_since(begin) / 1e6;
      say(each, "bulk", "MB/s", rate, rate);
      stop = true;
      mover.join();
    }
    if (what_ == "first") {
      const int fd = each.way.connection();
      std::vector<double> times;
      while (times.size() < 1050) times.push_back(timed(fd));
      say(each, "first", "us", times[0], times[0]);
      const std::vector<double> late(times.begin() + 950, times.end());  // about the thousandth
      say(each, "thousandth", "us", percentile(late, 0.5), percentile(late, 0.99));
      each.way.end_all();
    }
  }

  double timed(int fd) {
    const auto begin = Clock::now();
    call(fd, data_, 8, 8);
    return seconds_since(begin) * 1e6;
  }
  std::vector<double> small(Each& each, double least, std::size_t least_calls) {
    std::vector<double> times;
    for (const auto begin = Clock::now(); times.size() < least_calls || seconds_since(begin) < least;) times.push_back(timed(each.fd));
    return times;
  }
  void say_calls(const Each& each, const char* what, const std::vector<double>& times) {
    say(each, what, "us", percentile(times, 0.5), percentile(times, 0.99));
  }

  std::string what_;
  int round_ = 0;
  std::deque<Each> ways_;
  std::vector<char> data_ = std::vector<char>(head + (8u << 20));
};

int start(const std::vector<std::string>& words) {
  Way way;
  if (!way.open(words)) return 2;
  const auto now = [] { return std::chrono::duration<double, std::milli>(std::chrono::system_clock::now().time_since_epoch()).count(); };
  const double asked = now();
  const int fd = way.connection();
  const double there = now();
  std::vector<char> data(head + 8);
  call(fd, data, 8, 8);
  std::printf("{\"asked_ms\": %.3f, \"there_ms\": %.3f, \"answered_ms\": %.3f}\n", asked, there, now());
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
    if (!words.empty() && words[0] == "turns") code = Turns().run({words.begin() + 1, words.end()});
    if (!words.empty() && words[0] == "start") code = start({words.begin() + 1, words.end()});
    if (!words.empty() && words[0] == "commands") code = commands({words.begin() + 1, words.end()});
    if (!words.empty() && words[0] == "typed") code = typed({words.begin() + 1, words.end()});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench: %s\n", error.what());
    return 1;
  }
  if (code == 2)
    std::fprintf(stderr,
                 "usage: bench_driver (calls | beside | start | message BYTES) WAY\n"
                 "       bench_driver turns (calls | arrays | beside | first) ROUNDS WAY / WAY...\n"
                 "       bench_driver commands spawn N | commands flotilla N | typed N COMMAND...\n"
                 "WAY: direct WORKER | tunnel HOST PORT | flotilla LABEL WORKER | amuse PORT LABEL WORKER\n");
  return code;
}
