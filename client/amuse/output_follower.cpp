#include "client/amuse/output_follower.hpp"

#include <cstdio>

namespace flotilla::amuse {

OutputFollower::OutputFollower(Job job, std::shared_ptr<Output> standard_output, std::shared_ptr<Output> standard_error)
    : job_(std::move(job)), out_(std::move(standard_output)), err_(std::move(standard_error)), thread_([this] { follow(); }) {}

OutputFollower::~OutputFollower() { thread_.join(); }

void OutputFollower::follow() {
  try {
    job_.follow([this](int stream, std::string_view bytes) {
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
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "the output of job %llu is followed no more: %s\n", static_cast<unsigned long long>(job_.id()), error.what());
  }
  const std::lock_guard lock(mutex_);
  over_ = true;
  changed_.notify_all();
}

std::string OutputFollower::home() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return over_ || home_.known(); });
  return home_.home();
}

}  // namespace flotilla::amuse
