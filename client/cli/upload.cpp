#include "client/cli/upload.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "client/cli/core/units.hpp"
#include "client/cli/session.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::cli {
namespace {

constexpr std::size_t piece = 1024 * 1024;        // of one message
constexpr std::size_t largest_stdin = 32u << 20;  // travels inside of the description; more goes through `run`'s stdin

Result<std::size_t> read_some(int fd, const std::string& path, std::string& buffer) {
  buffer.resize(piece);
  for (;;) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno_error(Code::unavailable, "read " + path));
    buffer.resize(static_cast<std::size_t>(n));
    return static_cast<std::size_t>(n);
  }
}

struct Digest {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  Digest() { EVP_DigestInit_ex(context, EVP_sha256(), nullptr); }
  ~Digest() { EVP_MD_CTX_free(context); }
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;
};

// A signal was blocked for the session, which has not begun.
Status go_on(const std::string& path) {
  if (!end_signal_pending()) return {};
  return fail(Code::canceled, "stopped while " + path + " was sent; nothing runs");
}

Status upload_one(DaemonClient& client, const std::string& name, const std::string& path, v1::InputFile& file, StatusLine& line,
                  SentFiles& known) {
  const unique_fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail(errno_error(Code::invalid_argument, "open the input file " + path));
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return fail(errno_error(Code::unavailable, "look at " + path));
  if (!S_ISREG(info.st_mode)) return fail(Code::invalid_argument, path + " is no regular file");
  std::string version = path;
  for (const auto part :
       {static_cast<std::uint64_t>(info.st_dev), static_cast<std::uint64_t>(info.st_ino), static_cast<std::uint64_t>(info.st_size),
        static_cast<std::uint64_t>(info.st_mtim.tv_sec), static_cast<std::uint64_t>(info.st_mtim.tv_nsec)})
    version += '\0' + std::to_string(part);
  if (const auto found = known.find(version); found != known.end()) {
    file = found->second;
    file.set_name(name);
    return {};
  }

  Digest digest;
  std::string buffer;
  std::uint64_t size = 0;
  for (;;) {
    const auto n = read_some(fd.get(), path, buffer);
    if (!n) return fail(n.error());
    if (*n == 0) break;
    if (auto going = go_on(path); !going) return going;
    EVP_DigestUpdate(digest.context, buffer.data(), buffer.size());
    size += *n;
  }
  std::string sum(32, '\0');
  EVP_DigestFinal_ex(digest.context, reinterpret_cast<unsigned char*>(sum.data()), nullptr);
  file.set_name(name);
  file.set_sha256(sum);
  file.set_size(size);
  file.set_mode(info.st_mode & 0777);

  bool asked = false;
  const auto present = client.put_blob([&](v1::BlobChunk& chunk) {
    if (asked) return false;
    asked = true;
    chunk.set_sha256(sum);
    return true;
  });
  if (!present) return fail(present.error());
  if (present->present()) {
    known[version] = file;
    return {};
  }

  if (lseek(fd.get(), 0, SEEK_SET) != 0) return fail(errno_error(Code::unavailable, "read " + path + " again"));
  std::uint64_t sent = 0;
  bool first = true;
  Status problem;
  const auto stored = client.put_blob([&](v1::BlobChunk& chunk) {
    const auto n = read_some(fd.get(), path, *chunk.mutable_data());
    problem = n ? go_on(path) : fail(n.error());
    if (!problem || (*n == 0 && !first)) return false;
    if (first) chunk.set_sha256(sum);
    first = false;
    sent += *n;
    line.show("uploading " + name + ": " + format_size(sent) + " of " + format_size(size) +
              (size > 0 ? " (" + std::to_string(sent * 100 / size) + " %)" : ""));
    return true;
  });
  line.clear();
  if (!problem) return problem;
  if (!stored) return fail(stored.error());
  if (sent != size) return fail(Code::failed_precondition, path + " changed while it was uploaded", "try again", Retry::yes);
  known[version] = file;
  return {};
}

}  // namespace

Status upload(DaemonClient& client, JobDescription& job, StatusLine& line, SentFiles& sent) {
  if (!job.stdin_file.empty()) {
    auto content = read_file(job.stdin_file, largest_stdin);
    if (!content) {
      Error error = content.error();
      if (error.code == Code::not_found) error.code = Code::invalid_argument;
      if (error.code == Code::resource_exhausted) error.hint = "give it as an input file (--file), and read it from there";
      return fail(std::move(error));
    }
    job.spec.mutable_command()->set_stdin_data(std::move(*content));
  }
  for (const auto& [name, path] : job.files)
    if (auto done = upload_one(client, name, path, *job.spec.add_files(), line, sent); !done) return done;
  return {};
}

}  // namespace flotilla::cli
