#include <fmt/format.h>

#include <unistd.h>

#include <cstdio>

#include "client/cli/command.hpp"
#include "client/cli/local_time.hpp"
#include "client/cli/prompts.hpp"
#include "client/cli/test_steps.hpp"
#include "proto/base/paths.hpp"

namespace flotilla::cli {
namespace {

Result<std::unique_ptr<DaemonClient>> connected() { return DaemonClient::connect(StartDaemon::yes); }

std::string hub_text(const v1::Resource& resource) {
  const std::string state = state_text(resource.hub_state());
  if (resource.spec().location().empty() && resource.hub_state() == v1::HUB_NONE) return "this machine";
  if (resource.hub_state() == v1::HUB_NONE) return "not connected";
  if (resource.hub_state() == v1::HUB_UPLOADING && resource.upload_fraction() > 0)
    return state + " " + std::to_string(static_cast<int>(resource.upload_fraction() * 100)) + " %";
  return state;
}

std::string driver_text(const v1::ResourceSpec& spec) {
  if (!spec.driver().empty()) return spec.driver();
  return spec.location().empty() ? "local" : "ssh";
}

void show_resource(const v1::Resource& resource, const Look& look) {
  const auto& spec = resource.spec();
  const auto now = now_ms();
  const auto row = [&](const char* name, const std::string& value, const char* shade = "") {
    if (!value.empty()) print_line(paint(pad(name, 13), colour::bold, look) + paint(printable(value), shade, look));
  };
  row("name", spec.name());
  row("location", spec.location().empty() ? "this machine" : spec.location());
  row("driver", driver_text(spec));
  row("gateway", spec.gateway());
  row("transport", spec.location().empty() ? "" : spec.transport().empty() ? "libssh" : spec.transport());
  row("scratch_dir", spec.scratch_dir());
  for (const auto& host : spec.hosts()) row("host", host);
  for (const auto& line : spec.setup()) row("setup", line);
  row("setup_timeout", spec.setup_timeout_ms() ? format_duration(spec.setup_timeout_ms()) : "");
  for (const auto& [key, value] : spec.env()) row("env", key + "=" + value);
  for (const auto& [key, value] : spec.options()) row("option", key + "=" + value);
  row("debug", spec.debug() ? "on" : "");
  row("hub", hub_text(resource) + (resource.hub_since_ms() ? ", since " + format_moment(resource.hub_since_ms(), now) : ""),
      state_colour(state_text(resource.hub_state())));
  row("", resource.hub_message());
  row("hub host", resource.hub_host());
  row("hub process", resource.hub_pid() ? std::to_string(resource.hub_pid()) : "");
  row("hub build", resource.hub_build());
  row("round trip", resource.round_trip_us() ? fmt::format("{:.1f} ms", static_cast<double>(resource.round_trip_us()) / 1000) : "");
  row("added", format_moment(resource.created_ms(), now));
}

Result<int> list(const Context& context) {
  auto client = connected();
  if (!client) return fail(client.error());
  const auto reply = (*client)->list_resources({});
  if (!reply) return fail(reply.error());
  if (context.json) {
    std::vector<std::string> parts;
    for (const auto& resource : reply->resources()) parts.push_back(to_json(resource));
    print_line(json_list(parts));
    return exit_code::ok;
  }
  std::vector<std::vector<Cell>> rows;
  for (const auto& resource : reply->resources()) {
    const auto& spec = resource.spec();
    rows.push_back({spec.name(), driver_text(spec), spec.location().empty() ? "-" : spec.location(),
                    spec.gateway().empty() ? "-" : spec.gateway(), Cell(hub_text(resource), state_colour(state_text(resource.hub_state()))),
                    resource.hub_message()});
  }
  print(format_table({{"NAME"}, {"DRIVER"}, {"LOCATION"}, {"GATEWAY"}, {"HUB"}, {"", Align::left, true}}, rows, context.out));
  return exit_code::ok;
}

Result<int> connect_one(const std::string& name, bool accept_new, bool disconnect) {
  auto client = connected();
  if (!client) return fail(client.error());
  StatusLine line;
  Status said;
  bool done = false;
  {
    const Prompter prompter(**client, name, accept_new, line);
    v1::ConnectResourceRequest request;
    request.set_name(name);
    request.set_disconnect(disconnect);
    const Status ended = (*client)->connect_resource(request, [&](const v1::Progress& progress) {
      if (progress.has_error()) said = fail(error_of_wire(progress.error()));
      done = done || progress.done();
      if (!progress.done())
        line.show(name + ": " + progress.message() +
                  (progress.fraction() > 0 ? " " + std::to_string(static_cast<int>(progress.fraction() * 100)) + " %" : ""));
      return true;
    });
    line.clear();
    if (!said) return fail(said.error());
    if (!ended) return fail(ended.error());
  }
  note(name + (disconnect ? " is disconnected." : " is connected."));
  return exit_code::ok;
}

Result<int> test_one(const Context& context, const std::string& name, bool accept_new) {
  auto client = connected();
  if (!client) return fail(client.error());
  TestSteps steps(context, 15, name);
  Status ended;
  {
    const Prompter prompter(**client, name, accept_new, steps.line());
    v1::TestResourceRequest request;
    request.set_name(name);
    ended = (*client)->test_resource(request, [&](const v1::TestStep& step) {
      steps.take(step);
      return true;
    });
  }
  steps.finish();
  if (!ended) return fail(ended.error());
  return steps.failed() ? exit_code::failed : exit_code::ok;
}

}  // namespace

void add_resource_commands(Context& context, CLI::App* root) {
  auto* resource = context.add(
      root, "resource",
      {"machines and clusters that pilots can run on",
       "A resource says how to get at a machine or cluster: how to log in, how pilots are started there, where its scratch space "
       "is. The far side needs sshd and a POSIX shell; nothing has to be installed. The resource 'local' (this machine) is always "
       "there.",
       {{"Add a workstation behind ssh", "flotilla resource add desk --location me@desk.example.org"},
        {"See whether all of it works", "flotilla resource test desk"}}});

  struct AddOptions {
    v1::ResourceSpec spec;
    std::string from_file;
    std::int64_t setup_timeout_ms = 0;
    bool replace = false, accept_new = false, connect = false, test = false;
  };
  const auto adding = std::make_shared<AddOptions>();
  auto* add = context.add(
      resource, "add",
      {"add a resource",
       "Adds a resource by options or from a file. The description is checked at once; the machine is not contacted unless "
       "--test, --connect or --accept-new is given.\n\n"
       "Names have letters, digits, '.', '_' and '-'. Settings of ~/.ssh/config (user, keys, ports) hold for the location too.",
       {{"A workstation", "flotilla resource add desk --location me@desk.example.org"},
        {"A cluster behind it, with two nodes",
         "flotilla resource add hpc --location me@login.hpc --gateway desk --host node1 --host node2 --scratch-dir /scratch/me"},
        {"Modules for every job", "flotilla resource add hpc --location hpc --setup 'module load gcc' --env OMP_PROC_BIND=true"},
        {"From a file ('flotilla help from-file' lists the keys)", "flotilla resource add --from-file hpc.toml"}}},
      [&context, adding]() -> Result<int> {
        std::vector<v1::ResourceSpec> specs;
        if (!adding->from_file.empty()) {
          auto text = read_file(adding->from_file);
          if (!text) return fail(Code::invalid_argument, text.error().message);
          auto parsed = parse_resources(*text, adding->from_file);
          if (!parsed) return fail(parsed.error());
          specs = std::move(*parsed);
        } else {
          if (adding->spec.name().empty())
            return fail(Code::invalid_argument, "the resource's name is missing",
                        "write 'flotilla resource add NAME --location user@host', or give --from-file");
          adding->spec.set_setup_timeout_ms(adding->setup_timeout_ms);
          specs.push_back(adding->spec);
        }
        auto client = connected();
        if (!client) return fail(client.error());
        std::vector<std::string> parts;
        for (const auto& spec : specs) {
          v1::AddResourceRequest request;
          *request.mutable_spec() = spec;
          request.set_replace(adding->replace);
          const auto added = (*client)->add_resource(request);
          if (!added) return fail(added.error());
          if (context.json) parts.push_back(to_json(*added));
          else
            note("Added " + added->spec().name() +
                 (added->spec().location().empty() ? ": this machine, since no --location was given." : "."));
        }
        if (context.json) print_line(json_list(parts));
        int code = exit_code::ok;
        for (const auto& spec : specs) {
          if (adding->test) {
            const auto tested = test_one(context, spec.name(), adding->accept_new);
            if (!tested) return fail(tested.error());
            code = std::max(code, *tested);
          } else if (adding->connect || adding->accept_new) {
            const auto joined = connect_one(spec.name(), adding->accept_new, false);
            if (!joined) return fail(joined.error());
          }
        }
        return code;
      });
  v1::ResourceSpec& spec = adding->spec;
  add->add_option_function<std::string>(
      "NAME", [&spec](const std::string& value) { spec.set_name(value); }, "how it is called from now on");
  const auto text = [&](const char* option, const char* type, void (v1::ResourceSpec::*set)(const std::string&), const char* help) {
    return add
        ->add_option_function<std::string>(
            option, [&spec, set](const std::string& value) { (spec.*set)(value); }, help)
        ->type_name(type);
  };
  text("--location", "[USER@]HOST[:PORT]", &v1::ResourceSpec::set_location<const std::string&>, "where to log in; none = this machine");
  context.complete(text("--driver", "NAME", &v1::ResourceSpec::set_driver<const std::string&>,
                        "how pilots are started: local or ssh (default: ssh when there is a location)")
                       ->check(CLI::IsMember({"local", "ssh"})),
                   Complete::choices);
  context.complete(
      text("--gateway", "RESOURCE", &v1::ResourceSpec::set_gateway<const std::string&>, "the resource that the connection goes through"),
      Complete::resource);
  text("--scratch-dir", "FOLDER", &v1::ResourceSpec::set_scratch_dir<const std::string&>,
       "where files are put there; default: the first usable of ~/.cache/flotilla, /tmp, /dev/shm");
  context.complete(text("--transport", "NAME", &v1::ResourceSpec::set_transport<const std::string&>,
                        "libssh (default) or openssh: the system's ssh program, for Kerberos and the like")
                       ->check(CLI::IsMember({"libssh", "openssh"})),
                   Complete::choices);
  const auto lines = [&](const char* option, const char* type, auto adder, const char* help) {
    add->add_option_function<std::vector<std::string>>(
           option,
           [&spec, adder](const std::vector<std::string>& values) {
             for (const auto& value : values) adder(spec, value);
           },
           help)
        ->type_name(type)
        ->take_all()
        ->allow_extra_args(false);
  };
  lines(
      "--host", "HOST", [](v1::ResourceSpec& to, const std::string& value) { to.add_hosts(value); },
      "a node that the front end reaches by its own ssh (may be given several times); none = the front end itself");
  lines(
      "--setup", "LINE", [](v1::ResourceSpec& to, const std::string& value) { to.add_setup(value); },
      "a shell line, run once before each pilot (may be given several times)");
  add_duration(add, "--setup-timeout", adding->setup_timeout_ms, "limit for all setup lines together (default: 10min)");
  add_assignments(add, "--env,-e", *spec.mutable_env(), "environment variable of pilots and their jobs", true);
  add_assignments(add, "--option,-o", *spec.mutable_options(),
                  "option of the driver; ssh has ssh_config: a file in the place of ~/.ssh/config", false);
  add->add_flag_function(
      "--debug", [&spec](std::int64_t) { spec.set_debug(true); }, "log more there, keep job folders");
  context.complete(add->add_option("--from-file", adding->from_file, "take the description from a TOML file, instead of other options")
                       ->type_name("FILE"),
                   Complete::file);
  exclude_others(add, "--from-file");
  add->add_flag("--replace", adding->replace, "when there is one with this name, change it");
  add->add_flag("--test", adding->test, "test it step by step");
  add->add_flag("--connect", adding->connect, "log in now");
  add->add_flag("--accept-new", adding->accept_new, "log in now, and take the host's key as right when it is not known yet");
  context.add_json(add);

  auto* list_command = context.add(resource, "list",
                                   {"list resources and their hubs",
                                    "Shows each resource and whether its hub is connected.",
                                    {{"All names, for a script", "flotilla resource list --json | jq -r '.[].spec.name'"}}},
                                   [&context] { return list(context); });
  context.add_json(list_command);

  const auto with_name = [&](const char* command, Page page, std::function<Result<int>(const std::string&)> run) {
    const auto value = std::make_shared<std::string>();
    auto* app = context.add(resource, command, std::move(page), [value, run] { return run(*value); });
    context.complete(app->add_option("RESOURCE", *value, "its name")->required()->type_name(""), Complete::resource);
    return app;
  };

  context.add_json(with_name(
      "show",
      {"show one resource in full", "Shows its description and the state of its hub.", {{"Show one", "flotilla resource show hpc"}}},
      [&context](const std::string& which) -> Result<int> {
        auto client = connected();
        if (!client) return fail(client.error());
        v1::ListResourcesRequest request;
        request.set_name(which);
        const auto reply = (*client)->list_resources(request);
        if (!reply) return fail(reply.error());
        if (reply->resources().empty())
          return fail(Code::not_found, "there is no resource '" + which + "'", "'flotilla resource list' shows what there is");
        if (context.json) print_line(to_json(reply->resources(0)));
        else show_resource(reply->resources(0), context.out);
        return exit_code::ok;
      }));

  const auto force = std::make_shared<bool>(false);
  with_name(
      "remove",
      {"remove a resource",
       "Ends its hub and forgets it. Refused while pilots run on it, unless --force is given. Pilots that cannot be reached are named, "
       "with the time when they end by themselves.",
       {{"Remove one, and end its pilots", "flotilla resource remove hpc --force"}}},
      [force](const std::string& which) -> Result<int> {
        auto client = connected();
        if (!client) return fail(client.error());
        v1::RemoveResourceRequest request;
        request.set_name(which);
        request.set_force(*force);
        const auto removed = (*client)->remove_resource(request);
        if (!removed) return fail(removed.error());
        note("Removed " + which + ".");
        for (const auto& left : removed->left_behind())
          std::fputs(("Pilot " + std::to_string(left.pilot()) + " could not be told to end: its link is cut. It ends by itself by " +
                      format_moment(left.ends_by_ms(), now_ms()) + ".\n")
                         .c_str(),
                     stderr);
        return exit_code::ok;
      })
      ->add_flag("--force", *force, "end its pilots and their jobs first");

  const auto accept_new = std::make_shared<bool>(false);
  auto* test = with_name(
      "test",
      {"see step by step whether a resource works",
       "Goes through name, reachability, host key, authentication, shell, scratch space, architecture and time skew, and says for "
       "each what works and what to do about what does not. The exit code is 1 when a step failed.\n\n"
       "Questions (password, second factor, host key) are asked on the terminal.",
       {{"Test one", "flotilla resource test hpc"}, {"In a script, first contact", "flotilla resource test hpc --accept-new --json"}}},
      [&context, accept_new](const std::string& which) { return test_one(context, which, *accept_new); });
  test->add_flag("--accept-new", *accept_new, "take the host's key as right when it is not known yet (never a changed one)");
  context.add_json(test);

  auto* connect = with_name("connect",
                            {"log in to a resource",
                             "Logs in, brings the agent there when it is missing, and starts the hub. Done by itself when a pilot "
                             "starts; on its own it is useful for passwords and second factors. One login serves everything.",
                             {{"Log in", "flotilla resource connect hpc"}}},
                            [accept_new](const std::string& which) { return connect_one(which, *accept_new, false); });
  connect->add_flag("--accept-new", *accept_new, "take the host's key as right when it is not known yet (never a changed one)");
  with_name("disconnect",
            {"end the connection to a resource",
             "Its hub, pilots and jobs go on; 'flotilla resource connect' comes back to them.",
             {{"Log out", "flotilla resource disconnect hpc"}}},
            [](const std::string& which) { return connect_one(which, false, true); });
}

}  // namespace flotilla::cli
