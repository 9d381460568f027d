#include "client/amuse/check.hpp"

#include <poll.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "client/amuse/core/home_line.hpp"
#include "client/amuse/core/worker_request.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/run_program.hpp"

namespace flotilla::amuse {
namespace {

using std::chrono::seconds;

constexpr seconds program_limit{60};  // for a program of this machine that is asked
constexpr seconds pilot_limit{600};   // a batch system may let it wait
constexpr seconds pilot_lasts{3600};  // should nobody be there to end it
constexpr seconds pilot_idle{120};    // nor anything run on it
constexpr seconds pilot_end_limit{20};
constexpr seconds worker_start_limit{60}, worker_queue_limit{60};
constexpr int answer_limit_ms = 10'000;
constexpr seconds own_end_limit{5};
constexpr int round_trips = 21;  // the middle one is told
constexpr std::size_t told_lines = 5;

// Answers every call with its own header until it is told to end: the channel without any code of AMUSE.
constexpr const char* small_worker = R"py(
import socket, sys
channel = socket.create_connection((sys.argv[2], int(sys.argv[1])))
channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while True:
    header = b""
    while len(header) < 44:
        part = channel.recv(44 - len(header))
        if not part: sys.exit(0)
        header += part
    channel.sendall(header)
    if header[8:12] == bytes(4): break
)py";

// AMUSE prints when it is imported: what is meant for us is marked.
constexpr const char* question = R"py(
import sys
from importlib import metadata
def tell(key, text): print("\nflotilla:" + key + "\t" + " ".join(str(text).split()))
try: tell("numpy", metadata.version("numpy"))
except Exception: pass
try:
    from amuse.rfi import channel
    from amuse import config
    tell("mpiexec", config.mpi.mpiexec)
except Exception as error: tell("trouble", type(error).__name__ + ": " + str(error))
)py";

std::string field(const std::string& text, const std::string& key) {
  const auto mark = "\nflotilla:" + key + "\t";
  const auto at = text.find(mark);
  if (at == std::string::npos) return {};
  const auto begin = at + mark.size();
  return text.substr(begin, text.find('\n', begin) - begin);
}

std::vector<std::string> split_words(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find(' ', at), text.size());
    if (end > at) words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

std::string last_lines(std::string_view text) {
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  std::size_t at = text.size();
  for (std::size_t i = 0; i < told_lines && at != std::string_view::npos && at > 0; ++i) at = text.rfind('\n', at - 1);
  return std::string(at == std::string_view::npos || at == 0 ? text : text.substr(at + 1));
}

struct Call {
  std::int32_t function_id;
  int limit_ms;
};

// Sends a call without arguments, and takes its answer. Throws MessageError, ChannelClosed.
void call(wire::FdStream& stream, Call what) {
  unsigned char header[wire::header_size];
  wire::format_header({.big_endian = wire::native_big_endian, .call_id = 1, .function_id = what.function_id}, header);
  iovec part{header, sizeof header};
  stream.write(&part, 1);
  pollfd answer{stream.fd(), POLLIN, 0};
  if (!stream.has_input() && ::poll(&answer, 1, what.limit_ms) == 0)
    throw MessageError("it connected, but did not answer within " + std::to_string(what.limit_ms / 1000) + " s");
  wire::Message message;
  if (!wire::receive(stream, message, 1u << 20)) throw ChannelClosed("it connected, and ended without an answer");
  if (message.header.error)
    throw MessageError("it answered with an error: " + std::string(message.strings.size() ? message.strings[0] : std::string_view()));
}

// What one can do about it is no part of its text.
void take_error(TestStep& step, const FlotillaError& error) {
  step.status = TestStep::Status::failed;
  step.message = error.message();
  step.hint = error.hint();
  const auto said = error.exit() ? last_lines(without_home_line(error.exit()->stderr_tail)) : std::string();
  if (!said.empty()) step.message += ":\n" + said;
}

// Jobs of others may have come to it since it runs: these end first. One that waits in a queue would wait on.
void tell_to_end(const Pilot& pilot) {
  if (pilot.info().state < PilotState::running) pilot.stop();
  else pilot.drain();
}

}  // namespace

TestStep Check::begin(const std::string& name) {
  TestStep step;
  step.name = name;
  began_ = std::chrono::system_clock::now();
  on_step_(step);
  step.status = Status::ok;
  return step;
}

void Check::end(TestStep step) {
  step.took = std::chrono::duration_cast<Duration>(std::chrono::system_clock::now() - began_);
  on_step_(step);
}

void Check::skip(const std::string& name, const std::string& reason) {
  TestStep step;
  step.name = name;
  step.status = Status::skipped;
  step.message = reason;
  on_step_(step);
}

void Check::here() {
  auto step = begin("AMUSE here");
  const auto place = find_amuse(options_.python);
  if (!place) {
    step.status = Status::failed;
    step.message = place.error().message;
    step.hint = place.error().hint;
    end(step);
    skip("distributed", "there is no AMUSE here");
    skip("mpiexec here", "there is no AMUSE here");
    return;
  }
  HereFacts facts;
  facts.python = place->python;
  facts.root = root_ = place->root.string();
  if (const auto text = read_file(place->root / "_version.py")) {
    const auto at = text->find("\n__version__ =");
    if (at != std::string::npos) facts.version = version_ = version_in(std::string_view(*text).substr(at));
  }
  if (const auto ran = run_program({place->python, "-c", question}, Listen::output_and_errors, program_limit)) {
    facts.numpy = field(ran->said, "numpy");
    facts.trouble = field(ran->said, "trouble");
    facts.mpiexec = field(ran->said, "mpiexec");
  }
  auto judged = judge_here(facts);
  end(judged);

  step = begin("distributed");
  const auto now = installed(*place, options_.program);
  const std::string by_hand = options_.python.empty() ? "flotilla amuse install" : "flotilla amuse install --python " + options_.python;
  step.status = now.what == Installed::What::ours ? Status::ok : Status::failed;
  step.hint = now.what == Installed::What::ours ? "" : by_hand;
  if (place->distributed.empty()) {
    step.message = "this AMUSE has no amuse.community.distributed; Flotilla can stand in for it";
  } else if (now.what == Installed::What::ours) {
    step.message = now.file.string() + " is this Flotilla";
  } else if (now.what == Installed::What::other_flotilla) {
    step.status = Status::warning;
    step.message = now.file.string() + " is another Flotilla";
  } else {
    step.message = now.what == Installed::What::nothing ? "Flotilla is not installed in this AMUSE"
                                                        : now.file.string() + " is not Flotilla: scripts use something else";
  }
  end(step);

  step = begin("mpiexec here");
  if (const auto words = split_words(facts.mpiexec); !words.empty()) {
    auto trial = words;
    trial.insert(trial.end(), {"-n", "1", "true"});
    if (const auto ran = run_program(trial, Listen::output_and_errors, program_limit)) {
      facts.mpiexec_code = ran->code;
      facts.mpiexec_said = last_lines(ran->said);
      // What Open MPI says of root is longer than the last lines.
      if (ran->said.find("OMPI_ALLOW_RUN_AS_ROOT") != std::string::npos) facts.mpiexec_said = ran->said;
    } else {
      facts.mpiexec_code = 127;
      facts.mpiexec_said = ran.error().message;
    }
  }
  end(judge_mpiexec_here(facts));
}

void Check::there(const Daemon& daemon) {
  if (!reach(daemon)) {
    for (const char* name : {"pilot", "channel", "AMUSE there", "MPI", "two ranks"}) skip(name, options_.resource + " was not reached");
    return;
  }
  if (!start_pilot(daemon)) {
    end_pilot();
    for (const char* name : {"channel", "AMUSE there", "MPI", "two ranks"}) skip(name, "there is no pilot");
    return;
  }
  try {
    try_channel(daemon);
    try_codes(daemon);
  } catch (...) {
    end_pilot();
    throw;
  }
  end_pilot();
}

bool Check::reach(const Daemon& daemon) {
  auto step = begin("resource");
  const auto resource = daemon.resource(options_.resource);
  const auto spec = resource.info().spec;
  local_ = spec.location.empty();
  amuse_dir_known_ = !options_.amuse_dir.empty() || spec.env.contains("FLOTILLA_AMUSE_DIR");
  step.message = options_.resource + (local_ ? ", this machine" : ", " + spec.location);
  // One line when all is well; else what 'flotilla resource test' says of the step that is not.
  resource.test([&](const TestStep& part) {
    if (part.status == Status::running) {
      auto now = part;
      now.name = step.name + ": " + part.name;
      on_step_(now);
    }
    const bool worse =
        (part.status == Status::failed && step.status != Status::failed) || (part.status == Status::warning && step.status == Status::ok);
    if (!worse) return;
    step.status = part.status;
    step.message = part.name + ": " + part.message;
    step.hint = part.hint;
  });
  if (step.status == Status::ok && !local_)
    if (const auto round_trip = resource.info().round_trip; round_trip.count() > 0)
      step.message += ", " + std::to_string(round_trip.count()) + " ms away";
  end(step);
  return step.status != Status::failed;
}

bool Check::start_pilot(const Daemon& daemon) {
  auto step = begin("pilot");
  try {
    PilotSpec spec;
    spec.resource = options_.resource;
    spec.label = "amuse-test";
    spec.time = pilot_lasts;
    spec.idle = pilot_idle;
    {
      const std::lock_guard lock(mutex_);
      if (interrupted_) return false;
      pilot_ = daemon.start_pilot(spec);
    }
    const auto info = pilot_->wait(pilot_limit);
    const auto host = info.nodes.empty() ? options_.resource : info.nodes[0].host;
    step.message = "runs on " + host + " with " + (info.slots == 1 ? "1 processor" : std::to_string(info.slots) + " processors");
  } catch (const TimedOutError& error) {
    take_error(step, error);
    step.hint = "where nodes come later, start one by hand and see: flotilla pilot start " + options_.resource;
  } catch (const FlotillaError& error) {
    take_error(step, error);
    if (step.hint.empty() && pilot_) step.hint = "flotilla logs " + std::to_string(pilot_->id());
  }
  end(step);
  return step.status == Status::ok;
}

void Check::end_pilot() {
  if (!pilot_) return;
  tell_to_end(*pilot_);
  try {
    pilot_->wait_ended(pilot_end_limit);
  } catch (const TimedOutError&) {
    TestStep step;
    step.name = "end";
    step.status = Status::warning;
    step.message = "pilot " + std::to_string(pilot_->id()) + " still has a job to end, and ends with it";
    step.hint = "to end both: flotilla pilot stop " + std::to_string(pilot_->id());
    on_step_(step);
  }
}

void Check::interrupt() {
  const std::lock_guard lock(mutex_);
  interrupted_ = true;
  if (probing_) probing_->cancel();
  if (pilot_) tell_to_end(*pilot_);
}

// On this machine jobs find what the user's shell finds, wherever the daemon was started.
void Check::make_at_home(std::map<std::string, std::string>& env) const {
  if (!options_.amuse_dir.empty()) env["FLOTILLA_AMUSE_DIR"] = options_.amuse_dir;
  if (!local_) return;
  if (!amuse_dir_known_ && !root_.empty()) env["FLOTILLA_AMUSE_DIR"] = root_;
  for (const char* name : {"PATH", "LD_LIBRARY_PATH"})
    if (const char* value = std::getenv(name)) env[name] = value;
}

void Check::try_channel(const Daemon& daemon) {
  auto step = begin("channel");
  try {
    WorkerSpec spec;
    spec.name = "channel-test";
    spec.executable = "python3";
    spec.args = {"-c", small_worker};
    spec.pilot = pilot_->id();
    spec.start_timeout = worker_start_limit;
    spec.queue_timeout = worker_queue_limit;
    spec.private_folder = true;
    make_at_home(spec.env);
    auto worker = daemon.start_worker(spec);
    wire::FdStream stream(worker.fd());
    std::vector<std::chrono::microseconds> took;
    for (int i = 0; i < round_trips; ++i) {
      const auto before = std::chrono::steady_clock::now();
      call(stream, {1, answer_limit_ms});
      took.push_back(std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - before));
    }
    call(stream, {wire::stop_id, answer_limit_ms});
    worker.exit(own_end_limit);
    worker.close();
    std::nth_element(took.begin(), took.begin() + round_trips / 2, took.end());
    char text[40];
    std::snprintf(text, sizeof text, "%.2f ms", static_cast<double>(took[round_trips / 2].count()) / 1000);
    step.message = std::string("a worker there answers in ") + text;
  } catch (const FlotillaError& error) {
    take_error(step, error);
    // Without a Python it is not known; the codes will show.
    if (error.exit() && (error.exit()->kind == ExitKind::start_failed || error.exit()->code == 127)) step.status = Status::warning;
    if (step.hint.empty()) step.hint = "this needs python3 there; see whether the codes below answer";
  } catch (const std::exception& error) {
    step.status = Status::failed;
    step.message = error.what();
    step.hint = "flotilla logs daemon";
  }
  end(step);
}

std::optional<Probe> Check::probe(const Daemon& daemon) {
  CommandSpec spec;
  spec.name = "amuse-probe";
  spec.argv = {"sh", "probe", "amuse", "", ""};
  spec.files.push_back({.path = {}, .name = "probe", .content = probe_script(), .mode = 0700});
  spec.pilot = pilot_->id();
  spec.queue_timeout = worker_queue_limit;
  spec.time_limit = program_limit;
  make_at_home(spec.env);
  if (!root_.empty()) spec.env["FLOTILLA_AMUSE_HERE"] = root_;
  auto step = begin("AMUSE there");
  try {
    {
      const std::lock_guard lock(mutex_);
      if (interrupted_) return std::nullopt;
      probing_ = daemon.submit(spec);
    }
    auto found = parse_probe(probing_->result().standard_output);
    const std::lock_guard lock(mutex_);
    probing_.reset();
    step = judge_home(found, version_, options_.resource);
    end(step);
    return found;
  } catch (const JobFailedError& error) {
    take_error(step, error);
    if (error.exit() && error.exit()->code == 67) {  // the script's own words
      step.message = error.exit()->stderr_tail.substr(0, error.exit()->stderr_tail.find('\n'));
      step.hint = "install AMUSE there, or say where it is: --amuse-dir here, amuse_dir of the resource in a script";
    }
  }
  end(step);
  return std::nullopt;
}

void Check::try_codes(const Daemon& daemon) {
  const auto found = probe(daemon);
  if (!found) {
    for (const char* name : {"MPI", "two ranks"}) skip(name, "there is no AMUSE there");
    return;
  }
  began_ = std::chrono::system_clock::now();
  const auto mpi = judge_mpi(*found, options_.resource);
  end(mpi);
  std::vector<const FoundCode*> works;
  for (const auto& code : found->codes)
    if (try_code(daemon, code, 1, code.name())) works.push_back(&code);
  const auto ranks = choose_two_ranks(works, *found, mpi, pilot_->info().slots);
  if (ranks.code) try_code(daemon, *ranks.code, 2, "two ranks");
  else skip("two ranks", ranks.reason);
}

bool Check::try_code(const Daemon& daemon, const FoundCode& code, unsigned processes, const std::string& name) {
  auto step = begin(name);
  step.message = std::string(code.script       ? "a script"
                             : code.with_mpi() ? "built with MPI"
                                               : "built without MPI") +
                 ", started and answered";
  if (processes > 1) step.message = code.name() + " with " + std::to_string(processes) + " ranks started and answered";
  try {
    WorkerRequest request;
    request.executable = code.path;
    request.stdout_target = "/dev/null";
    request.processes = processes;
    auto spec = make_worker_spec(request, root_, {}, {worker_queue_limit, worker_start_limit, false});
    spec.pilot = pilot_->id();
    make_at_home(spec.env);
    auto worker = daemon.start_worker(spec);
    try {
      wire::FdStream stream(worker.fd());
      call(stream, {wire::stop_id, answer_limit_ms});
    } catch (const ChannelClosed&) {
      worker.check();  // throws with how it died
      throw;
    }
    worker.exit(own_end_limit);
    worker.close();
  } catch (const FlotillaError& error) {
    take_error(step, error);
    const auto said = error.exit() ? error.exit()->stderr_tail : std::string();
    if (error.exit() && error.exit()->kind == ExitKind::start_timeout)
      step.hint = "it runs and says nothing: see what it waits for by starting it there by hand: " + code.path;
    else
      step.hint = processes > 1 ? "see whether 'mpiexec -n 2' works there, and whether it is the MPI that the code was built with"
                                : advice_for(code, said, options_.resource);
  } catch (const std::exception& error) {
    step.status = Status::failed;
    step.message = error.what();
    step.hint = advice_for(code, {}, options_.resource);
  }
  end(step);
  return step.status == Status::ok;
}

}  // namespace flotilla::amuse
