#include "daemon/transport/session.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "proto/base/log.hpp"

namespace flotilla::daemon {
namespace {

constexpr std::size_t stderr_kept_bytes = 4096;
constexpr auto prompt_patience = std::chrono::minutes(5);            // sshd itself gives up after two
constexpr auto dial_patience = std::chrono::seconds(15);             // a TCP connection over a bad line
constexpr auto gateway_patience = std::chrono::minutes(6);           // it may have to log in there first, and ask
constexpr auto next_address_after = std::chrono::milliseconds(250);  // RFC 8305
// The kernel repeats what was lost after 1, 3, 7 seconds: a line that is back after six would be noticed late.
constexpr auto dial_again_after = std::chrono::seconds(2);

}  // namespace

const char* step_name(Step step) {
  switch (step) {
    case Step::name: return "name";
    case Step::reachability: return "reachability";
    case Step::host_key: return "host key";
    case Step::authentication: return "authentication";
    case Step::shell: return "shell";
    case Step::scratch: return "scratch";
    case Step::architecture: return "architecture";
    case Step::time_skew: return "time skew";
    case Step::agent: return "agent";
    case Step::hub: return "hub";
  }
  return "";
}

bool RemoteCommand::has_line() const { return in_.find('\n') != std::string::npos; }

std::string RemoteCommand::stderr_tail() const {
  auto text = errors_;
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return text;
}

void RemoteCommand::add_errors(std::string_view text) {
  errors_.append(text);
  if (errors_.size() > stderr_kept_bytes) errors_.erase(0, errors_.size() - stderr_kept_bytes);
}

Result<std::string> ask_user(SessionServices& services, v1::Prompt prompt) {
  auto token = std::make_shared<std::uint64_t>(0);
  auto* prompter = services.prompter;
  auto answer = services.control->await<std::string>(
      [prompter, token, prompt = std::move(prompt)](std::function<void(Result<std::string>)> done) {
        *token = prompter->ask(prompt, std::move(done));
      },
      after(prompt_patience));
  if (!answer && answer.error().code == Code::timeout) {
    services.control->to_io([prompter, token] { prompter->withdraw(*token); });
    return fail(timeout_error("nobody answered in time", "connect again when somebody is there to answer"));
  }
  return answer;
}

Result<unique_fd> dial_through_gateway(SessionServices& services, const std::string& host, int port) {
  if (!services.dial_gateway) return fail(Code::failed_precondition, "there is no gateway to reach " + host + " through");
  auto dial = services.dial_gateway;
  return services.control->await<unique_fd>(
      [dial, host, port](std::function<void(Result<unique_fd>)> done) { dial(host, port, std::move(done)); }, after(gateway_patience));
}

Result<Dialled> dial_tcp(ThreadControl& control, Observer& observer, const std::string& resource, const std::string& host, int port) {
  observer.begin(Step::name, "looking up " + host);
  addrinfo wanted{}, *found = nullptr;
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = AI_ADDRCONFIG;
  const auto service = std::to_string(port);
  if (!control.begin_uninterruptible()) return fail(stopped_error());
  int looked_up = getaddrinfo(host.c_str(), service.c_str(), &wanted, &found);
  if (looked_up == EAI_NONAME || looked_up == EAI_ADDRFAMILY) {
    wanted.ai_flags = 0;  // on a machine whose only network is loopback
    looked_up = getaddrinfo(host.c_str(), service.c_str(), &wanted, &found);
  }
  control.end_uninterruptible();
  if (control.stopping()) {
    if (looked_up == 0) freeaddrinfo(found);
    return fail(stopped_error());
  }
  if (looked_up != 0)
    return fail(Code::unavailable, "cannot find the host '" + host + "' of resource " + resource + ": " + gai_strerror(looked_up),
                looked_up == EAI_AGAIN ? "is this machine online?" : "correct the resource's location, or ~/.ssh/config",
                looked_up == EAI_NONAME ? Retry::no : Retry::yes);
  struct Free {
    addrinfo* list;
    ~Free() { freeaddrinfo(list); }
  } free_later{found};

  struct Attempt {
    unique_fd fd;
    std::string address;
  };
  const auto describe = [](const addrinfo* entry) {
    char text[NI_MAXHOST] = "?";
    getnameinfo(entry->ai_addr, entry->ai_addrlen, text, sizeof text, nullptr, 0, NI_NUMERICHOST);
    return std::string(text);
  };
  std::string names;
  for (const auto* entry = found; entry; entry = entry->ai_next) names += (names.empty() ? "" : ", ") + describe(entry);
  observer.done(Step::name, host + " is " + names);
  observer.begin(Step::reachability, "connecting to " + host + " port " + service);

  std::vector<Attempt> attempts;
  std::string causes;
  int last_errno = ETIMEDOUT;
  const auto give_up = after(dial_patience);
  const addrinfo* next = found;
  const auto note = [&](const std::string& address, int error) {
    last_errno = error;
    if (causes.find(address + ":") == std::string::npos) causes += (causes.empty() ? "" : ", ") + address + ": " + std::strerror(error);
  };
  while (next || !attempts.empty()) {
    if (next) {
      Attempt attempt{unique_fd(socket(next->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)), describe(next)};
      if (!attempt.fd || (connect(attempt.fd.get(), next->ai_addr, next->ai_addrlen) != 0 && errno != EINPROGRESS))
        note(attempt.address, errno);
      else attempts.push_back(std::move(attempt));
      next = next->ai_next;
    }
    const auto until = std::min(give_up, next ? after(next_address_after) : after(dial_again_after));
    bool silent = false;
    for (bool waiting = !attempts.empty(); waiting;) {
      std::vector<pollfd> polled{{control.wake_fd(), POLLIN, 0}};
      for (const auto& each : attempts) polled.push_back({each.fd.get(), POLLOUT, 0});
      const int ready = poll(polled.data(), polled.size(), milliseconds_until(until));
      if (control.stopping()) return fail(stopped_error());
      if (ready < 0 && errno != EINTR) return fail(errno_error(Code::internal, "wait for a connection"));
      silent = ready == 0;
      if (silent) break;
      if (polled[0].revents) control.run_tasks();
      for (std::size_t i = attempts.size(); i-- > 0;) {
        if (!polled[i + 1].revents) continue;
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(attempts[i].fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        if (error == 0) return Dialled{std::move(attempts[i].fd), attempts[i].address};
        note(attempts[i].address, error);
        attempts.erase(attempts.begin() + static_cast<std::ptrdiff_t>(i));
        waiting = false;  // the next address need not wait
      }
    }
    if (std::chrono::steady_clock::now() >= give_up) {
      for (const auto& each : attempts) note(each.address, ETIMEDOUT);
      break;
    }
    if (!next && silent) next = found;  // once more, beside those that wait
  }
  std::string hint = "is the machine up, and is there a way to it from here (VPN, firewall)?";
  if (last_errno == ECONNREFUSED) hint = "nothing listens there: is sshd running, and is " + service + " its port?";
  return fail(Code::unavailable, "cannot reach " + host + " port " + service + " for resource " + resource + " (" + causes + ")", hint,
              Retry::yes);
}

}  // namespace flotilla::daemon
