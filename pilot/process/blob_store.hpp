// Input files by their SHA-256, as they come in pieces from the daemon; shared by all pilots of a user on a node.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "flotilla/v1/types.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::pilot {

class BlobStore {
 public:
  explicit BlobStore(std::filesystem::path dir);
  ~BlobStore();

  bool has(const std::string& sha256) const;
  // The offset from which the content is wanted. An unfinished transfer goes on where it stood.
  std::uint64_t begin(const std::string& sha256);
  enum class Progress { more, complete };
  // Pieces out of order are refused; with the last one the hash is checked, and on a difference everything is dropped.
  Result<Progress> add(const std::string& sha256, std::uint64_t offset, const std::string& data, bool last);
  void abandon(const std::string& sha256);

  // Lays a copy into the folder: the job may write to it. `name` stays inside of the folder, or it is refused.
  Status place(const v1::InputFile& file, const std::filesystem::path& folder) const;
  // The longest unused go first until at most `bytes` are left.
  void shrink_to(std::uint64_t bytes);

 private:
  struct Transfer;
  std::filesystem::path file_of(const std::string& sha256) const;
  std::filesystem::path dir_;
  std::map<std::string, std::unique_ptr<Transfer>> transfers_;
};

// A relative path without "..", "." or empty parts.
bool is_inside_name(const std::string& name);

}  // namespace flotilla::pilot
