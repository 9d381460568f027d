#include "client/amuse/control.hpp"

#include <cstdio>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/amuse/service.hpp"
#include "flotilla/worker.hpp"

namespace flotilla::amuse {
namespace {

constexpr int failed = -10, not_offered = -1;

using Text = const std::string&;

class Control {
 public:
  explicit Control(const char* program) : service_(program) {
    declare_parameters();
    declare_resources();
    declare_pilots();
    declare_workers();
    declare_jobs();
    declare_rest();
  }
  int run(int argc, char** argv) {
    const int code = worker_.run(argc, argv);
    service_.end_all();
    return code;
  }

 private:
  // What goes wrong is -10 to AMUSE; its text is for get_current_error, and for who sees this program's output.
  template <class Do>
  int guarded(Do&& act) {
    try {
      act();
      return 0;
    } catch (const std::exception& error) {
      error_ = service_.own_words(error.what());
      std::fprintf(stderr, "%s\n", error_.c_str());
      return failed;
    }
  }

  void parameter(const char* name, int Parameters::*value) {
    worker_.function(std::string("get_") + name, [this, value](int& out) {
      out = service_.parameters.*value;
      return 0;
    });
    worker_.function(std::string("set_") + name, [this, name, value](int in) {
      return set(name, [&] {
        if (in < 1) throw std::runtime_error(std::string(name) + " is " + std::to_string(in) + " s; it must be 1 s or more");
        service_.parameters.*value = in;
      });
    });
  }
  void parameter(const char* name, bool Parameters::*value) {
    worker_.function(std::string("get_") + name, [this, value](int& out) {
      out = service_.parameters.*value;
      return 0;
    });
    worker_.function(std::string("set_") + name,
                     [this, name, value](int in) { return set(name, [&] { service_.parameters.*value = in > 0; }); });
  }
  template <class Set>
  int set(const char* name, Set&& set) {
    return guarded([&] {
      if (service_.committed())
        throw std::runtime_error(std::string(name) +
                                 " cannot be changed any more: set it before the first resource, pilot or code is used");
      set();
    });
  }

  void declare_parameters() {
    parameter("debug", &Parameters::debug);
    parameter("start_hubs", &Parameters::start_hubs);
    parameter("worker_startup_timeout", &Parameters::worker_startup_s);
    parameter("worker_queue_timeout", &Parameters::worker_queue_s);
    worker_.function("get_webinterface_port", [this](int& port) { return guarded([&] { port = service_.web_port(); }); });
    worker_.function("set_webinterface_port",
                     [this](int port) { return set("webinterface_port", [&] { service_.parameters.web_port = port; }); });
    worker_.function("get_worker_port", [this](int& port) {
      port = service_.worker_port();
      return 0;
    });
    // Not in AMUSE's own interface: flotilla.amuse asks for these.
    worker_.function("attach", [this](Text where) { return set("attach", [&] { service_.parameters.attach = where; }); });
    worker_.function("get_webinterface_link", [this](std::string& link) { return guarded([&] { link = service_.web_link(); }); });
    worker_.function("initialize_code", [] { return 0; });
    worker_.function("commit_parameters", [this] { return guarded([&] { service_.commit(); }); });
    worker_.function("recommit_parameters", [this] {
      error_ = "the parameters are fixed when they are committed";
      return not_offered;
    });
  }

  void declare_resources() {
    worker_.function("new_resource", [this](int& id, Text name, Text location, Text amuse_dir, Text tmp_dir, Text gateway,
                                            Text scheduler_type, Text hub_queue_name, int hub_time_minutes) {
      return guarded([&] {
        id = service_.new_resource({name, location, amuse_dir, tmp_dir, gateway, scheduler_type, hub_queue_name, hub_time_minutes});
      });
    });
    worker_.function("get_resource_state",
                     [this](int id, std::string& name, std::string& location, std::string& gateway, std::string& amuse_dir,
                            std::string& tmp_dir, std::string& scheduler_type, std::string& hub_queue_name, int& hub_time_minutes) {
                       return guarded([&] {
                         const auto& row = service_.resource(id);
                         name = row.name, location = row.location, gateway = row.gateway, amuse_dir = row.amuse_dir, tmp_dir = row.tmp_dir;
                         scheduler_type = row.scheduler_type, hub_queue_name = row.hub_queue_name, hub_time_minutes = row.hub_time_minutes;
                       });
                     });
    worker_.function("delete_resource", [this](int id) { return guarded([&] { service_.delete_resource(id); }); });
  }

  void declare_pilots() {
    worker_.function("new_pilot", [this](int& id, Text resource_name, Text queue_name, int node_count, int time, int slots_per_node,
                                         Text label, Text options) {
      return guarded([&] { id = service_.new_pilot({resource_name, queue_name, node_count, time, slots_per_node, label, options}); });
    });
    worker_.function("get_pilot_state", [this](int id, std::string& resource_name, std::string& queue_name, int& node_count, int& time,
                                               int& slots_per_node, std::string& label, std::string& status, std::string& options) {
      return guarded([&] {
        const auto& row = service_.pilot(id);
        resource_name = row.resource_name, queue_name = row.queue_name, node_count = row.node_count, time = row.time_minutes;
        slots_per_node = row.slots_per_node, label = row.label, options = row.options;
        status = service_.pilot_status(id);
      });
    });
    worker_.function("get_pilot_status",
                     [this](int id, std::string& status) { return guarded([&] { status = service_.pilot_status(id); }); });
    worker_.function("delete_pilot", [this](int id) { return guarded([&] { service_.delete_pilot(id); }); });
    worker_.function("wait_for_pilots", [this] { return guarded([&] { service_.wait_for_pilots(worker_.channel()); }); });
  }

  void declare_workers() {
    worker_.function("get_worker_state", [this](int id, std::string& executable, std::string& label, int& worker_count, int& thread_count,
                                                std::string& status) {
      return guarded([&] {
        const auto row = service_.worker(id);
        executable = row.executable, label = row.label, worker_count = row.processes, thread_count = row.threads, status = row.status;
      });
    });
    worker_.function("get_worker_status",
                     [this](int id, std::string& status) { return guarded([&] { status = service_.worker(id).status; }); });
    worker_.function("get_number_of_workers", [this](int& count) {
      count = static_cast<int>(service_.worker_ids().size());
      return 0;
    });
    worker_.function("get_worker_ids", [this](std::span<const int> index, std::span<int> ids) {
      return guarded([&] {
        const auto all = service_.worker_ids();
        if (all.size() != index.size())
          throw std::runtime_error("there are " + std::to_string(all.size()) + " workers, not " + std::to_string(index.size()));
        std::copy(all.begin(), all.end(), ids.begin());
      });
    });
  }

  void declare_jobs() {
    worker_.function("submit_script_job", [this](int& id, Text script_dir, Text script_name, Text arguments, Text input_dir,
                                                 Text output_dir, Text stdout_file, Text stderr_file, Text label) {
      return guarded([&] {
        id = service_.submit(ScriptRow{script_dir, script_name, arguments, input_dir, output_dir, stdout_file, stderr_file, label});
      });
    });
    worker_.function("get_script_job_state", [this](int id, std::string& script_dir, std::string& script_name, std::string& arguments,
                                                    std::string& input_dir, std::string& output_dir, std::string& stdout_file,
                                                    std::string& stderr_file, std::string& label, std::string& status) {
      return guarded([&] {
        const auto& row = service_.jobs().script(id);
        script_dir = row.script_dir, script_name = row.script_name, arguments = row.arguments, input_dir = row.input_dir;
        output_dir = row.output_dir, stdout_file = row.stdout_file, stderr_file = row.stderr_file, label = row.label;
        status = service_.jobs().script_status(id);
      });
    });
    worker_.function("get_script_job_status",
                     [this](int id, std::string& status) { return guarded([&] { status = service_.jobs().script_status(id); }); });
    worker_.function("delete_script_job", [this](int id) { return guarded([&] { service_.jobs().cancel_script(id); }); });
    worker_.function("wait_for_script_jobs", [this] { return guarded([&] { service_.jobs().wait_for_scripts(); }); });
    worker_.function("submit_function_job", [this](int& id, Text function, Text arguments, Text kwarguments, Text stdout_file,
                                                   Text stderr_file, Text label) {
      return guarded([&] { id = service_.submit(FunctionRow{function, arguments, kwarguments, stdout_file, stderr_file, label}); });
    });
    worker_.function("get_function_job_state",
                     [this](int id, std::string& stdout_file, std::string& stderr_file, std::string& label, std::string& status) {
                       return guarded([&] {
                         const auto& row = service_.jobs().function(id);
                         stdout_file = row.stdout_file, stderr_file = row.stderr_file, label = row.label;
                         status = service_.jobs().function_status(id);
                       });
                     });
    worker_.function("get_function_job_status",
                     [this](int id, std::string& status) { return guarded([&] { status = service_.jobs().function_status(id); }); });
    worker_.function("get_function_job_result",
                     [this](int id, std::string& result) { return guarded([&] { result = service_.jobs().function_value(id); }); });
    worker_.function("delete_function_job", [this](int id) { return guarded([&] { service_.jobs().cancel_function(id); }); });
  }

  void declare_rest() {
    worker_.function("get_current_error", [this](std::string& text) {
      text = error_;
      return 0;
    });
    worker_.function("end_all", [this] { return guarded([&] { service_.end_all(); }); });
    worker_.function("startup_viz", [this] {
      error_ = "there is no such window any more: open the web page (get_webinterface_url)";
      return not_offered;
    });
  }

  Service service_;
  WorkerProgram worker_;
  std::string error_;
};

}  // namespace

int run_control(int argc, char** argv, const char* program) { return Control(program).run(argc, argv); }

}  // namespace flotilla::amuse
