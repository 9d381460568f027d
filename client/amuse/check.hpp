// `flotilla amuse test`: is everything there, here and on a resource, that AMUSE needs to run its codes there?
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "client/amuse/core/probe.hpp"
#include "client/amuse/install.hpp"
#include "flotilla/client.hpp"

namespace flotilla::amuse {

struct CheckOptions {
  std::string resource = "local";
  std::string python;     // empty = python3 in PATH
  std::string program;    // flotilla
  std::string amuse_dir;  // on the resource; empty = it is looked for
};

class Check {
 public:
  // Told as each step begins (running) and when it is over; on the thread that runs it.
  using OnStep = std::function<void(const TestStep&)>;
  Check(CheckOptions options, OnStep on_step) : options_(std::move(options)), on_step_(std::move(on_step)) {}
  Check(const Check&) = delete;
  Check& operator=(const Check&) = delete;

  // The user's machine; no daemon is needed.
  void here();
  // The resource, through a pilot of its own that is gone at the end. Throws a FlotillaError when the daemon is lost.
  void there(const Daemon& daemon);
  // From any thread, before this process ends: the pilot is told to end with what still runs on it, which ends with this process.
  void interrupt();

 private:
  using Status = TestStep::Status;
  TestStep begin(const std::string& name);
  void end(TestStep step);
  void skip(const std::string& name, const std::string& reason);

  bool reach(const Daemon& daemon);
  bool start_pilot(const Daemon& daemon);
  void end_pilot();
  void try_channel(const Daemon& daemon);
  void try_codes(const Daemon& daemon);
  // Whether it answered.
  bool try_code(const Daemon& daemon, const FoundCode& code, unsigned processes, const std::string& name);
  std::optional<Probe> probe(const Daemon& daemon);
  void make_at_home(std::map<std::string, std::string>& env) const;

  const CheckOptions options_;
  const OnStep on_step_;
  Moment began_;
  std::string root_, version_;  // of AMUSE here; empty: there is none
  bool local_ = true;           // the resource is this machine
  bool amuse_dir_known_ = false;

  std::mutex mutex_;  // guards changes of what interrupt() needs
  bool interrupted_ = false;
  std::optional<Pilot> pilot_;  // once started, it stays
  std::optional<Job> probing_;
};

}  // namespace flotilla::amuse
