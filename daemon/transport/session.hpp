// An authenticated connection to one machine: by libssh, or by the system's ssh. Everything here is called on the
// connection's own thread, in straight lines: a call waits, and ends early when ThreadControl::stop() comes.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/transport/user_channel.hpp"
#include "daemon/transport/core/location.hpp"
#include "daemon/transport/hub_connection.hpp"
#include "daemon/transport/thread_control.hpp"

namespace flotilla::daemon {

// The steps of getting to a hub; `flotilla resource test` shows them by these names.
enum class Step { name, reachability, host_key, authentication, shell, scratch, architecture, time_skew, agent, hub };
const char* step_name(Step step);

// Is told how it goes. A step that fails is told by the error that its call returns.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void begin(Step step, const std::string& message, double fraction = -1) = 0;
  virtual void done(Step step, const std::string& message) = 0;
  virtual void warn(Step step, const std::string& message, const std::string& hint) = 0;
  virtual void skip(Step step, const std::string& message) = 0;
};

struct SessionServices {
  std::shared_ptr<ThreadControl> control;
  Prompter* prompter = nullptr;                                                                                 // io thread only
  std::function<void(const std::string& host, int port, std::function<void(Result<unique_fd>)>)> dial_gateway;  // io thread only
};

// The end of a command's stdout is seen before its exit status and the end of its stderr.
constexpr auto last_words_patience = std::chrono::seconds(1);

// A command that runs on the other machine.
class RemoteCommand {
 public:
  virtual ~RemoteCommand() = default;  // ends it, as closing its connection does
  // The next line of its stdout, without its newline. An error: it ended before, or the time is over.
  virtual Result<std::string> read_line(Deadline deadline) = 0;
  // All of it, unless it ends before, or `go_on` says no. `progress` is told how much the connection has taken.
  virtual Status write(std::string_view data, Deadline deadline, const std::function<bool(std::size_t)>& progress) = 0;
  bool has_line() const;  // read_line() would not wait
  // The end of what it said on stderr.
  std::string stderr_tail() const;

 protected:
  std::string in_;  // read, not yet taken
  std::string errors_;
  void add_errors(std::string_view text);
};

class Session {
 public:
  virtual ~Session() = default;
  // Until the user is authenticated.
  virtual Status connect(Observer& observer) = 0;
  virtual Result<std::unique_ptr<RemoteCommand>> run(const std::string& command, Deadline deadline) = 0;
  // Joins `connector` (which has said its last line) with `link`, and does what is asked for below, until it ends: returns why.
  virtual Error serve(std::unique_ptr<RemoteCommand> connector, unique_fd link, const std::string& channel_socket) = 0;

  // After serve(): it ended because the connector did, and another one can be run.
  virtual bool outlived_its_hub() const = 0;

  // While serve() runs, from tasks of the thread.
  // The wire of a resumable channel, to the hub's channel socket.
  virtual void open_channel(std::shared_ptr<UserChannel> channel, std::uint32_t epoch, const std::string& ticket) = 0;
  // Joins `local` with host:port as the other machine reaches it; `done` runs on this thread, before bytes flow.
  // `dialer` is the command that does the same on its stdin and stdout, where forwarding is forbidden.
  virtual void open_tcp(const std::string& host, int port, const std::string& dialer, unique_fd local,
                        std::function<void(Status)> done) = 0;
};

struct SessionConfig {
  std::string resource;
  Location location;
  bool through_gateway = false;
  std::filesystem::path agent;  // of this machine: helper of the system's ssh
  std::string ssh_config;       // the resource's option of this name: a file in the place of ~/.ssh/config
};

std::unique_ptr<Session> make_libssh_session(SessionServices services, SessionConfig config);
std::unique_ptr<Session> make_openssh_session(SessionServices services, SessionConfig config);

// A TCP connection, tried at all addresses of the name, with a second family's start soon after the first's.
struct Dialled {
  unique_fd fd;
  std::string address;
};
Result<Dialled> dial_tcp(ThreadControl& control, Observer& observer, const std::string& resource, const std::string& host, int port);

// Asks the user and waits: minutes, for people are slow.
Result<std::string> ask_user(SessionServices& services, v1::Prompt prompt);
Result<unique_fd> dial_through_gateway(SessionServices& services, const std::string& host, int port);

}  // namespace flotilla::daemon
