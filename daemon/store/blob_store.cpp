#include "daemon/store/blob_store.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"

namespace flotilla::daemon {
namespace fs = std::filesystem;

struct BlobStore::Writer::Hash {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  Hash() { EVP_DigestInit_ex(context, EVP_sha256(), nullptr); }
  ~Hash() { EVP_MD_CTX_free(context); }
};

BlobStore::Writer::Writer() : hash_(std::make_unique<Hash>()) {}
BlobStore::Writer::~Writer() {
  if (fd_) unlink(temporary_.c_str());
}

fs::path BlobStore::path(const std::string& sha256) const { return dir_ / to_hex(sha256); }

bool BlobStore::has(const std::string& sha256) const { return access(path(sha256).c_str(), R_OK) == 0; }

std::uint64_t BlobStore::size(const std::string& sha256) const {
  std::error_code problem;
  const auto size = fs::file_size(path(sha256), problem);
  return problem ? 0 : size;
}

Result<std::string> BlobStore::read(const std::string& sha256, std::uint64_t offset, std::size_t max) const {
  unique_fd fd(open(path(sha256).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail(errno_error(Code::not_found, "open input file " + to_hex(sha256)));
  std::string data(max, '\0');
  const ssize_t n = pread(fd.get(), data.data(), max, static_cast<off_t>(offset));
  if (n < 0) return fail(errno_error(Code::internal, "read input file " + to_hex(sha256)));
  data.resize(static_cast<std::size_t>(n));
  return data;
}

Result<std::unique_ptr<BlobStore::Writer>> BlobStore::create(const std::string& sha256) {
  if (sha256.size() != 32) return fail(Code::invalid_argument, "a SHA-256 has 32 bytes");
  if (auto status = make_private_dir(dir_); !status) return fail(status.error());
  std::unique_ptr<Writer> writer(new Writer);
  writer->sha256_ = sha256;
  writer->final_ = path(sha256);
  writer->temporary_ = dir_ / (to_hex(sha256) + "." + random_hex(4) + ".tmp");
  writer->fd_.reset(open(writer->temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!writer->fd_) return fail(errno_error(Code::resource_exhausted, "create " + writer->temporary_.string()));
  return writer;
}

Status BlobStore::Writer::write(std::string_view data) {
  EVP_DigestUpdate(hash_->context, data.data(), data.size());
  size_ += data.size();
  while (!data.empty()) {
    const ssize_t n = ::write(fd_.get(), data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno_error(Code::resource_exhausted, "keep an input file"));
    data.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

Result<std::uint64_t> BlobStore::Writer::finish() {
  std::string digest(32, '\0');
  EVP_DigestFinal_ex(hash_->context, reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  if (digest != sha256_) return fail(Code::invalid_argument, "an input file's content does not fit its SHA-256");
  if (rename(temporary_.c_str(), final_.c_str()) != 0) return fail(errno_error(Code::resource_exhausted, "keep an input file"));
  fd_.reset();
  return size_;
}

}  // namespace flotilla::daemon
