#include "proto/base/paths.hpp"

#include <fcntl.h>
#include <openssl/sha.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "proto/base/random.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla {
namespace fs = std::filesystem;

std::string host_name() {
  char name[256] = {};
  if (gethostname(name, sizeof name - 1) != 0) return "unknown";
  std::string full = name;
  return full.substr(0, full.find('.'));
}

std::string boot_id() {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(in, id);
  return id;
}

fs::path home_dir() {
  if (const char* home = std::getenv("HOME"); home && *home == '/') return home;
  // A static binary does not see LDAP users: $HOME comes first for that reason.
  if (const passwd* entry = getpwuid(getuid()); entry && entry->pw_dir) return entry->pw_dir;
  return "/";
}

// One spelling for each place: the runtime directory's name is made of the state directory's, by clients in other languages too.
static fs::path plain(const fs::path& path) {
  fs::path normal = fs::absolute(path).lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();  // without a slash at the end
}

fs::path state_dir() {
  if (const char* dir = std::getenv("FLOTILLA_STATE_DIR"); dir && *dir) return plain(dir);
  const char* xdg = std::getenv("XDG_STATE_HOME");
  const fs::path base = xdg && *xdg == '/' ? fs::path(xdg) : home_dir() / ".local" / "state";
  return plain(base / "flotilla" / host_name());
}

bool config_file_named() {
  const char* file = std::getenv("FLOTILLA_CONFIG");
  return file && *file;
}

fs::path config_file() {
  if (const char* file = std::getenv("FLOTILLA_CONFIG"); file && *file) return plain(file);
  const char* xdg = std::getenv("XDG_CONFIG_HOME");
  const fs::path base = xdg && *xdg == '/' ? fs::path(xdg) : home_dir() / ".config";
  return base / "flotilla" / "config.toml";
}

fs::path runtime_dir_for(const fs::path& state) {
  const std::string key = state.string() + "\n" + host_name();
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest);
  return "/tmp/fl-" + std::to_string(getuid()) + "-" + to_hex(std::string_view(reinterpret_cast<char*>(digest), 4));
}

fs::path runtime_dir() {
  if (const char* dir = std::getenv("FLOTILLA_RUNTIME_DIR"); dir && *dir) return plain(dir);
  return runtime_dir_for(state_dir());
}

fs::path daemon_socket() { return runtime_dir() / "daemon.sock"; }

std::vector<fs::path> scratch_candidates(const std::string& scratch_dir, const fs::path& home, unsigned uid) {
  std::vector<fs::path> candidates;
  if (!scratch_dir.empty()) {
    if (scratch_dir == "~" || scratch_dir.starts_with("~/"))
      candidates.push_back(home / (scratch_dir.size() > 2 ? scratch_dir.substr(2) : "."));
    else if (scratch_dir[0] == '/') candidates.emplace_back(scratch_dir);
    else candidates.push_back(home / scratch_dir);
    candidates.back() /= "flotilla";
  }
  if (!home.empty() && home != "/") candidates.push_back(home / ".cache" / "flotilla");
  candidates.push_back("/tmp/flotilla-" + std::to_string(uid));
  candidates.push_back("/dev/shm/flotilla-" + std::to_string(uid));
  return candidates;
}

fs::path pilot_log(const fs::path& scratch, std::string_view instance, NodeId node) {
  return scratch / "logs" / (to_hex(instance).substr(0, 8) + "-pilot-" + format_peer(node) + ".log");
}

Result<fs::path> find_pilot_log(const std::string& scratch_dir, std::string_view instance, NodeId node) {
  std::error_code problem;
  for (const auto& scratch : scratch_candidates(scratch_dir, home_dir(), getuid()))
    if (const fs::path log = pilot_log(scratch, instance, node); fs::exists(log, problem)) return log;
  return fail(Code::not_found, "there is no log of pilot " + format_peer(node) + " on " + host_name());
}

Status make_private_dir(const fs::path& dir) {
  std::error_code ignored;
  if (dir.has_parent_path()) fs::create_directories(dir.parent_path(), ignored);
  if (mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) return fail(errno_error(Code::permission_denied, "create " + dir.string()));
  struct stat info {};
  if (lstat(dir.c_str(), &info) != 0) return fail(errno_error(Code::permission_denied, "look at " + dir.string()));
  if (!S_ISDIR(info.st_mode) || info.st_uid != getuid())
    return fail(Code::permission_denied, dir.string() + " is not a directory of this user",
                "remove it, or set FLOTILLA_RUNTIME_DIR to another place");
  if ((info.st_mode & 077) != 0 && chmod(dir.c_str(), 0700) != 0)
    return fail(errno_error(Code::permission_denied, "make " + dir.string() + " private"));
  return {};
}

Status write_file(const fs::path& file, std::string_view content, unsigned mode) {
  const fs::path temporary = file.string() + "." + random_hex(4) + ".tmp";
  unique_fd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
  if (!fd) return fail(errno_error(Code::permission_denied, "create " + temporary.string()));
  while (!content.empty()) {
    const ssize_t n = write(fd.get(), content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      auto error = errno_error(Code::resource_exhausted, "write " + temporary.string());
      unlink(temporary.c_str());
      return fail(std::move(error));
    }
    content.remove_prefix(static_cast<std::size_t>(n));
  }
  if (rename(temporary.c_str(), file.c_str()) != 0) {
    auto error = errno_error(Code::permission_denied, "put " + file.string() + " in its place");
    unlink(temporary.c_str());
    return fail(std::move(error));
  }
  return {};
}

Result<std::string> read_file(const fs::path& file, std::size_t limit) {
  unique_fd fd(open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail(errno_error(Code::not_found, "open " + file.string()));
  std::string content;
  char buffer[65536];
  for (;;) {
    const ssize_t n = read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno_error(Code::unavailable, "read " + file.string()));
    if (n == 0) return content;
    content.append(buffer, static_cast<std::size_t>(n));
    if (content.size() > limit)
      return fail(Code::resource_exhausted, file.string() + " is larger than " + std::to_string(limit) + " bytes");
  }
}

}  // namespace flotilla
