// Where things lie. Nothing that locks or listens lies on a home directory (it may be NFS).
//   state    ~/.local/state/flotilla/<host>/   journal, content store, logs, kept output ($FLOTILLA_STATE_DIR)
//   config   ~/.config/flotilla/config.toml    ($FLOTILLA_CONFIG)
//   runtime  /tmp/fl-UID-<8 hex>/              sockets, 0700, owner checked ($FLOTILLA_RUNTIME_DIR)
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "proto/base/ids.hpp"
#include "proto/base/result.hpp"

namespace flotilla {

std::string host_name();           // short name of this machine
std::string boot_id();             // of the running kernel, "" where it cannot be read
std::filesystem::path home_dir();  // $HOME, else what the user database says

// Absolute, without ".", ".." and superfluous slashes; symbolic links are not followed.
std::filesystem::path state_dir();
std::filesystem::path config_file();
bool config_file_named();  // by $FLOTILLA_CONFIG
// The directory of the sockets of this user's instance on this host: the hash is of the state directory, so that
// two instances with different state directories never meet. Not created.
std::filesystem::path runtime_dir();
std::filesystem::path runtime_dir_for(const std::filesystem::path& state);
std::filesystem::path daemon_socket();  // runtime_dir()/daemon.sock

// Where a program of ours may write on another machine, in the order in which it is tried.
std::vector<std::filesystem::path> scratch_candidates(const std::string& scratch_dir, const std::filesystem::path& home, unsigned uid);
// The log of a pilot's node below one of them; it stays when the pilot has ended.
std::filesystem::path pilot_log(const std::filesystem::path& scratch, std::string_view instance, NodeId node);
Result<std::filesystem::path> find_pilot_log(const std::string& scratch_dir, std::string_view instance, NodeId node);

// Creates it with mode 0700 (parents too, as the umask says) and checks owner, mode and that it is no symbolic link.
Status make_private_dir(const std::filesystem::path& dir);

// Writes to a temporary file beside it and renames; mode 0600 unless told otherwise.
Status write_file(const std::filesystem::path& file, std::string_view content, unsigned mode = 0600);
Result<std::string> read_file(const std::filesystem::path& file, std::size_t limit = 64u << 20);

}  // namespace flotilla
