// Input files by content: DIR/<SHA-256 in hex>.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

class BlobStore {
 public:
  explicit BlobStore(std::filesystem::path dir) : dir_(std::move(dir)) {}

  bool has(const std::string& sha256) const;
  std::uint64_t size(const std::string& sha256) const;
  Result<std::string> read(const std::string& sha256, std::uint64_t offset, std::size_t max) const;

  // One blob being written; it appears when finish() has found that its content fits its hash.
  class Writer {
   public:
    ~Writer();
    Status write(std::string_view data);
    Result<std::uint64_t> finish();

   private:
    friend class BlobStore;
    struct Hash;
    std::filesystem::path temporary_, final_;
    std::string sha256_;
    unique_fd fd_;
    std::unique_ptr<Hash> hash_;
    std::uint64_t size_ = 0;
    Writer();
  };
  Result<std::unique_ptr<Writer>> create(const std::string& sha256);

 private:
  std::filesystem::path path(const std::string& sha256) const;
  std::filesystem::path dir_;
};

}  // namespace flotilla::daemon
