// The journal: every event, in order, in SQLite (WAL). What append() returned for is in the WAL and survives a kill -9 of anything;
// an fsync follows within 10 ms on a thread of its own. With Durability::disk append() waits for it.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "flotilla/v1/event.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::daemon {

enum class Durability { process, disk };

class Journal {
 public:
  // Opens or makes `dir`/journal.db and locks it for this process. A journal of a newer major format is refused.
  static Result<std::unique_ptr<Journal>> open(const std::filesystem::path& dir, Durability durability);
  virtual ~Journal() = default;

  // 16 random bytes, made with the journal.
  virtual const std::string& instance() const = 0;
  // All events, oldest first.
  virtual Status replay(const std::function<void(const v1::Event&)>& each) = 0;
  // All or none, as one commit. On failure nothing was written and the call may be repeated.
  virtual Status append(const std::vector<v1::Event>& events) = 0;

  // Small secrets of this instance (the CA's key, tokens), by name; "" = not there.
  virtual std::string get(const std::string& name) = 0;
  virtual Status put(const std::string& name, const std::string& value) = 0;
};

}  // namespace flotilla::daemon
