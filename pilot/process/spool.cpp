#include "pilot/process/spool.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "proto/base/random.hpp"

namespace flotilla::pilot {
namespace {

// Blocks are given back to the disk in pieces of this size.
constexpr std::uint64_t punch_bytes = 4u << 20;

Result<unique_fd> nameless_file(const std::string& folder) {
  unique_fd fd(open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd) return fd;
  const std::string name = folder + "/spool-" + random_hex(8);  // file systems without O_TMPFILE
  fd.reset(open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) return fail(errno_error(Code::resource_exhausted, "keep output in " + folder));
  unlink(name.c_str());
  return fd;
}

}  // namespace

Status Spool::write_at(std::string_view data, std::uint64_t offset) {
  while (!data.empty()) {
    const ssize_t n = pwrite(file_.get(), data.data(), data.size(), static_cast<off_t>(offset - file_base_));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno_error(Code::resource_exhausted, "keep output in " + folder_));
    data.remove_prefix(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

Status Spool::to_file() {
  auto file = nameless_file(folder_);
  if (!file) return fail(file.error());
  file_ = std::move(*file);
  file_base_ = punched_ = begin_;
  auto written = write_at(std::string_view(memory_).substr(begin_ - memory_begin_), begin_);
  if (!written) {
    file_.reset();
    return written;
  }
  memory_.clear();
  memory_.shrink_to_fit();
  return {};
}

bool Spool::to_memory() {
  auto held = read(begin_, static_cast<std::size_t>(end_ - begin_));
  if (!held) return false;
  file_.reset();
  memory_ = std::move(*held);
  memory_begin_ = begin_;
  return true;
}

Status Spool::append(std::string_view data) {
  const bool little = end_ - begin_ + data.size() <= spool_memory_bytes;
  if (!file_ && !little)
    if (auto moved = to_file(); !moved) return moved;
  if (file_)
    if (auto written = write_at(data, end_); !written && (!little || !to_memory())) return written;
  if (!file_) {
    if (memory_.empty()) memory_begin_ = end_;
    memory_.append(data);
  }
  end_ += data.size();
  return {};
}

Result<std::string> Spool::read(std::uint64_t from, std::size_t count) const {
  if (from < begin_ || from > end_) return fail(Code::internal, "output was read outside of what is kept");
  count = static_cast<std::size_t>(std::min<std::uint64_t>(count, end_ - from));
  if (!file_) return memory_.substr(from - memory_begin_, count);
  std::string data(count, '\0');
  std::size_t done = 0;
  while (done < count) {
    const ssize_t n = pread(file_.get(), data.data() + done, count - done, static_cast<off_t>(from + done - file_base_));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(errno_error(Code::internal, "read the output kept in " + folder_));
    done += static_cast<std::size_t>(n);
  }
  return data;
}

void Spool::drop_below(std::uint64_t offset) {
  begin_ = std::clamp(offset, begin_, end_);
  if (begin_ == end_) {  // nothing is held: back to memory
    file_.reset();
    memory_.clear();
    memory_begin_ = begin_;
  } else if (file_) {
    if (begin_ - punched_ >= punch_bytes) {
      // Where the file system cannot, the file grows; its end comes with the stream's.
      (void)fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(begin_ - file_base_));
      punched_ = begin_;
    }
  } else if (begin_ - memory_begin_ > memory_.size() / 2) {
    memory_.erase(0, begin_ - memory_begin_);
    memory_begin_ = begin_;
  }
}

}  // namespace flotilla::pilot
