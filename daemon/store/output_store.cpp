#include "daemon/store/output_store.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace flotilla::daemon {
namespace fs = std::filesystem;

fs::path OutputStore::path(JobId job, unsigned stream) const {
  return dir_ / std::to_string(job.value / 1000) / (std::to_string(job.value) + (stream == 2 ? ".err" : ".out"));
}

OutputStore::Stream& OutputStore::stream(JobId job, unsigned stream) {
  auto [it, added] = streams_.try_emplace(job.value * 2 + (stream - 1));
  if (added) {
    struct stat info {};
    if (stat(path(job, stream).c_str(), &info) == 0) it->second.taken = static_cast<std::uint64_t>(info.st_size);
  }
  return it->second;
}

std::uint64_t OutputStore::taken(JobId job, unsigned which) { return stream(job, which).taken; }
std::uint64_t OutputStore::kept(JobId job, unsigned which) { return std::min(taken(job, which), limit_); }

Status OutputStore::open(JobId job, unsigned which, Stream& into) {
  const fs::path file = path(job, which);
  std::error_code ignored;
  fs::create_directories(file.parent_path(), ignored);
  into.fd.reset(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!into.fd) return fail(errno_error(Code::resource_exhausted, "keep the output of job " + std::to_string(job.value)));
  return {};
}

Status OutputStore::append(JobId job, unsigned which, std::uint64_t offset, std::string_view data) {
  Stream& s = stream(job, which);
  const std::uint64_t end = offset + data.size();
  if (end <= s.taken) return {};
  // Beyond the limit nothing is kept, so nothing can be missing (after a restart no more is known than the file's size).
  if (s.taken >= limit_) {
    s.taken = end;
    return {};
  }
  if (offset > s.taken)
    return fail(Code::failed_precondition,
                fmt::format("output of job {} comes out of turn: at {} with {} there", job.value, offset, s.taken));
  data.remove_prefix(s.taken - offset);
  std::string_view kept = data.substr(0, limit_ - s.taken);
  if (!s.fd)
    if (auto status = open(job, which, s); !status) return status;
  while (!kept.empty()) {
    const ssize_t n = pwrite(s.fd.get(), kept.data(), kept.size(), static_cast<off_t>(s.taken));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno_error(Code::resource_exhausted, "keep the output of job " + std::to_string(job.value)));
    s.taken += static_cast<std::uint64_t>(n);
    kept.remove_prefix(static_cast<std::size_t>(n));
  }
  s.taken = end;
  return {};
}

void OutputStore::pass_over(JobId job, unsigned which, std::uint64_t offset) {
  Stream& s = stream(job, which);
  s.taken = std::max(s.taken, offset);
}

Result<std::string> OutputStore::read(JobId job, unsigned which, std::uint64_t offset, std::size_t max) {
  Stream& s = stream(job, which);
  const std::uint64_t there = std::min(s.taken, limit_);
  if (offset >= there) return std::string{};
  const bool was_open = static_cast<bool>(s.fd);
  if (!was_open)
    if (auto status = open(job, which, s); !status) return fail(status.error());
  std::string data(std::min<std::uint64_t>(max, there - offset), '\0');
  const ssize_t n = pread(s.fd.get(), data.data(), data.size(), static_cast<off_t>(offset));
  if (n < 0) return fail(errno_error(Code::internal, "read the output of job " + std::to_string(job.value)));
  data.resize(static_cast<std::size_t>(n));
  return data;
}

void OutputStore::close(JobId job) {
  for (const unsigned which : {1u, 2u})
    if (const auto it = streams_.find(job.value * 2 + (which - 1)); it != streams_.end()) it->second.fd.reset();
}

void OutputStore::remove_after(JobId last) {
  std::error_code problem;
  for (fs::directory_iterator folders(dir_, problem), end; !problem && folders != end; folders.increment(problem)) {
    const std::uint64_t thousand = std::strtoull(folders->path().filename().c_str(), nullptr, 10);
    if (thousand < last.value / 1000) continue;
    std::error_code inner;
    for (fs::directory_iterator files(folders->path(), inner), none; !inner && files != none; files.increment(inner))
      if (std::strtoull(files->path().filename().c_str(), nullptr, 10) > last.value) unlink(files->path().c_str());
  }
  streams_.clear();
}

}  // namespace flotilla::daemon
