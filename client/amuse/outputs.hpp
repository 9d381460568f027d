// Where a worker's output goes on the script's machine: a file, or a connection that the script opened for it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "proto/base/unique_fd.hpp"

namespace flotilla::amuse {

// Its methods may be called from any thread. What cannot be written is told once on stderr and dropped.
class Output {
 public:
  virtual ~Output() = default;
  virtual void write(std::string_view bytes) = 0;
};

class Outputs {
 public:
  // A connection of the script; the name under which workers are sent there.
  std::string add(unique_fd connection);
  // `target`: "/dev/null", such a name, or the path of a file, which is appended to. Null for nothing.
  std::shared_ptr<Output> open(const std::string& target);

 private:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Output>> connections_;
};

}  // namespace flotilla::amuse
