#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>

#include "client/cli/command.hpp"
#include "client/cli/local_time.hpp"
#include "client/cli/prompts.hpp"

namespace flotilla::cli {
namespace {

Result<std::unique_ptr<DaemonClient>> connected() { return DaemonClient::connect(StartDaemon::yes); }

bool over(v1::PilotState state) { return state == v1::PILOT_FINISHED || state == v1::PILOT_FAILED; }

std::string nodes_text(const v1::Pilot& pilot) {
  const auto there = std::count_if(pilot.nodes().begin(), pilot.nodes().end(), [](const auto& node) { return node.connected(); });
  const auto wanted = std::max<std::uint32_t>(1, pilot.spec().node_count());
  return std::to_string(there) + "/" + std::to_string(wanted);
}

std::string time_text(const v1::Pilot& pilot, std::int64_t now) {
  if (over(pilot.state())) return pilot.ended_ms() && pilot.running_ms() ? format_duration(pilot.ended_ms() - pilot.running_ms()) : "-";
  if (pilot.ends_at_ms()) return format_duration(std::max<std::int64_t>(0, pilot.ends_at_ms() - now)) + " left";
  return pilot.running_ms() ? format_duration(std::max<std::int64_t>(0, now - pilot.running_ms())) : "-";
}

void print_pilots(const Context& context, const google::protobuf::RepeatedPtrField<v1::Pilot>& pilots) {
  if (context.json) {
    std::vector<std::string> parts;
    for (const auto& pilot : pilots) parts.push_back(to_json(pilot));
    print_line(json_list(parts));
    return;
  }
  const auto now = now_ms();
  std::vector<std::vector<Cell>> rows;
  for (const auto& pilot : pilots) {
    const std::string state = state_text(pilot.state());
    rows.push_back({std::to_string(pilot.id()), pilot.spec().resource(), pilot.spec().label().empty() ? "-" : pilot.spec().label(),
                    Cell(state, state_colour(state)), nodes_text(pilot),
                    std::to_string(pilot.slots_used()) + "/" + std::to_string(pilot.slots()), std::to_string(pilot.jobs_running()),
                    std::to_string(pilot.jobs_done()), time_text(pilot, now), pilot.message()});
  }
  print(format_table({{"ID", Align::right},
                      {"RESOURCE"},
                      {"LABEL"},
                      {"STATE"},
                      {"NODES"},
                      {"SLOTS"},
                      {"JOBS", Align::right},
                      {"DONE", Align::right},
                      {"TIME", Align::right},
                      {"", Align::left, true}},
                     rows, context.out));
}

void show_pilot(const v1::Pilot& pilot, const Look& look) {
  const auto now = now_ms();
  const auto row = [&](const char* name, const std::string& value, const char* shade = "") {
    if (!value.empty()) print_line(paint(pad(name, 10), colour::bold, look) + paint(printable(value), shade, look));
  };
  const auto moment = [&](std::int64_t ms) { return ms ? format_moment(ms, now) + " (" + format_age(ms, now) + ")" : ""; };
  const std::string state = state_text(pilot.state());
  row("pilot", std::to_string(pilot.id()));
  row("resource", pilot.spec().resource());
  row("label", pilot.spec().label());
  row("state", state, state_colour(state));
  row("", pilot.message());
  row("slots", std::to_string(pilot.slots_used()) + " of " + std::to_string(pilot.slots()) + " in use");
  row("jobs", std::to_string(pilot.jobs_running()) + " running, " + std::to_string(pilot.jobs_done()) + " done");
  row("submitted", moment(pilot.submitted_ms()));
  row("starting", moment(pilot.starting_ms()));
  row("running", moment(pilot.running_ms()));
  row("ended", moment(pilot.ended_ms()));
  row("ends at", pilot.ends_at_ms() ? format_moment(pilot.ends_at_ms(), now) : "");
  for (const auto& [key, value] : pilot.spec().options()) row("option", key + "=" + value);
  for (const auto& node : pilot.nodes()) {
    std::string text = node.host().empty() ? "?" : node.host();
    if (node.connected()) {
      text += ": " + std::to_string(node.slots_used()) + " of " + std::to_string(node.slots()) + " slots, " +
              std::to_string(node.processors()) + " processors, " + format_size(static_cast<std::uint64_t>(node.memory_bytes())) +
              ", load " + format_count(node.load()) + ", process " + std::to_string(node.pid());
    } else {
      text += ": not connected";
    }
    row(("node " + std::to_string(node.index())).c_str(), text, node.connected() ? "" : colour::red);
    // The reason may hold what the pilot wrote on stderr: line by line.
    std::string_view rest = node.message();
    while (!rest.empty()) {
      const std::size_t end = rest.find('\n');
      row("", std::string(rest.substr(0, end)));
      rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    }
  }
}

std::string failure_of(const v1::Pilot& pilot) {
  std::string text = "pilot " + std::to_string(pilot.id()) + " on " + pilot.spec().resource() +
                     (pilot.state() == v1::PILOT_FAILED ? " failed" : " ended") + (pilot.message().empty() ? "" : ": " + pilot.message());
  for (const auto& node : pilot.nodes())
    if (!node.message().empty() && node.message() != pilot.message())
      text += "\nnode " + std::to_string(node.index()) + " (" + (node.host().empty() ? "?" : node.host()) + "): " + node.message();
  return text;
}

// Says on stderr, whatever that is, what a start waits for: what went wrong as soon as it is known, and after some seconds what it
// is at.
class SlowStart {
 public:
  SlowStart(std::string what, StatusLine& line) : what_(std::move(what)), line_(line) {
    thread_ = std::jthread([this](std::stop_token stop) {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, stop, told_after, [] { return false; });
      if (!stop.stop_requested() && !told_ && !doing_.empty()) tell(doing_);
    });
  }
  void doing(const std::string& text, bool trouble) {
    const std::scoped_lock lock(mutex_);
    doing_ = text;
    if (trouble && text != trouble_) tell(trouble_ = text);
  }

 private:
  static constexpr auto told_after = std::chrono::seconds(8);
  // Under mutex_.
  void tell(const std::string& text) {
    told_ = true;
    line_.clear();
    std::fprintf(stderr, "flotilla: %s waits: %s\n", what_.c_str(), printable(text).c_str());
  }
  const std::string what_;
  StatusLine& line_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::string doing_, trouble_;
  bool told_ = false;
  std::jthread thread_;
};

struct PilotOptions {
  v1::PilotSpec spec;
  std::uint32_t count = 1;
  bool no_wait = false, accept_new = false;
};

Result<int> start(const Context& context, const PilotOptions& options) {
  if (options.no_wait && options.accept_new)
    return fail(Code::invalid_argument, "--accept-new does nothing with --no-wait: the login comes later",
                "run 'flotilla resource connect " + shell_quote(options.spec.resource()) + " --accept-new' first");
  auto client = connected();
  if (!client) return fail(client.error());
  StatusLine line;
  std::optional<Prompter> prompter;
  if (!options.no_wait) prompter.emplace(**client, "", options.accept_new, line);
  v1::WatchRequest watched;
  google::protobuf::RepeatedPtrField<v1::Pilot> pilots;
  for (std::uint32_t i = 0; i < options.count; ++i) {
    v1::StartPilotRequest request;
    *request.mutable_spec() = options.spec;
    request.set_count(1);
    const auto started = (*client)->start_pilot(request);
    if (!started) return fail(started.error());
    *pilots.Add() = *started;
    watched.add_pilot_ids(started->id());
  }
  std::string problem;
  if (!options.no_wait) {
    SlowStart slow(
        (pilots.size() == 1 ? "pilot " + std::to_string(pilots[0].id()) : std::string("the pilots")) + " on " + options.spec.resource(),
        line);
    watched.set_pilots(true);
    watched.set_resources(true);
    bool snapshot = false;
    const auto all_settled = [&] {
      return std::all_of(pilots.begin(), pilots.end(),
                         [](const auto& pilot) { return pilot.state() == v1::PILOT_RUNNING || over(pilot.state()); });
    };
    const auto seen = [&](const v1::Change& change) {
      if (change.has_pilot()) {
        for (auto& pilot : pilots)
          if (pilot.id() == change.pilot().id()) pilot = change.pilot();
        const auto& pilot = change.pilot();
        const auto text = state_text(pilot.state()) + (pilot.message().empty() ? "" : ", " + pilot.message());
        line.show("pilot " + std::to_string(pilot.id()) + ": " + text);
        if (!all_settled()) slow.doing(text, false);
      } else if (change.has_resource() && change.resource().spec().name() == options.spec.resource() &&
                 change.resource().hub_state() != v1::HUB_NONE && change.resource().hub_state() != v1::HUB_CONNECTED) {
        const auto& resource = change.resource();
        const auto text =
            state_text(resource.hub_state()) + (resource.hub_state() == v1::HUB_UPLOADING
                                                    ? " " + std::to_string(static_cast<int>(resource.upload_fraction() * 100)) + " %"
                                                : resource.hub_message().empty() ? ""
                                                                                 : ", " + resource.hub_message());
        const bool trouble = resource.hub_state() == v1::HUB_UNREACHABLE;
        slow.doing(text + (trouble ? "; it is tried again until it answers" : ""), trouble);
        line.show(options.spec.resource() + ": " + text);
      }
      snapshot = snapshot || change.snapshot_end();
      return !(snapshot && all_settled());
    };
    for (;;) {
      const Status ended = (*client)->watch(watched, seen);
      line.clear();
      if (ended) break;
      if (!(*client)->lost()) return fail(ended.error());
      prompter.reset();
      line.show("waiting for the daemon to come back");
      if (auto again = find_again(*client); !again) {
        line.clear();
        return fail(again.error());
      }
      prompter.emplace(**client, "", options.accept_new, line);
      snapshot = false;
    }
    for (const auto& pilot : pilots)
      if (over(pilot.state())) problem += (problem.empty() ? "" : "\n") + failure_of(pilot);
  }
  prompter.reset();
  if (context.json) print_pilots(context, pilots);
  else
    for (const auto& pilot : pilots)
      if (!over(pilot.state())) {
        print_line(std::to_string(pilot.id()));
        note("Pilot " + std::to_string(pilot.id()) + " on " + pilot.spec().resource() + " is " + state_text(pilot.state()) +
             (pilot.state() == v1::PILOT_RUNNING ? " with " + std::to_string(pilot.slots()) + " slots." : "."));
      }
  if (!problem.empty())
    return fail(Code::failed_precondition, problem,
                "'flotilla resource test " + shell_quote(options.spec.resource()) + "' shows what works, 'flotilla logs " +
                    shell_quote(options.spec.resource()) + "' what happened");
  return exit_code::ok;
}

struct Selection {
  std::vector<std::uint64_t> ids;
  std::string resource, label;
  bool all = false;
};

void add_selection(Context& context, CLI::App* app, Selection& selection) {
  context.complete(add_ids(app, "PILOT", selection.ids, "their ids"), Complete::pilot);
  context.complete(app->add_option("--resource", selection.resource, "those on this resource")->type_name("NAME"), Complete::resource);
  context.complete(app->add_option("--label", selection.label, "those with this label")->type_name("LABEL"), Complete::label);
  app->add_flag("--all", selection.all, "all of them");
}

Result<int> stop(const Context& context, const Selection& selection, bool drain) {
  if (selection.ids.empty() && selection.resource.empty() && selection.label.empty() && !selection.all)
    return fail(Code::invalid_argument, "no pilot is named", "give ids, --resource, --label or --all");
  auto client = connected();
  if (!client) return fail(client.error());
  v1::StopPilotsRequest request;
  request.mutable_ids()->Add(selection.ids.begin(), selection.ids.end());
  request.set_resource(selection.resource);
  request.set_label(selection.label);
  request.set_all(selection.all);
  request.set_drain(drain);
  const auto reply = (*client)->stop_pilots(request);
  if (!reply) return fail(reply.error());
  if (context.json || context.out.terminal) print_pilots(context, reply->pilots());
  return exit_code::ok;
}

}  // namespace

void add_pilot_commands(Context& context, CLI::App* root) {
  auto* pilot = context.add(
      root, "pilot",
      {"processes on a resource's nodes that run jobs",
       "A pilot runs on one or more nodes of a resource, offers slots there and pulls jobs. This machine has one from the start. A "
       "pilot ends by itself: at its time, when it had no job for long, or when it was cut off for long; its jobs end with it.",
       {{"Start one on a resource", "flotilla pilot start hpc"}, {"See all", "flotilla pilot list"}}});

  const auto starting = std::make_shared<PilotOptions>();
  v1::PilotSpec& spec = starting->spec;
  auto* start_command = context.add(
      pilot, "start",
      {"start pilots on a resource",
       "Connects to the resource if needed (asking for passwords on the terminal), starts the pilot, and waits until it runs. When it "
       "cannot, its stderr, exit code and host are shown and the exit code is 1. The pilot's id is printed on stdout.",
       {{"One node, all its processors", "flotilla pilot start hpc"},
        {"Four nodes for two hours, for jobs with the label 'gas'", "flotilla pilot start hpc --nodes 4 --time 2h --label gas"},
        {"Use its id in a script", "id=$(flotilla pilot start hpc) && flotilla run --pilot $id -- hostname"}}},
      [&context, starting] { return start(context, *starting); });
  context.complete(start_command
                       ->add_option_function<std::string>(
                           "RESOURCE", [&spec](const std::string& name) { spec.set_resource(name); }, "where")
                       ->required()
                       ->type_name(""),
                   Complete::resource);
  const auto count = [&](const char* option, void (v1::PilotSpec::*set)(std::uint32_t), const char* help) {
    add_count(
        start_command, option, [&spec, set](std::uint32_t value) { (spec.*set)(value); }, help);
  };
  count("--nodes", &v1::PilotSpec::set_node_count, "number of nodes (default 1)");
  count("--slots", &v1::PilotSpec::set_slots_per_node, "slots on each node (default: its processors)");
  const auto duration = [&](const char* option, void (v1::PilotSpec::*set)(std::int64_t), bool never, const char* help) {
    start_command
        ->add_option_function<std::string>(
            option,
            [&spec, set, option, never](const std::string& text) {
              if (never && text == "never") {
                (spec.*set)(-1);
                return;
              }
              const auto ms = parse_duration(text);
              if (!ms) throw CLI::ValidationError(option, ms.error().message + "; " + ms.error().hint);
              if (*ms == 0 && std::string_view(option) != "--time") throw CLI::ValidationError(option, "has to be longer than 0");
              (spec.*set)(*ms);
            },
            help)
        ->type_name(never ? "DURATION|never" : "DURATION");
  };
  duration("--time", &v1::PilotSpec::set_time_ms, false, "it ends by itself after this (default: no limit)");
  context.complete(
      start_command
          ->add_option_function<std::string>(
              "--label", [&spec](const std::string& label) { spec.set_label(label); }, "a word that jobs can ask for with --on")
          ->type_name("TEXT"),
      Complete::label);
  duration("--idle", &v1::PilotSpec::set_idle_ms, true, "it ends after this long without a job (default: as configured)");
  duration("--cutoff", &v1::PilotSpec::set_cutoff_ms, false, "it ends after this long without a link (default: as configured, 24 h)");
  add_assignments(start_command, "--option,-o", *spec.mutable_options(), "option of the resource's driver", false);
  add_count(
      start_command, "--count", [starting](std::uint32_t value) { starting->count = value; }, "start this many pilots of the same kind");
  start_command->add_flag_function(
      "--debug", [&spec](std::int64_t) { spec.set_debug(true); }, "log more there, keep job folders");
  start_command->add_flag("--no-wait", starting->no_wait, "do not wait until it runs");
  start_command->add_flag("--accept-new", starting->accept_new, "take the host's key as right when it is not known yet");
  context.add_json(start_command);

  struct ListOptions {
    Selection selection;
    bool ended = false;
  };
  const auto listing = std::make_shared<ListOptions>();
  auto* list = context.add(pilot, "list",
                           {"list pilots",
                            "Shows pilots with their slots and jobs; those that have ended only with --ended.",
                            {{"All that run on one resource", "flotilla pilot list --resource hpc"}}},
                           [&context, listing]() -> Result<int> {
                             auto client = connected();
                             if (!client) return fail(client.error());
                             v1::ListPilotsRequest request;
                             request.set_resource(listing->selection.resource);
                             request.set_label(listing->selection.label);
                             request.set_ended(listing->ended);
                             const auto reply = (*client)->list_pilots(request);
                             if (!reply) return fail(reply.error());
                             print_pilots(context, reply->pilots());
                             return exit_code::ok;
                           });
  context.complete(list->add_option("--resource", listing->selection.resource, "only those on this resource")->type_name("NAME"),
                   Complete::resource);
  context.complete(list->add_option("--label", listing->selection.label, "only those with this label")->type_name("LABEL"),
                   Complete::label);
  list->add_flag("--ended", listing->ended, "also those that have ended");
  context.add_json(list);

  const auto shown = std::make_shared<std::vector<std::uint64_t>>();
  auto* show = context.add(
      pilot, "show", {"show pilots in full", "Shows states with their moments, and each node.", {{"Show one", "flotilla pilot show 3"}}},
      [&context, shown]() -> Result<int> {
        auto client = connected();
        if (!client) return fail(client.error());
        v1::ListPilotsRequest request;
        request.mutable_ids()->Add(shown->begin(), shown->end());
        request.set_ended(true);
        const auto reply = (*client)->list_pilots(request);
        if (!reply) return fail(reply.error());
        if (context.json) {
          if (reply->pilots_size() == 1) print_line(to_json(reply->pilots(0)));
          else print_pilots(context, reply->pilots());
          return exit_code::ok;
        }
        for (int i = 0; i < reply->pilots_size(); ++i) {
          if (i > 0) print("\n");
          show_pilot(reply->pilots(i), context.out);
        }
        return exit_code::ok;
      });
  context.complete(add_ids(show, "PILOT", *shown, "their ids")->required(), Complete::pilot);
  context.add_json(show);

  const auto stopped = std::make_shared<Selection>();
  auto* stop_command =
      context.add(pilot, "stop",
                  {"end pilots and their jobs",
                   "Their jobs get TERM, and KILL after a grace; then the pilots end.",
                   {{"End one", "flotilla pilot stop 3"}, {"End all on a resource", "flotilla pilot stop --resource hpc"}}},
                  [&context, stopped] { return stop(context, *stopped, false); });
  add_selection(context, stop_command, *stopped);
  context.add_json(stop_command);

  auto* drain = context.add(pilot, "drain",
                            {"end pilots when their jobs have ended",
                             "They take no new jobs, and end with their last one.",
                             {{"Before maintenance", "flotilla pilot drain --resource hpc && flotilla pilot wait --ended --resource hpc"}}},
                            [&context, stopped] { return stop(context, *stopped, true); });
  add_selection(context, drain, *stopped);
  context.add_json(drain);

  struct WaitOptions {
    Selection selection;
    bool ended = false;
    std::int64_t timeout_ms = 0;
  };
  const auto waiting = std::make_shared<WaitOptions>();
  auto* wait =
      context.add(pilot, "wait",
                  {"wait until pilots run",
                   "Returns when each of them runs (with --ended: has ended); without a name: each that has not ended. The exit code is 1 "
                   "when one fails instead, 5 after --timeout.",
                   {{"Wait at most ten minutes", "flotilla pilot wait 3 --timeout 10min"}}},
                  [&context, waiting]() -> Result<int> {
                    const Selection& selection = waiting->selection;
                    auto client = connected();
                    if (!client) return fail(client.error());
                    v1::WaitPilotsRequest request;
                    request.mutable_ids()->Add(selection.ids.begin(), selection.ids.end());
                    request.set_label(selection.label);
                    if (!selection.resource.empty()) {
                      v1::ListPilotsRequest listed;
                      listed.set_resource(selection.resource);
                      const auto there = (*client)->list_pilots(listed);
                      if (!there) return fail(there.error());
                      for (const auto& each : there->pilots()) request.add_ids(each.id());
                      if (request.ids().empty()) {
                        if (waiting->ended) return exit_code::ok;
                        return fail(Code::not_found, "no pilot runs on " + selection.resource, "start one with 'flotilla pilot start'");
                      }
                    }
                    request.set_ended(waiting->ended);
                    request.set_timeout_ms(waiting->timeout_ms);
                    StatusLine line;
                    const WaitLimit limit(waiting->timeout_ms);
                    for (;;) {
                      line.show("waiting for pilots");
                      auto prompter = std::make_optional<Prompter>(**client, "", false, line);
                      const auto reply = (*client)->wait_pilots(request);
                      prompter.reset();
                      line.clear();
                      if (reply) {
                        if (context.json) print_pilots(context, reply->pilots());
                        return exit_code::ok;
                      }
                      if (!(*client)->lost()) return fail(reply.error());
                      line.show("waiting for the daemon to come back");
                      const auto again = find_again(*client);
                      line.clear();
                      if (!again) return fail(again.error());
                      request.set_timeout_ms(limit.left_ms());
                    }
                  });
  context.complete(add_ids(wait, "PILOT", waiting->selection.ids, "their ids"), Complete::pilot);
  context.complete(wait->add_option("--resource", waiting->selection.resource, "those on this resource")->type_name("NAME"),
                   Complete::resource);
  context.complete(wait->add_option("--label", waiting->selection.label, "those with this label")->type_name("LABEL"), Complete::label);
  wait->add_flag("--ended", waiting->ended, "wait until they have ended");
  add_duration(wait, "--timeout", waiting->timeout_ms, "give up after this");
  context.add_json(wait);
}

}  // namespace flotilla::cli
