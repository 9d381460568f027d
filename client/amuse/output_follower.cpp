#include "client/amuse/output_follower.hpp"

#include <chrono>
#include <cstdio>

namespace flotilla::amuse {
namespace {
using namespace std::chrono_literals;

constexpr auto home_patience = 10s;  // a worker that has connected has said it before
constexpr auto last_patience = 10s;  // for the output of a job that is being ended: TERM, 5 s, KILL
}  // namespace

OutputFollower::OutputFollower(Job job, std::shared_ptr<Output> standard_output, std::shared_ptr<Output> standard_error,
                               std::stop_token over)
    : job_(std::move(job)), out_(std::move(standard_output)), err_(std::move(standard_error)), thread_([this] { follow(); }) {
  stops_too_.emplace(std::move(over), [this] { stop_.request_stop(); });
}

OutputFollower::~OutputFollower() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, last_patience, [this] { return over_; });
  }
  stop_.request_stop();
  thread_.join();
}

void OutputFollower::follow() {
  try {
    job_.follow(
        [this](int stream, std::string_view bytes) {
          if (stream == 1) {
            if (out_) out_->write(bytes);
            return;
          }
          std::string rest;
          {
            const std::lock_guard lock(mutex_);
            rest = home_.take(bytes);
            if (home_.known()) changed_.notify_all();
          }
          if (err_ && !rest.empty()) err_->write(rest);
        },
        stop_.get_token());
  } catch (const CanceledError&) {
    // Its end was waited for long enough.
  } catch (const std::exception& error) {
    std::fprintf(stderr, "the output of job %llu is followed no more: %s\n", static_cast<unsigned long long>(job_.id()), error.what());
  }
  const std::lock_guard lock(mutex_);
  over_ = true;
  changed_.notify_all();
}

std::string OutputFollower::home() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, home_patience, [this] { return over_ || home_.known(); });
  return home_.home();
}

}  // namespace flotilla::amuse
