#include "client/amuse/core/worker_request.hpp"

namespace flotilla::amuse {

std::string WorkerRequest::name() const {
  const auto at = executable.find_last_of('/');
  return at == std::string::npos ? executable : executable.substr(at + 1);
}

WorkerRequest parse_worker_request(const wire::Message& message) {
  if (message.header.function_id != start_worker_id)
    throw MessageError("the first message of a worker's connection has function id " + std::to_string(message.header.function_id) +
                       ", not " + std::to_string(start_worker_id));
  if (message.strings.size() < 5 || message.int32s.size() < 2 || message.bools.size() < 1)
    throw MessageError("a worker is asked for with 5 strings, 2 numbers and 1 truth value; there came " +
                       std::to_string(message.strings.size()) + ", " + std::to_string(message.int32s.size()) + " and " +
                       std::to_string(message.bools.size()));
  WorkerRequest request;
  request.executable = message.strings[0];
  request.stdout_target = message.strings[1];
  request.stderr_target = message.strings[2];
  request.label = message.strings[3];
  // flotilla.amuse has the interpreter behind a NUL there.
  const auto folder = message.strings[4];
  request.folder = folder.substr(0, folder.find('\0'));
  if (const auto nul = folder.find('\0'); nul != std::string_view::npos) request.interpreter = folder.substr(nul + 1);
  const auto number = [&](std::size_t i, const char* what, std::int32_t least) {
    if (message.int32s[i] < least || message.int32s[i] > 1'000'000)
      throw MessageError(std::string(what) + " is " + std::to_string(message.int32s[i]) + "; it must be " + std::to_string(least) +
                         " or more");
    return static_cast<unsigned>(message.int32s[i]);
  };
  request.processes = number(0, "number_of_workers", 1);
  request.threads = number(1, "number_of_threads", 0);
  request.dynamic_python = message.bools[0];
  if (request.executable.empty()) throw MessageError("a worker without the name of its code was asked for");
  return request;
}

WorkerSpec make_worker_spec(const WorkerRequest& request, const std::string& root, const std::vector<std::string>& sources,
                            const WorkerLimits& limits) {
  WorkerSpec spec;
  spec.name = request.name();
  spec.executable = "start-code";
  spec.files.push_back({.path = {}, .name = spec.executable, .content = worker_script(), .mode = 0700});
  spec.args = {request.dynamic_python ? "folder" : "amuse", request.dynamic_python ? request.name() : request.executable,
               request.interpreter};
  spec.label = request.label;
  spec.processes = request.processes;
  spec.threads = request.threads > 0 ? request.threads : 1;
  spec.mpi = request.processes > 1;
  spec.env["FLOTILLA_AMUSE_PROCESSES"] = std::to_string(request.processes);
  if (request.threads > 0) spec.env["OMP_NUM_THREADS"] = std::to_string(request.threads);
  spec.env["FLOTILLA_AMUSE_HERE"] = root;
  spec.private_folder = true;
  for (const auto& source : sources) spec.files.push_back({.path = source, .name = {}, .content = {}, .mode = 0});
  if (request.stdout_target == "/dev/null") spec.stdout_file = "/dev/null";
  spec.queue_timeout = limits.queue;
  spec.start_timeout = limits.start;
  spec.debug = limits.debug;
  return spec;
}

}  // namespace flotilla::amuse
