#include "daemon/core/validate.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace flotilla::daemon {
namespace {

constexpr std::uint32_t most_slots = 1u << 20;  // per job or node: more is a slip of the hand
constexpr std::uint32_t most_nodes = 100'000;
constexpr std::size_t longest_label = 255;

class Faults {
 public:
  void add(std::string fault) { faults_.push_back(std::move(fault)); }
  Status result(std::string what) && {
    if (faults_.empty()) return {};
    Error error{Code::invalid_argument, std::move(what), {}, Retry::no, {}};
    if (faults_.size() == 1) error.message += ": " + faults_[0];
    else error.faults = std::move(faults_);
    return fail(std::move(error));
  }

 private:
  std::vector<std::string> faults_;
};

bool valid_name(const std::string& name, std::size_t longest) {
  if (name.empty() || name.size() > longest || !std::isalnum(static_cast<unsigned char>(name[0]))) return false;
  return std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '.' || c == '_' || c == '-'; });
}

bool valid_env_name(const std::string& name) {
  if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0]))) return false;
  return std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; });
}

template <class Map>
void check_env(const Map& env, Faults& faults) {
  for (const auto& [name, value] : env) {
    if (!valid_env_name(name)) faults.add(fmt::format("env: '{}' is no name of a variable", name));
    if (value.find('\0') != std::string::npos) faults.add(fmt::format("env: {} holds a NUL byte", name));
  }
}

void check_host(const std::string& host, Faults& faults) {
  if (host.empty() || host[0] == '-' || host.find_first_of(" \t\n'\"`$;&|<>\\") != std::string::npos)
    faults.add(fmt::format("hosts: '{}' is no name of a host", host));
}

void check_location(const std::string& location, Faults& faults) {
  const auto at = location.find('@');
  const std::string host_port = at == std::string::npos ? location : location.substr(at + 1);
  if (at == 0) faults.add("location: no user before the '@'");
  std::string host = host_port, port;
  if (!host_port.empty() && host_port[0] == '[') {  // [IPv6]:port
    const auto close = host_port.find(']');
    if (close == std::string::npos) {
      faults.add("location: '[' without ']'");
      return;
    }
    host = host_port.substr(1, close - 1);
    if (close + 1 < host_port.size()) port = host_port.substr(close + 1);
  } else if (const auto colon = host_port.rfind(':'); colon != std::string::npos && host_port.find(':') == colon) {
    host = host_port.substr(0, colon);
    port = host_port.substr(colon);
  }
  if (host.empty()) faults.add("location: no host; write user@host:port");
  for (const char c : location)
    if (static_cast<unsigned char>(c) <= ' ' || c == '\'' || c == '"' || c == '`' || c == '$' || c == ';' || c == '\\') {
      faults.add(fmt::format("location: '{}' is not allowed in it", c));
      break;
    }
  if (!host.empty() && host[0] == '-') faults.add("location: a host's name does not begin with '-'");
  if (!port.empty()) {
    const std::string digits = port.substr(1);
    const bool number =
        !digits.empty() && digits.size() <= 5 && std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c); });
    if (!number || std::stoi(digits) < 1 || std::stoi(digits) > 65535) faults.add(fmt::format("location: '{}' is no port", digits));
  }
}

void check_path(const std::string& key, const std::string& path, Faults& faults) {
  if (path.find('\0') != std::string::npos || path.find('\n') != std::string::npos)
    faults.add(fmt::format("{}: holds a NUL byte or a line break", key));
}

// A file of this machine. The daemon has another folder than who wrote this.
void check_ssh_config(const std::string& path, Faults& faults) {
  check_path("options: ssh_config", path, faults);
  if (path.empty() || path[0] != '/') faults.add("options: ssh_config: give the whole path of the file");
}

}  // namespace

Status check_resource(v1::ResourceSpec& spec, const std::map<std::string, Resource>& resources) {
  Faults faults;
  if (!valid_name(spec.name(), 63))
    faults.add(fmt::format("name: '{}' is not 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit", spec.name()));
  if (spec.setup_timeout_ms() < 0) faults.add("setup_timeout: is negative");
  if (spec.driver().empty()) spec.set_driver(spec.location().empty() ? "local" : "ssh");
  if (spec.driver() != "local" && spec.driver() != "ssh")
    faults.add(fmt::format("driver: there is no '{}'; there are local and ssh", spec.driver()));
  if (spec.transport().empty() && spec.driver() == "ssh") spec.set_transport("libssh");
  if (!spec.transport().empty() && spec.transport() != "libssh" && spec.transport() != "openssh")
    faults.add(fmt::format("transport: there is no '{}'; there are libssh and openssh", spec.transport()));
  if (spec.driver() == "ssh" && spec.location().empty()) faults.add("location: the ssh driver needs one: user@host:port");
  if (spec.driver() == "local" && !spec.location().empty())
    faults.add("location: the local driver takes none; leave it out, or use the ssh driver");
  if (!spec.location().empty()) check_location(spec.location(), faults);
  if (spec.driver() == "local" && !spec.gateway().empty()) faults.add("gateway: the local driver takes none");
  if (spec.driver() == "local" && spec.hosts_size()) faults.add("hosts: the local driver takes none");
  if (!spec.gateway().empty()) {
    if (spec.gateway() == spec.name()) {
      faults.add("gateway: a resource cannot be its own");
    } else if (const auto gateway = resources.find(spec.gateway()); gateway == resources.end()) {
      faults.add(fmt::format("gateway: there is no resource '{}'; add it first", spec.gateway()));
    } else if (gateway->second.local()) {
      faults.add(fmt::format("gateway: '{}' is this machine", spec.gateway()));
    } else {
      std::set<std::string> seen{spec.name()};
      for (auto at = gateway; at != resources.end(); at = resources.find(at->second.spec.gateway()))
        if (!seen.insert(at->first).second) {
          faults.add(fmt::format("gateway: '{}' leads back to '{}'", spec.gateway(), spec.name()));
          break;
        }
    }
  }
  check_path("scratch_dir", spec.scratch_dir(), faults);
  check_env(spec.env(), faults);
  for (const auto& host : spec.hosts()) check_host(host, faults);
  for (const auto& [key, value] : spec.options()) {
    if (spec.driver() == "ssh" && key == "ssh_config") check_ssh_config(value, faults);
    else
      faults.add(fmt::format("options: the {} driver has no option '{}'{}", spec.driver(), key,
                             spec.driver() == "ssh" ? "; it has ssh_config" : ""));
  }
  return std::move(faults).result(fmt::format("resource '{}' is not right", spec.name()));
}

Status check_pilot(v1::PilotSpec& spec, const State& state) {
  Faults faults;
  if (spec.resource().empty()) spec.set_resource("local");
  const auto resource = state.resources.find(spec.resource());
  if (resource == state.resources.end()) {
    std::string known;
    for (const auto& [name, r] : state.resources) known += (known.empty() ? "" : ", ") + name;
    return fail(Code::not_found, fmt::format("there is no resource '{}'", spec.resource()),
                fmt::format("there are: {}; add one with: flotilla resource add", known));
  }
  if (spec.node_count() == 0) spec.set_node_count(1);
  if (spec.node_count() > most_nodes) faults.add(fmt::format("node_count: {} is more than {}", spec.node_count(), most_nodes));
  const auto& driver = resource->second.spec.driver();
  const bool names_hosts = driver == "ssh" && spec.options().contains(hosts_option);
  const auto hosts = hosts_of(spec, resource->second.spec).size();
  if (spec.node_count() > std::max<std::size_t>(1, hosts))
    faults.add(hosts ? fmt::format("node_count: {} are asked for, {} names {} hosts", spec.node_count(),
                                   names_hosts ? "the option hosts" : fmt::format("resource '{}'", spec.resource()), hosts)
                     : fmt::format("node_count: {} are asked for, resource '{}' names no hosts: it is one node", spec.node_count(),
                                   spec.resource()));
  if (spec.slots_per_node() > most_slots) faults.add(fmt::format("slots_per_node: {} is more than {}", spec.slots_per_node(), most_slots));
  if (spec.time_ms() < 0) faults.add("time: is negative");
  if (spec.cutoff_ms() < 0) faults.add("cutoff: is negative");
  if (spec.idle_ms() < -1) faults.add("idle: is negative");
  if (!spec.label().empty() && !valid_name(spec.label(), longest_label))
    faults.add(fmt::format("label: '{}' is not letters, digits, '.', '_' or '-'", spec.label()));
  for (const auto& [key, value] : spec.options()) {
    if (driver != "ssh" || key != hosts_option) {
      faults.add(fmt::format("options: the {} driver has no option '{}'{}", driver, key, driver == "ssh" ? "; it has hosts" : ""));
      continue;
    }
    for (const auto& host : hosts_of(spec, resource->second.spec)) check_host(host, faults);
  }
  return std::move(faults).result("the pilot is not right");
}

std::vector<std::string> hosts_of(const v1::PilotSpec& pilot, const v1::ResourceSpec& resource) {
  const auto own = pilot.options().find(hosts_option);
  if (own == pilot.options().end()) return {resource.hosts().begin(), resource.hosts().end()};
  std::vector<std::string> hosts;
  for (std::string_view rest = own->second;;) {
    const auto end = std::min(rest.find(','), rest.size());
    hosts.emplace_back(rest.substr(0, end));
    if (end == rest.size()) return hosts;
    rest.remove_prefix(end + 1);
  }
}

Status check_tie(const v1::JobSpec& spec, const Pilot& pilot) {
  const std::uint64_t id = pilot.id.value;
  if (ended(pilot.state))
    return fail(Code::not_found, fmt::format("pilot {} has ended{}", id, pilot.message.empty() ? "" : ": " + pilot.message),
                "flotilla pilot list shows those that run");
  if (!admits(spec, pilot))
    return fail(Code::failed_precondition,
                fmt::format("pilot {} is on '{}'{}: nothing with the label '{}' runs there", id, pilot.spec.resource(),
                            pilot.spec.label().empty() ? "" : fmt::format(" and has the label '{}'", pilot.spec.label()), spec.label()),
                "leave out the pilot or the label");
  std::uint32_t widest = 0, known = 0;
  for (const auto& [index, node] : pilot.nodes) {
    if (!node.gone && node.incarnation.empty()) continue;  // it is still starting
    ++known;
    if (!node.gone) widest = std::max(widest, node.record.slots());
  }
  if (known >= pilot.node_count() && slots_of(spec) > widest)
    return fail(Code::failed_precondition, fmt::format("no node of pilot {} has {} slots; the widest has {}", id, slots_of(spec), widest),
                "leave out the pilot, or ask for less");
  if (pilot.spec.time_ms() && spec.time_limit_ms() > pilot.spec.time_ms())
    return fail(Code::failed_precondition,
                fmt::format("pilot {} lasts {} s, less than the job's time limit of {} s", id, pilot.spec.time_ms() / 1000.0,
                            spec.time_limit_ms() / 1000.0),
                "leave out the pilot, or ask for less time");
  return {};
}

Status check_job(v1::JobSpec& spec, const State& state) {
  Faults faults;
  const std::uint64_t slots = std::uint64_t{std::max(1u, spec.processes())} * std::max(1u, spec.threads());
  if (slots > most_slots) faults.add(fmt::format("slots: {} is more than {}", slots, most_slots));
  check_env(spec.env(), faults);
  check_path("working_folder", spec.working_folder(), faults);
  if (!spec.label().empty() && !valid_name(spec.label(), longest_label))
    faults.add(fmt::format("label: '{}' is not letters, digits, '.', '_' or '-'; no pilot can have it", spec.label()));
  if (!spec.working_folder().empty() && (spec.private_folder() || spec.files_size()))
    faults.add("working_folder: a job with input files or a private folder has one of its own");
  for (const auto& [key, value] : {std::pair{"time_limit", spec.time_limit_ms()}, std::pair{"queue_timeout", spec.queue_timeout_ms()},
                                   std::pair{"start_timeout", spec.start_timeout_ms()}, std::pair{"kill_grace", spec.kill_grace_ms()}})
    if (value < 0) faults.add(fmt::format("{}: is negative", key));
  std::set<std::string> names;
  for (const auto& file : spec.files()) {
    const std::string& name = file.name();
    if (name.empty() || name[0] == '/' || ("/" + name + "/").find("/../") != std::string::npos || name.find('\0') != std::string::npos ||
        name.back() == '/')
      faults.add(fmt::format("files: '{}' is no relative path inside the job's folder", name));
    if (file.sha256().size() != 32) faults.add(fmt::format("files: '{}' has no SHA-256", name));
    if (!names.insert(name).second) faults.add(fmt::format("files: '{}' is there twice", name));
  }
  switch (spec.kind_case()) {
    case v1::JobSpec::kCommand:
      if (spec.command().argv().empty() || spec.command().argv(0).empty()) faults.add("argv: no program is given");
      for (const auto& argument : spec.command().argv())
        if (argument.find('\0') != std::string::npos) faults.add("argv: an argument holds a NUL byte");
      if (spec.command().terminal() && (!spec.command().stdout_file().empty() || !spec.command().stderr_file().empty()))
        faults.add("terminal: its output cannot go to a file");
      check_path("stdout_file", spec.command().stdout_file(), faults);
      check_path("stderr_file", spec.command().stderr_file(), faults);
      break;
    case v1::JobSpec::kWorker:
      if (spec.worker().executable().empty()) faults.add("executable: none is given");
      if (spec.processes() > 1 && !spec.worker().mpi()) faults.add("processes: a worker without MPI is one process; set mpi");
      if (spec.beside_job()) faults.add("beside_job: a worker cannot run beside another job");
      break;
    case v1::JobSpec::KIND_NOT_SET: faults.add("it is neither a command nor a worker"); break;
  }
  if (spec.no_slots() && !spec.pilot()) faults.add("no_slots: only together with a pilot's id");
  auto status = std::move(faults).result("the job is not right");
  if (!status) return status;
  if (spec.pilot()) {
    const auto pilot = state.pilots.find(PilotId{spec.pilot()});
    if (pilot == state.pilots.end())
      return fail(Code::not_found, fmt::format("pilot {} is not known", spec.pilot()), "flotilla pilot list shows those that run");
    if (auto tie = check_tie(spec, pilot->second); !tie) return tie;
  }
  if (spec.beside_job()) {
    const Job* host = state.job(JobId{spec.beside_job()});
    if (!host) return fail(Code::not_found, fmt::format("there is no job {}", spec.beside_job()));
    if (!placed(host->state))
      return fail(Code::failed_precondition, fmt::format("job {} is {}, not running", spec.beside_job(), word(host->state)));
  }
  return {};
}

}  // namespace flotilla::daemon
