#include "pilot/process/blob_store.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <openssl/evp.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "proto/base/random.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::pilot {
namespace fs = std::filesystem;

struct BlobStore::Transfer {
  fs::path temporary;
  unique_fd fd;
  std::uint64_t size = 0;
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash{EVP_MD_CTX_new(), EVP_MD_CTX_free};
  ~Transfer() {
    if (fd) unlink(temporary.c_str());
  }
};

BlobStore::BlobStore(fs::path dir) : dir_(std::move(dir)) {}
BlobStore::~BlobStore() = default;

fs::path BlobStore::file_of(const std::string& sha256) const { return dir_ / to_hex(sha256); }

bool BlobStore::has(const std::string& sha256) const { return access(file_of(sha256).c_str(), R_OK) == 0; }

std::uint64_t BlobStore::begin(const std::string& sha256) {
  auto& transfer = transfers_[sha256];
  if (!transfer) {
    transfer = std::make_unique<Transfer>();
    transfer->temporary = dir_ / (to_hex(sha256) + "." + random_hex(4) + ".part");
    transfer->fd.reset(open(transfer->temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    EVP_DigestInit_ex(transfer->hash.get(), EVP_sha256(), nullptr);
  }
  return transfer->size;
}

void BlobStore::abandon(const std::string& sha256) { transfers_.erase(sha256); }

Result<BlobStore::Progress> BlobStore::add(const std::string& sha256, std::uint64_t offset, const std::string& data, bool last) {
  auto it = transfers_.find(sha256);
  if (it == transfers_.end() || it->second->size != offset) return Progress::more;  // a repetition after a reconnect
  Transfer& transfer = *it->second;
  std::size_t done = transfer.fd ? 0 : data.size() + 1;
  while (done < data.size()) {
    const ssize_t n = write(transfer.fd.get(), data.data() + done, data.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) break;
    done += static_cast<std::size_t>(n);
  }
  if (done != data.size()) {
    auto error = errno_error(Code::resource_exhausted, "keep an input file in " + dir_.string());
    transfers_.erase(it);
    return fail(std::move(error));
  }
  EVP_DigestUpdate(transfer.hash.get(), data.data(), data.size());
  transfer.size += data.size();
  if (!last) return Progress::more;

  std::string digest(32, '\0');
  EVP_DigestFinal_ex(transfer.hash.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  if (digest != sha256) {
    transfers_.erase(it);
    return fail(Code::unavailable, "an input file came damaged: its SHA-256 is " + to_hex(digest) + ", not " + to_hex(sha256));
  }
  if (rename(transfer.temporary.c_str(), file_of(sha256).c_str()) != 0) {
    auto error = errno_error(Code::resource_exhausted, "keep an input file in " + dir_.string());
    transfers_.erase(it);
    return fail(std::move(error));
  }
  transfer.fd.reset();
  transfers_.erase(it);
  return Progress::complete;
}

bool is_inside_name(const std::string& name) {
  if (name.empty() || name[0] == '/' || name.find('\0') != std::string::npos) return false;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t slash = std::min(name.find('/', at), name.size());
    const std::string part = name.substr(at, slash - at);
    if (part.empty() || part == "." || part == "..") return false;
    at = slash + 1;
  }
  return true;
}

Status BlobStore::place(const v1::InputFile& file, const fs::path& folder) const {
  const std::string doing = "lay the input file '" + file.name() + "' into " + folder.string();
  if (!is_inside_name(file.name()))
    return fail(Code::invalid_argument, "cannot " + doing + ": the name must be a relative path inside the job's folder");
  const fs::path to = folder / file.name();
  std::error_code problem;
  if (to.has_parent_path()) fs::create_directories(to.parent_path(), problem);
  if (problem) return fail(Code::resource_exhausted, "cannot " + doing + ": " + problem.message());
  unique_fd from(open(file_of(file.sha256()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!from) return fail(errno_error(Code::not_found, doing));
  (void)futimens(from.get(), nullptr);  // used now: shrink_to() goes by this
  const mode_t mode = file.mode() != 0 ? static_cast<mode_t>(file.mode() & 0777) : 0644;
  unique_fd into(open(to.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!into) return fail(errno_error(Code::resource_exhausted, doing));
  // A copy that shares blocks where the file system can, else a real one.
  if (ioctl(into.get(), FICLONE, from.get()) != 0) {
    std::string buffer(1 << 20, '\0');
    for (;;) {
      const ssize_t got = read(from.get(), buffer.data(), buffer.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return fail(errno_error(Code::unavailable, doing));
      if (got == 0) break;
      for (ssize_t done = 0; done < got;) {
        const ssize_t n = write(into.get(), buffer.data() + done, static_cast<std::size_t>(got - done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(errno_error(Code::resource_exhausted, doing));
        done += n;
      }
    }
  }
  if (fchmod(into.get(), mode) != 0) return fail(errno_error(Code::permission_denied, doing));
  return {};
}

void BlobStore::shrink_to(std::uint64_t bytes) {
  struct Entry {
    fs::path path;
    timespec used;
    std::uint64_t size;
  };
  std::vector<Entry> entries;
  std::uint64_t total = 0;
  std::error_code problem;
  for (const auto& item : fs::directory_iterator(dir_, problem)) {
    struct stat info {};
    if (stat(item.path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    entries.push_back({item.path(), info.st_mtim, static_cast<std::uint64_t>(info.st_size)});
    total += entries.back().size;
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.used.tv_sec != b.used.tv_sec ? a.used.tv_sec < b.used.tv_sec : a.used.tv_nsec < b.used.tv_nsec;
  });
  for (const auto& entry : entries) {
    if (total <= bytes) return;
    if (unlink(entry.path.c_str()) == 0) total -= entry.size;
  }
}

}  // namespace flotilla::pilot
