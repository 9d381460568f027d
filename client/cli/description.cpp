#include "client/cli/description.hpp"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>

#include "client/cli/core/suggest.hpp"
#include "client/cli/core/units.hpp"
#include "proto/base/toml.hpp"

namespace flotilla::cli {
namespace {

// Reads one table; collects faults instead of stopping at the first.
class Reader {
 public:
  Reader(const toml::table& table, const std::vector<KeyHelp>& keys, std::vector<std::string>& faults) : table_(table), faults_(faults) {
    std::vector<std::string> names;
    for (const auto& key : keys) names.emplace_back(key.key);
    for (const auto& [key, node] : table) {
      const std::string name(key.str());
      if (std::find(names.begin(), names.end(), name) != names.end()) continue;
      const auto meant = nearest(name, names);
      fault(node, "unknown key '" + name + "'" + (meant ? "; did you mean '" + *meant + "'?" : ""));
    }
  }

  void fault(const toml::node& node, const std::string& text) {
    faults_.push_back("line " + std::to_string(node.source().begin.line) + ": " + text);
  }

  const toml::node* find(const char* key) const { return table_.get(key); }

  void text(const char* key, const std::function<void(const std::string&)>& set) {
    const auto* node = find(key);
    if (!node) return;
    if (const auto value = node->value_exact<std::string>()) set(*value);
    else fault(*node, std::string(key) + " must be a text in quotes");
  }
  void flag(const char* key, const std::function<void(bool)>& set) {
    const auto* node = find(key);
    if (!node) return;
    if (const auto value = node->value_exact<bool>()) set(*value);
    else fault(*node, std::string(key) + " must be true or false");
  }
  void count(const char* key, const std::function<void(std::uint32_t)>& set, std::int64_t least = 1) {
    const auto* node = find(key);
    if (!node) return;
    const auto value = node->value_exact<std::int64_t>();
    constexpr std::int64_t most = 1'000'000'000;
    if (value && *value >= least && *value <= most) set(static_cast<std::uint32_t>(*value));
    else fault(*node, std::string(key) + " must be a whole number of at least " + std::to_string(least));
  }
  void duration(const char* key, const std::function<void(std::int64_t)>& set) {
    const auto* node = find(key);
    if (!node) return;
    if (const auto number = node->value<double>(); number && node->is_number()) {
      const auto ms = parse_duration(std::to_string(*number));
      if (ms) set(*ms);
      else fault(*node, std::string(key) + ": " + ms.error().message);
    } else if (const auto value = node->value_exact<std::string>()) {
      const auto ms = parse_duration(*value);
      if (ms) set(*ms);
      else fault(*node, std::string(key) + ": " + ms.error().message);
    } else {
      fault(*node, std::string(key) + " must be a duration such as \"10min\", or a number of seconds");
    }
  }
  // A list of texts; a single text counts as a list of one where that is allowed.
  void texts(const char* key, bool single, const std::function<void(const std::string&)>& add) {
    const auto* node = find(key);
    if (!node) return;
    if (const auto value = node->value_exact<std::string>(); value && single) {
      add(*value);
      return;
    }
    const auto* list = node->as_array();
    if (!list) {
      fault(*node, std::string(key) + " must be a list of texts");
      return;
    }
    for (const auto& item : *list) {
      if (const auto value = item.value_exact<std::string>()) add(*value);
      else fault(item, std::string(key) + " must hold texts only");
    }
  }
  // A table of texts; numbers and booleans are taken as they are written.
  void pairs(const char* key, const std::function<void(const toml::node&, const std::string&, const std::string&)>& add) {
    const auto* node = find(key);
    if (!node) return;
    const auto* entries = node->as_table();
    if (!entries) {
      fault(*node, std::string(key) + " must be a table, such as { NAME = \"value\" }");
      return;
    }
    for (const auto& [name, value] : *entries) {
      if (const auto text = value.value_exact<std::string>()) add(value, std::string(name.str()), *text);
      else if (const auto number = value.value_exact<std::int64_t>()) add(value, std::string(name.str()), std::to_string(*number));
      else if (const auto truth = value.value_exact<bool>()) add(value, std::string(name.str()), *truth ? "true" : "false");
      else fault(value, std::string(key) + "." + std::string(name.str()) + " must be a text");
    }
  }

 private:
  const toml::table& table_;
  std::vector<std::string>& faults_;
};

void read_env(Reader& reader, google::protobuf::Map<std::string, std::string>& env) {
  reader.pairs("env", [&](const toml::node& node, const std::string& name, const std::string& value) {
    if (const auto good = parse_assignment(name + "="); !good) reader.fault(node, good.error().message);
    else env[name] = value;
  });
}

JobDescription read_job(const toml::table& table, std::vector<std::string>& faults) {
  JobDescription out;
  v1::JobSpec& spec = out.spec;
  v1::CommandSpec& command = *spec.mutable_command();
  Reader reader(table, job_keys(), faults);
  reader.text("name", [&](const std::string& value) { spec.set_name(value); });
  reader.text("label", [&](const std::string& value) { spec.set_label(value); });
  reader.texts("argv", false, [&](const std::string& word) { command.add_argv(word); });
  reader.text("shell", [&](const std::string& script) {
    if (reader.find("argv")) {
      reader.fault(*reader.find("shell"), "give either argv or shell, not both");
      return;
    }
    for (const char* word : {"/bin/sh", "-c"}) command.add_argv(word);
    command.add_argv(script);
  });
  if (command.argv().empty() && !reader.find("argv") && !reader.find("shell"))
    reader.fault(table, "nothing to run: give argv = [\"program\", \"argument\"] or shell = \"commands\"");
  if (const auto* argv = reader.find("argv"); argv && argv->is_array() && argv->as_array()->empty()) reader.fault(*argv, "argv is empty");
  reader.count("slots", [&](std::uint32_t value) { spec.set_processes(value); });
  reader.count("processes", [&](std::uint32_t value) { spec.set_processes(value); });
  if (reader.find("slots") && (reader.find("processes") || reader.find("threads")))
    reader.fault(*reader.find("slots"), "give either slots, or processes and threads");
  reader.count("threads", [&](std::uint32_t value) { spec.set_threads(value); });
  read_env(reader, *spec.mutable_env());
  reader.text("working_folder", [&](const std::string& value) { spec.set_working_folder(value); });
  reader.duration("time_limit", [&](std::int64_t ms) { spec.set_time_limit_ms(ms); });
  reader.duration("queue_timeout", [&](std::int64_t ms) { spec.set_queue_timeout_ms(ms); });
  reader.duration("start_timeout", [&](std::int64_t ms) { spec.set_start_timeout_ms(ms); });
  reader.duration("kill_grace", [&](std::int64_t ms) { spec.set_kill_grace_ms(ms); });
  reader.text("stdin", [&](const std::string& value) { command.set_stdin_data(value); });
  reader.text("stdin_file", [&](const std::string& value) {
    out.stdin_file = value;
    if (reader.find("stdin")) reader.fault(*reader.find("stdin_file"), "give either stdin or stdin_file, not both");
  });
  reader.text("stdout_file", [&](const std::string& value) { command.set_stdout_file(value); });
  reader.text("stderr_file", [&](const std::string& value) { command.set_stderr_file(value); });
  reader.flag("merge_stderr", [&](bool value) { command.set_merge_stderr(value); });
  reader.flag("terminal", [&](bool value) { command.set_terminal(value); });
  const auto add_file = [&](const toml::node& node, const std::string& text) {
    auto file = parse_input_file(text);
    if (file) out.files.push_back(std::move(*file));
    else reader.fault(node, file.error().message);
  };
  if (const auto* files = reader.find("files")) {
    if (files->is_table())
      reader.pairs("files",
                   [&](const toml::node& node, const std::string& name, const std::string& path) { add_file(node, name + "=" + path); });
    else reader.texts("files", true, [&](const std::string& path) { add_file(*files, path); });
  }
  reader.flag("private_folder", [&](bool value) { spec.set_private_folder(value); });
  reader.flag("debug", [&](bool value) { spec.set_debug(value); });
  reader.count("pilot", [&](std::uint32_t value) { spec.set_pilot(value); });
  return out;
}

v1::ResourceSpec read_resource(const toml::table& table, std::vector<std::string>& faults) {
  v1::ResourceSpec spec;
  Reader reader(table, resource_keys(), faults);
  reader.text("name", [&](const std::string& value) { spec.set_name(value); });
  if (!reader.find("name")) reader.fault(table, "name is missing");
  reader.text("location", [&](const std::string& value) { spec.set_location(value); });
  reader.text("driver", [&](const std::string& value) { spec.set_driver(value); });
  reader.text("gateway", [&](const std::string& value) { spec.set_gateway(value); });
  reader.text("scratch_dir", [&](const std::string& value) { spec.set_scratch_dir(value); });
  read_env(reader, *spec.mutable_env());
  reader.texts("setup", true, [&](const std::string& line) { spec.add_setup(line); });
  reader.duration("setup_timeout", [&](std::int64_t ms) { spec.set_setup_timeout_ms(ms); });
  reader.text("transport", [&](const std::string& value) {
    spec.set_transport(value);
    if (value != "libssh" && value != "openssh")
      reader.fault(*reader.find("transport"), "transport must be \"libssh\" or \"openssh\", not \"" + printable(value) + "\"");
  });
  reader.texts("hosts", true, [&](const std::string& host) { spec.add_hosts(host); });
  reader.pairs("options",
               [&](const toml::node&, const std::string& name, const std::string& value) { (*spec.mutable_options())[name] = value; });
  reader.flag("debug", [&](bool value) { spec.set_debug(value); });
  return spec;
}

// The tables of a file: those of [[kind]], or the file itself.
template <class Item>
Result<std::vector<Item>> parse(const std::string& text, const std::string& source, const char* kind,
                                Item (*read)(const toml::table&, std::vector<std::string>&)) {
  toml::table table;
  try {
    table = toml::parse(text, source);
  } catch (const toml::parse_error& problem) {
    return fail(Code::invalid_argument,
                source + ", line " + std::to_string(problem.source().begin.line) + ": " + std::string(problem.description()));
  } catch (const TomlFault& problem) {
    return fail(Code::invalid_argument, source + ": " + problem.what());
  }
  std::vector<Item> items;
  std::vector<std::string> faults;
  if (const auto* node = table.get(kind); node && (node->is_table() || node->is_array_of_tables())) {
    for (const auto& [key, other] : table)
      if (key.str() != kind)
        faults.push_back("line " + std::to_string(other.source().begin.line) + ": '" + std::string(key.str()) +
                         "' stands outside of the [[" + kind + "]] tables");
    if (const auto* one = node->as_table()) items.push_back(read(*one, faults));
    else
      for (const auto& each : *node->as_array()) items.push_back(read(*each.as_table(), faults));
  } else {
    items.push_back(read(table, faults));
  }
  if (faults.empty()) return items;
  Error error{Code::invalid_argument,
              source + " has " + (faults.size() == 1 ? "a fault" : std::to_string(faults.size()) + " faults"),
              "'flotilla help from-file' lists the keys",
              Retry::no,
              {}};
  error.faults = std::move(faults);
  return fail(std::move(error));
}

}  // namespace

const std::vector<KeyHelp>& job_keys() {
  static const std::vector<KeyHelp> keys{
      {"name", "text", "shown in listings"},
      {"label", "text", "run only on pilots with this label, or on this resource"},
      {"argv", "list of texts", "program and arguments"},
      {"shell", "text", "instead of argv: commands for /bin/sh"},
      {"slots", "number", "room that the job takes on its node (default 1)"},
      {"processes", "number", "instead of slots: slots = processes x threads"},
      {"threads", "number", "of each process; sets OMP_NUM_THREADS"},
      {"env", "table", "environment variables"},
      {"working_folder", "text", "on the node; default: this folder here, a private one elsewhere"},
      {"time_limit", "duration", "the job is ended after this"},
      {"queue_timeout", "duration", "give up when it has not started after this"},
      {"start_timeout", "duration", "give up when a worker has not connected, a command not got its files after this"},
      {"kill_grace", "duration", "between TERM and KILL (default 5 s)"},
      {"stdin", "text", "what the program reads"},
      {"stdin_file", "path here", "a file whose content the program reads"},
      {"stdout_file", "path there", "where stdout goes; default: kept for `job logs`"},
      {"stderr_file", "path there", "where stderr goes; default: kept for `job logs`"},
      {"merge_stderr", "true/false", "stderr goes where stdout goes"},
      {"terminal", "true/false", "run on a pseudo terminal"},
      {"files", "list or table", "laid into the job's private folder: [\"path\"] or { name = \"path\" }"},
      {"private_folder", "true/false", "run in a new folder of its own"},
      {"debug", "true/false", "keep the private folder"},
      {"pilot", "number", "run only on this pilot"}};
  return keys;
}

const std::vector<KeyHelp>& resource_keys() {
  static const std::vector<KeyHelp> keys{
      {"name", "text", "how it is called from now on"},
      {"location", "text", "[user@]host[:port]; none = this machine"},
      {"driver", "text", "how pilots are started: \"local\" or \"ssh\""},
      {"gateway", "text", "the resource that the connection goes through"},
      {"scratch_dir", "path there", "where files are put; default: the first usable of ~/.cache/flotilla, /tmp, /dev/shm"},
      {"env", "table", "environment variables of pilots and their jobs"},
      {"setup", "text or list", "shell lines that are run once before each pilot"},
      {"setup_timeout", "duration", "limit for all of these together; default: 10min"},
      {"transport", "text", "\"libssh\" (default) or \"openssh\" (the system's ssh program)"},
      {"hosts", "list of texts", "nodes that the front end reaches by its own ssh; none = the front end itself"},
      {"options", "table", "for the driver; ssh: ssh_config, a file in the place of ~/.ssh/config"},
      {"debug", "true/false", "the hub logs more, job folders are kept"}};
  return keys;
}

Result<std::vector<JobDescription>> parse_jobs(const std::string& text, const std::string& source) {
  return parse<JobDescription>(text, source, "job", read_job);
}
Result<std::vector<v1::ResourceSpec>> parse_resources(const std::string& text, const std::string& source) {
  return parse<v1::ResourceSpec>(text, source, "resource", read_resource);
}

Result<std::pair<std::string, std::string>> parse_input_file(const std::string& text) {
  std::string name, path = text;
  if (const std::size_t at = text.find('='); at != std::string::npos && text.find('/') > at) {
    name = text.substr(0, at);
    path = text.substr(at + 1);
  } else if (at != std::string::npos && at + 1 < text.size() && !std::filesystem::exists(text)) {
    name = text.substr(0, at);  // "data/in.txt=/path": the name holds a folder
    path = text.substr(at + 1);
  }
  if (path.empty()) return fail(Code::invalid_argument, "'" + text + "' names no file", "write NAME=PATH or PATH");
  if (name.empty()) name = std::filesystem::path(path).filename().string();
  const std::filesystem::path relative(name);
  bool inside = !name.empty() && !relative.is_absolute() && name.back() != '/';
  for (const auto& part : relative) inside = inside && part != ".." && part != ".";
  if (!inside) return fail(Code::invalid_argument, "'" + name + "' is no name inside the job's folder", "use a relative path without '..'");
  return std::pair(name, path);
}

}  // namespace flotilla::cli
