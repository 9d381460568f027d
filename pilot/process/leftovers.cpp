#include "pilot/process/leftovers.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>

#include "pilot/process/process_tree.hpp"
#include "proto/base/paths.hpp"

namespace flotilla::pilot {
namespace fs = std::filesystem;
namespace {

constexpr int rounds = 5;  // a process may fork while we look

std::string read_all(const fs::path& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// "" where there is none, or only a dead one that nobody has reaped.
std::string start_time(pid_t pid) {
  const std::string stat = read_all("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return {};
  std::istringstream fields(stat.substr(name_end + 1));
  std::string field;
  for (int number = 3; number <= 22 && fields >> field; ++number) {
    if (number == 3 && (field == "Z" || field == "X")) return {};
    if (number == 22) return field;
  }
  return {};
}

std::string machine() {
  std::string id = read_all("/etc/machine-id");
  id.erase(std::remove(id.begin(), id.end(), '\n'), id.end());
  return host_name() + "/" + id;  // machines of one name that share a home, and copies of one machine, are told apart
}

// The fields in their order in the file.
template <class Owner_, class Each>
void for_each_text(Owner_& owner, Each&& each) {
  for (auto* text :
       {&owner.instance, &owner.pilot, &owner.node, &owner.machine, &owner.boot, &owner.pids, &owner.guard_started, &owner.process_started})
    each(*text);
}

void end_processes(const Owner& owner) {
  const std::vector<std::string> marks = {"FLOTILLA_INSTANCE=" + owner.instance, "FLOTILLA_PILOT=" + owner.pilot,
                                          "FLOTILLA_NODE=" + owner.node};
  for (int round = 0; round < rounds; ++round) {
    bool any = false;
    for (const auto& entry : list_processes()) {
      if (entry.pid <= 1 || entry.pid == getpid() || entry.state == 'Z') continue;
      const auto environment = environment_of(entry.pid);
      if (has_entries(environment, marks)) any |= kill(entry.pid, SIGKILL) == 0;
      else if (environment.empty()) any |= is_in_exec(entry.pid);
    }
    if (!any) return;
  }
}

}  // namespace

Owner own_owner(const std::string& instance, const std::string& pilot, const std::string& node, pid_t guard, const fs::path& runtime_dir) {
  std::error_code ignored;
  return {instance,
          pilot,
          node,
          machine(),
          boot_id(),
          fs::read_symlink("/proc/self/ns/pid", ignored).string(),
          guard,
          getpid(),
          start_time(guard),
          start_time(getpid()),
          runtime_dir};
}

std::string format_owner(const Owner& owner) {
  std::string text = "flotilla pilot 1\n";
  for_each_text(owner, [&](const std::string& each) { text += each + "\n"; });
  return text + std::to_string(owner.guard) + "\n" + std::to_string(owner.process) + "\n" + owner.runtime_dir.string() + "\n";
}

std::optional<Owner> parse_owner(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  if (!std::getline(lines, line) || line != "flotilla pilot 1") return std::nullopt;
  Owner owner;
  for_each_text(owner, [&](std::string& each) { std::getline(lines, each); });
  std::string guard, process;
  std::getline(lines, guard);
  std::getline(lines, process);
  // The last line is whole: a file that was being written says nothing.
  if (!std::getline(lines, line) || lines.eof()) return std::nullopt;
  owner.runtime_dir = line;
  owner.guard = static_cast<pid_t>(std::atoi(guard.c_str()));
  owner.process = static_cast<pid_t>(std::atoi(process.c_str()));
  if (owner.guard <= 0 || owner.process <= 0 || owner.instance.empty() || owner.boot.empty()) return std::nullopt;
  return owner;
}

bool process_alive(pid_t pid, const std::string& started) {
  const std::string now = start_time(pid);
  return !now.empty() && now == started;
}

bool surely_dead(const Owner& owner, const Owner& here, bool (*alive)(pid_t, const std::string&)) {
  if (owner.instance != here.instance || owner.machine != here.machine) return false;
  if (owner.boot != here.boot) return true;
  if (owner.pids != here.pids) return false;
  // While one of the two lives it clears away itself.
  return !alive(owner.guard, owner.guard_started) && !alive(owner.process, owner.process_started);
}

std::vector<fs::path> sweep_leftovers(const fs::path& pilots, const Owner& here) {
  std::vector<fs::path> removed;
  std::error_code problem;
  const std::string prefix = here.instance.substr(0, 8) + "-";
  for (const auto& entry : fs::directory_iterator(pilots, problem)) {
    if (!entry.path().filename().string().starts_with(prefix)) continue;
    const auto owner = parse_owner(read_all(entry.path() / "owner"));
    if (!owner || !surely_dead(*owner, here, process_alive)) continue;
    if (owner->boot == here.boot) end_processes(*owner);
    std::error_code ignored;
    // Its sockets: only where pilots of this instance have theirs, whatever the file says.
    if (owner->runtime_dir.filename() == "p" + owner->pilot + "." + owner->node &&
        owner->runtime_dir.parent_path() == here.runtime_dir.parent_path())
      fs::remove_all(owner->runtime_dir, ignored);
    fs::remove_all(entry.path(), ignored);
    removed.push_back(entry.path());
  }
  return removed;
}

}  // namespace flotilla::pilot
