// What jobs wrote, kept in files: DIR/<job / 1000>/<job>.out and .err. Offsets are those of the job's stream.
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
  // Data that was taken before is skipped. A gap (the pilot no longer has it) is filled with nothing: reads skip it.
  Status append(JobId job, unsigned stream, std::uint64_t offset, std::string_view data);
  // At most `max` bytes from `offset`; empty at the end of what is there.
  Result<std::string> read(JobId job, unsigned stream, std::uint64_t offset, std::size_t max);
  void close(JobId job);  // it has ended: its files need not stay open
  void remove(JobId job);

 private:
  struct Stream {
    unique_fd fd;
    std::uint64_t size = 0;   // of the file
    std::uint64_t taken = 0;  // of the stream
  };
  std::filesystem::path path(JobId job, unsigned stream) const;
  Stream& stream(JobId job, unsigned stream);
  Status open(JobId job, unsigned stream, Stream& into);

  std::filesystem::path dir_;
  std::uint64_t limit_;
  std::unordered_map<std::uint64_t, Stream> streams_;  // job * 2 + stream - 1
};

}  // namespace flotilla::daemon
