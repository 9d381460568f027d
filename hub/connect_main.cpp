// The connector: what ssh starts for the daemon. It finds the hub or starts it, hands HubStart over, and then only moves bytes.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>

#include "hub/forward.hpp"
#include "hub/hub_start.hpp"
#include "hub/join.hpp"
#include "hub/places.hpp"
#include "hub/spawn.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/programs.hpp"
#include "proto/base/random.hpp"
#include "proto/base/version.hpp"

namespace flotilla {
namespace {

using namespace std::chrono_literals;
using hub::Places;

constexpr auto start_limit = 30s;   // for the daemon to say what it wants; it does so at once
constexpr auto answer_limit = 10s;  // of a hub that runs
constexpr auto ready_limit = 20s;   // of a hub that is started, on a busy front end with a cold disk
constexpr auto lock_limit = 25s;    // another connector starts the hub at this moment

constexpr const char* usage =
    "usage: flotilla-agent connect\n\n"
    "Run by the daemon through ssh. Reads what hub is wanted (HubStart) from stdin, finds the running hub or starts it, answers\n"
    "with one line, and joins stdin and stdout to the hub.\n";

Result<unique_fd> connect_to(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = path.string();
  if (name.size() >= sizeof address.sun_path) return fail(Code::invalid_argument, "the socket path " + name + " is too long");
  std::memcpy(address.sun_path, name.c_str(), name.size() + 1);
  unique_fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return fail(errno_error(Code::unavailable, "connect to " + name));
  return fd;
}

// One line with its newline.
Result<std::string> read_line(int fd, std::chrono::milliseconds within) {
  constexpr std::size_t line_limit = 64u << 10;
  const auto until = std::chrono::steady_clock::now() + within;
  std::string line;
  for (;;) {
    char byte;
    // One byte a call: this happens once in a connection, and nothing behind the line may be swallowed.
    if (auto ok = hub::read_exactly(fd, &byte, 1, until); !ok) return fail(ok.error());
    line += byte;
    if (byte == '\n') return line;
    if (line.size() > line_limit) return fail(Code::internal, "the hub answered without end");
  }
}

// The lock ends with the descriptor.
Result<unique_fd> lock(const std::filesystem::path& file, std::chrono::milliseconds within) {
  unique_fd fd(open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return fail(errno_error(Code::permission_denied, "open " + file.string()));
  const auto until = std::chrono::steady_clock::now() + within;
  while (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return fail(errno_error(Code::unavailable, "lock " + file.string()));
    if (std::chrono::steady_clock::now() > until)
      return fail(Code::timeout, "another connector has been starting the hub on " + host_name() + " for too long", {}, Retry::yes);
    poll(nullptr, 0, 20);  // flock has no time-out of its own; this is the rare case of two starts at once
  }
  return fd;
}

bool hub_lives(const Places& places) {
  unique_fd fd(open(places.hub_lock().c_str(), O_RDWR | O_CLOEXEC));
  return fd && flock(fd.get(), LOCK_EX | LOCK_NB) != 0;
}

Status start_hub(const Places& places, const v1::HubStart& start) {
  auto in = hub::make_pipe();
  if (!in) return fail(in.error());
  auto out = hub::make_pipe();
  if (!out) return fail(out.error());
  hub::Spawn what;
  what.program = hub::own_program().string();
  // The numbers in argv tell people what it is; all else is on stdin.
  what.argv = {"flotilla-agent", "hub", start.hub_id()};
  for (const auto& [name, value] : start.env()) what.env[name] = value;
  what.env["FLOTILLA_INSTANCE"] = to_hex(start.instance());
  what.env["FLOTILLA_HUB"] = start.hub_id();
  what.env["FLOTILLA_RESOURCE"] = start.resource();
  what.in = in->read.get();
  what.out = out->write.get();
  what.session = hub::Session::new_session;
  auto child = hub::spawn(what);
  if (!child) return fail(child.error());
  in->read.reset();
  out->write.reset();
  if (auto wrote = hub::write_all(in->write.get(), hub::format_hub_start(start)); !wrote)
    return fail(Code::unavailable, "the hub on " + host_name() + " ended as it was started; its log is " + places.log_file.string());
  in->write.reset();
  auto line = read_line(out->read.get(), ready_limit);
  if (!line) {
    kill(child->pid, SIGKILL);
    std::string why = line.error().code == Code::timeout ? "was not ready in time" : "ended as it was started";
    if (line.error().code != Code::timeout) {
      const auto status = hub::reap(*child);
      why += status.signal ? " (signal " + std::to_string(status.signal) + ")" : " (exit code " + std::to_string(status.code) + ")";
    }
    return fail(Code::unavailable, "the hub on " + host_name() + " " + why + "; its log is " + places.log_file.string(), {}, Retry::yes);
  }
  if (*line == hub::ready_line) return {};
  // It has said why, in the form that goes on to the daemon.
  return fail(Code::internal, line->substr(0, line->size() - 1));
}

struct Answer {
  unique_fd socket;
  std::string line;
};

// Connects and hands HubStart over.
Result<Answer> ask_hub(const Places& places, const v1::HubStart& start) {
  auto socket = connect_to(places.link_socket());
  if (!socket) return fail(socket.error());
  if (auto wrote = hub::write_all(socket->get(), hub::format_hub_start(start)); !wrote) return fail(wrote.error());
  auto line = read_line(socket->get(), answer_limit);
  if (!line) return fail(line.error());
  return Answer{std::move(*socket), std::move(*line)};
}

Result<Answer> find_or_start(const Places& places, const v1::HubStart& start) {
  Error last;
  // A hub may end between two steps (replaced, or because nobody needed it): three rounds see it through.
  for (int round = 0; round < 3; ++round) {
    if (auto answer = ask_hub(places, start)) {
      if (answer->line != hub::replaced_line) return answer;
      // It ends when its socket does: the end of file is the sign.
      char byte;
      while (read(answer->socket.get(), &byte, 1) > 0) {}
    } else {
      last = answer.error();
    }
    // Who was the last there removes the directory.
    if (auto made = make_private_dir(places.runtime); !made) return fail(made.error());
    auto locked = lock(places.start_lock(), lock_limit);
    if (!locked) return fail(locked.error());
    if (auto there = connect_to(places.link_socket())) continue;  // another connector was faster
    if (hub_lives(places)) {
      // It ends at this moment, or its socket's file was lost: it binds it again when it notices.
      const auto until = std::chrono::steady_clock::now() + answer_limit;
      while (hub_lives(places) && !connect_to(places.link_socket()) && std::chrono::steady_clock::now() < until) poll(nullptr, 0, 20);
      continue;
    }
    if (auto started = start_hub(places, start); !started) return fail(started.error());
  }
  if (auto answer = ask_hub(places, start)) {
    if (answer->line != hub::replaced_line) return answer;
  } else {
    last = answer.error();
  }
  return fail(Code::unavailable, "the hub on " + host_name() + " does not answer: " + last.message,
              "its log is " + places.log_file.string(), Retry::yes);
}

int refuse(const Error& error) {
  // Passed on as it came where the hub has said it itself.
  const std::string line = error.message.starts_with("ERROR ") ? error.message + "\n" : hub::format_error_line(error);
  (void)hub::write_all(STDOUT_FILENO, line);
  return 1;
}

}  // namespace

int connect_main(int argc, char** argv) {
  if (argc >= 2 && !std::strcmp(argv[1], "--help")) {
    std::fputs(usage, stdout);
    return 0;
  }
  signal(SIGPIPE, SIG_IGN);
  auto start = hub::read_hub_start(STDIN_FILENO, start_limit);
  if (!start) return refuse(start.error());
  start->set_connector_build(build_version());
  start->set_connector_protocol(protocol_version);
  auto places = hub::make_places(*start);
  if (!places) return refuse(places.error());
  // From the connector of another front end: it starts one there if there is none here.
  const bool only_running = argc >= 2 && !std::strcmp(argv[1], "--only-running");
  if (!only_running && !hub_lives(*places)) hub::forward_to_other_host(*places, *start);
  auto answer = only_running ? ask_hub(*places, *start) : find_or_start(*places, *start);
  if (!answer) return refuse(answer.error());
  if (!hub::write_all(STDOUT_FILENO, answer->line)) return 1;
  if (!answer->line.starts_with(hub::hub_line_start)) return 1;
  hub::join_and_exit(STDIN_FILENO, STDOUT_FILENO, answer->socket.get(), hub::WhenInputEnds::leave);
}

}  // namespace flotilla
