#include "daemon/store/output_store.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

namespace flotilla::daemon {
namespace fs = std::filesystem;

fs::path OutputStore::path(JobId job, unsigned stream) const {
  return dir_ / std::to_string(job.value / 1000) / (std::to_string(job.value) + (stream == 2 ? ".err" : ".out"));
}

OutputStore::Stream& OutputStore::stream(JobId job, unsigned stream) {
  auto [it, added] = streams_.try_emplace(job.value * 2 + (stream - 1));
  if (added) {
    struct stat info {};
    if (stat(path(job, stream).c_str(), &info) == 0) it->second.size = it->second.taken = static_cast<std::uint64_t>(info.st_size);
  }
  return it->second;
}

std::uint64_t OutputStore::taken(JobId job, unsigned which) { return stream(job, which).taken; }

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
  if (offset < s.taken) {
    const std::uint64_t known = std::min<std::uint64_t>(s.taken - offset, data.size());
    data.remove_prefix(known);
    offset += known;
  }
  if (data.empty()) return {};
  const std::uint64_t end = offset + data.size();
  std::string_view kept = data;
  if (s.size >= limit_) kept = {};
  else if (s.size + kept.size() > limit_) kept = kept.substr(0, limit_ - s.size);
  if (!kept.empty() && !s.fd)
    if (auto status = open(job, which, s); !status) return status;
  while (!kept.empty()) {
    const ssize_t n = pwrite(s.fd.get(), kept.data(), kept.size(), static_cast<off_t>(s.size));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno_error(Code::resource_exhausted, "keep the output of job " + std::to_string(job.value)));
    s.size += static_cast<std::uint64_t>(n);
    kept.remove_prefix(static_cast<std::size_t>(n));
  }
  s.taken = end;
  return {};
}

Result<std::string> OutputStore::read(JobId job, unsigned which, std::uint64_t offset, std::size_t max) {
  Stream& s = stream(job, which);
  if (offset >= s.size) return std::string{};
  const bool was_open = static_cast<bool>(s.fd);
  if (!was_open)
    if (auto status = open(job, which, s); !status) return fail(status.error());
  std::string data(std::min<std::uint64_t>(max, s.size - offset), '\0');
  const ssize_t n = pread(s.fd.get(), data.data(), data.size(), static_cast<off_t>(offset));
  if (n < 0) return fail(errno_error(Code::internal, "read the output of job " + std::to_string(job.value)));
  data.resize(static_cast<std::size_t>(n));
  return data;
}

void OutputStore::close(JobId job) {
  for (const unsigned which : {1u, 2u})
    if (const auto it = streams_.find(job.value * 2 + (which - 1)); it != streams_.end()) it->second.fd.reset();
}

void OutputStore::remove(JobId job) {
  for (const unsigned which : {1u, 2u}) {
    streams_.erase(job.value * 2 + (which - 1));
    unlink(path(job, which).c_str());
  }
}

}  // namespace flotilla::daemon
