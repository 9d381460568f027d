#include "hub/places.hpp"

#include <unistd.h>

#include <vector>

#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/trial_hub.hpp"

namespace flotilla::hub {
namespace fs = std::filesystem;
namespace {

// A place counts if a file can be written there.
Status try_scratch(const fs::path& dir, bool trial) {
  std::vector<fs::path> folders{dir};
  if (!trial) folders.insert(folders.end(), {dir / "hubs", dir / "logs"});
  for (const fs::path& sub : folders)
    if (auto made = make_private_dir(sub); !made) return made;
  const fs::path probe = dir / ("probe-" + random_hex(4));
  if (auto wrote = write_file(probe, "x"); !wrote) return wrote;
  unlink(probe.c_str());
  return {};
}

Result<fs::path> choose_scratch(const std::string& wanted, bool trial) {
  if (!wanted.empty()) {
    fs::path dir = wanted;
    if (wanted == "~" || wanted.starts_with("~/")) dir = home_dir() / wanted.substr(std::min<std::size_t>(2, wanted.size()));
    if (dir.is_relative()) dir = home_dir() / dir;
    dir /= "flotilla";
    if (auto usable = try_scratch(dir, trial); !usable)
      return fail(Code::failed_precondition, "scratch_dir of the resource cannot be used on " + host_name() + ": " + usable.error().message,
                  "choose another scratch_dir, or none");
    return dir;
  }
  const std::string own = "flotilla-" + std::to_string(getuid());
  const fs::path tmp = "/tmp/" + own;
  const std::vector<fs::path> places = {home_dir() / ".cache" / "flotilla", tmp, "/dev/shm/" + own};
  Error error{Code::failed_precondition,
              "there is no place for the hub's files on " + host_name(),
              "give the resource a scratch_dir",
              Retry::no,
              {}};
  for (const auto& place : places) {
    auto usable = try_scratch(place, trial);
    if (usable) return place;
    error.faults.push_back(usable.error().message);
  }
  return fail(std::move(error));
}

}  // namespace

Result<Places> make_places(const v1::HubStart& start) {
  if (start.instance().size() != 16 || start.hub_id().empty() || start.hub_id().find('/') != std::string::npos)
    return fail(Code::invalid_argument, "the hub's start names no instance or hub");
  Places places;
  places.trial = start.hub_id().starts_with(trial_hub_prefix);
  places.runtime = runtime_dir_for("hub/" + to_hex(start.instance()) + "/" + start.hub_id());
  if (auto made = make_private_dir(places.runtime); !made) return fail(made.error());
  auto scratch = choose_scratch(start.scratch_dir(), places.trial);
  if (!scratch) {
    rmdir(places.runtime.c_str());  // unless a hub that runs has its sockets there
    return fail(scratch.error());
  }
  places.scratch = *scratch;
  places.state_file = places.trial ? places.runtime / "state.json" : places.scratch / "hubs" / (start.hub_id() + ".json");
  places.log_file = places.trial ? places.runtime / "hub.log" : places.scratch / "logs" / ("hub-" + start.hub_id() + ".log");
  return places;
}

fs::path own_program() {
  std::error_code error;
  const fs::path path = fs::read_symlink("/proc/self/exe", error);
  // A file that was replaced meanwhile still runs from here.
  if (error || !fs::exists(path, error)) return "/proc/self/exe";
  return path;
}

}  // namespace flotilla::hub
