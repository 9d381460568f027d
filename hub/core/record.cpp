#include "hub/core/record.hpp"

#include <nlohmann/json.hpp>

#include "proto/base/hex.hpp"

namespace flotilla::hub {
namespace {

using nlohmann::json;
constexpr int record_version = 1;

json to_json(const Node& node) {
  return {{"stage", name_of(node.stage)},
          {"host", node.host},
          {"beside", node.beside},
          {"secret", node.secret},
          {"guard_pid", node.guard_pid},
          {"pid", node.pid},
          {"process_dead", node.process_dead},
          {"message", node.message},
          {"stderr_tail", node.stderr_tail},
          {"exit_code", node.exit_code},
          {"goodbye", node.goodbye},
          {"said_goodbye", node.said_goodbye}};
}

Node node_from(const json& from) {
  Node node;
  const auto stage = parse_stage(from.at("stage").get<std::string>());
  if (!stage) throw json::other_error::create(501, "unknown stage", &from);
  node.stage = *stage;
  from.at("host").get_to(node.host);
  from.at("beside").get_to(node.beside);
  from.at("secret").get_to(node.secret);
  from.at("guard_pid").get_to(node.guard_pid);
  from.at("pid").get_to(node.pid);
  from.at("process_dead").get_to(node.process_dead);
  from.at("message").get_to(node.message);
  from.at("stderr_tail").get_to(node.stderr_tail);
  from.at("exit_code").get_to(node.exit_code);
  from.at("goodbye").get_to(node.goodbye);
  from.at("said_goodbye").get_to(node.said_goodbye);
  return node;
}

}  // namespace

std::string format_record(const Record& record) {
  json launches = json::array();
  for (const auto& [pilot, launch] : record.launches) {
    json nodes = json::array();
    for (const auto& [index, node] : launch.nodes) {
      json entry = to_json(node);
      entry["node"] = index;
      nodes.push_back(std::move(entry));
    }
    launches.push_back({{"pilot", pilot},
                        {"node_count", launch.node_count},
                        {"hosts", launch.hosts},
                        {"stopping", launch.stopping},
                        {"idle_ms", launch.settings.idle_ms()},
                        {"cutoff_ms", launch.settings.cutoff_ms()},
                        {"time_ms", launch.settings.time_ms()},
                        {"debug", launch.settings.debug()},
                        {"leave_nothing", launch.settings.traces().none()},
                        {"log_links", launch.settings.traces().log_links()},
                        {"nodes", std::move(nodes)}});
  }
  const json all = {{"version", record_version},
                    {"hub_id", record.hub_id},
                    {"instance", to_hex(record.instance)},
                    {"host", record.host},
                    {"boot_id", record.boot_id},
                    {"build", record.build},
                    {"pid", record.pid},
                    {"over", record.over},
                    {"runtime_dir", record.runtime_dir},
                    {"listening", record.listening},
                    {"launches", std::move(launches)},
                    {"ended", record.ended}};
  // A tail of stderr may hold anything.
  return all.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

Result<Record> parse_record(std::string_view text) {
  try {
    const json all = json::parse(text);
    if (all.at("version").get<int>() != record_version)
      return fail(Code::version_mismatch, "a hub's state file of version " + all.at("version").dump());
    Record record;
    all.at("hub_id").get_to(record.hub_id);
    const auto instance = from_hex(all.at("instance").get<std::string>());
    if (!instance) return fail(Code::invalid_argument, "a hub's state file names no instance");
    record.instance = *instance;
    all.at("host").get_to(record.host);
    all.at("boot_id").get_to(record.boot_id);
    all.at("build").get_to(record.build);
    all.at("pid").get_to(record.pid);
    record.over = all.value("over", false);
    all.at("runtime_dir").get_to(record.runtime_dir);
    all.at("listening").get_to(record.listening);
    all.at("ended").get_to(record.ended);
    for (const json& entry : all.at("launches")) {
      Launch launch;
      entry.at("node_count").get_to(launch.node_count);
      entry.at("hosts").get_to(launch.hosts);
      entry.at("stopping").get_to(launch.stopping);
      launch.settings.set_idle_ms(entry.at("idle_ms").get<std::int64_t>());
      launch.settings.set_cutoff_ms(entry.at("cutoff_ms").get<std::int64_t>());
      launch.settings.set_time_ms(entry.at("time_ms").get<std::int64_t>());
      launch.settings.set_debug(entry.at("debug").get<bool>());
      launch.settings.mutable_traces()->set_none(entry.value("leave_nothing", false));
      launch.settings.mutable_traces()->set_log_links(entry.value("log_links", ""));
      for (const json& node : entry.at("nodes")) launch.nodes.emplace(node.at("node").get<std::uint32_t>(), node_from(node));
      record.launches.emplace(entry.at("pilot").get<std::uint64_t>(), std::move(launch));
    }
    return record;
  } catch (const json::exception& problem) {
    return fail(Code::invalid_argument, std::string("a hub's state file cannot be read: ") + problem.what());
  }
}

}  // namespace flotilla::hub
