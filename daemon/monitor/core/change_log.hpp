// The changes of late, one for each thing: what a watcher that knows everything up to some version has to be told.
// Watchers keep only a position in it, so that a slow one costs no memory. Bounded: the oldest are dropped, and a
// watcher that had not seen those needs a fresh snapshot.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "flotilla/v1/client.pb.h"

namespace flotilla::monitor {

class ChangeLog {
 public:
  ChangeLog(std::size_t most_entries, std::size_t most_bytes) : most_entries_(most_entries), most_bytes_(most_bytes) {}

  // Takes the place of an earlier change of the same thing.
  void add(v1::Change change);
  // Forgets all entries, counts on: for when nobody watches.
  void skip();

  std::uint64_t version() const { return version_; }
  // Whoever knows everything up to `version` can be brought up to date.
  bool reaches(std::uint64_t version) const { return version >= floor_ && version <= version_; }
  // At most `most` changes after `version`, oldest first. Moves `version` behind the last one.
  std::vector<const v1::Change*> after(std::uint64_t& version, std::size_t most) const;

  std::size_t size() const { return entries_.size(); }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Entry {
    v1::Change change;
    std::string key;
    std::size_t bytes = 0;
  };
  void drop(std::map<std::uint64_t, Entry>::iterator entry);

  const std::size_t most_entries_;
  const std::size_t most_bytes_;
  std::uint64_t version_ = 0;
  std::uint64_t floor_ = 0;  // all changes after this are in entries_
  std::size_t bytes_ = 0;
  std::map<std::uint64_t, Entry> entries_;
  std::unordered_map<std::string, std::uint64_t> by_key_;
};

// "job 12", "pilot 3", "resource hpc1"; empty for a change that names no thing.
std::string key_of(const v1::Change& change);

// What the page needs of a change. Left out: environments (they hold secrets), inputs, the tail of stderr (the page
// asks for it when it is wanted); long command lines are shortened.
v1::Change slim(const v1::Change& change);
// A job as the details panel shows it: complete but for inputs and the environment's values.
v1::Job detail(const v1::Job& job);

}  // namespace flotilla::monitor
