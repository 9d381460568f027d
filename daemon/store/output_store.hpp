// What jobs wrote, kept in files: DIR/<job / 1000>/<job>.out and .err. Offsets are those of the job's stream, and of the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>

#include "proto/base/ids.hpp"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

class OutputStore {
 public:
  // Beyond `limit_bytes` a stream of a job is no longer kept; it is still counted.
  OutputStore(std::filesystem::path dir, std::uint64_t limit_bytes) : dir_(std::move(dir)), limit_(limit_bytes) {}

  // How much of the stream has been taken. stream: 1 stdout, 2 stderr.
  std::uint64_t taken(JobId job, unsigned stream);
  // And how much of it can be read.
  std::uint64_t kept(JobId job, unsigned stream);
  // The limit is reached: nothing more will be kept.
  bool full(JobId job, unsigned stream) { return taken(job, stream) >= limit_; }
  // Data that was taken before is skipped; data beyond what was taken is refused. On failure (no room) what did fit is taken.
  Status append(JobId job, unsigned stream, std::uint64_t offset, std::string_view data);
  // What lies before `offset` will never come: it reads as zeros.
  void pass_over(JobId job, unsigned stream, std::uint64_t offset);
  // At most `max` bytes from `offset`; empty at the end of what is there.
  Result<std::string> read(JobId job, unsigned stream, std::uint64_t offset, std::size_t max);
  void close(JobId job);  // it has ended: its files need not stay open
  // Removes what is there of jobs after this one: of another journal than the present one.
  void remove_after(JobId last);

 private:
  struct Stream {
    unique_fd fd;
    std::uint64_t taken = 0;
  };
  std::filesystem::path path(JobId job, unsigned stream) const;
  Stream& stream(JobId job, unsigned stream);
  Status open(JobId job, unsigned stream, Stream& into);

  std::filesystem::path dir_;
  std::uint64_t limit_;
  std::unordered_map<std::uint64_t, Stream> streams_;  // job * 2 + stream - 1
};

}  // namespace flotilla::daemon
