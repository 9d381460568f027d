// A worker process and the socket that it opened, as a pilot would have it.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

extern char** environ;

class StartedWorker {
 public:
  explicit StartedWorker(std::vector<std::string> command, const char* flag = "false", std::vector<std::string> environment = {}) {
    int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(server, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(server, 1) != 0) throw std::runtime_error("no port");
    ::getsockname(server, reinterpret_cast<sockaddr*>(&address), &size);
    command.insert(command.end(), {std::to_string(ntohs(address.sin_port)), "127.0.0.1", flag});
    std::vector<char*> argv, envp;
    for (auto& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    for (char** entry = environ; *entry; ++entry) envp.push_back(*entry);
    for (auto& entry : environment) envp.push_back(entry.data());
    envp.push_back(nullptr);
    if (::posix_spawnp(&pid_, argv[0], nullptr, nullptr, argv.data(), envp.data()) != 0)
      throw std::runtime_error("cannot start " + command[0]);
    pollfd waiting{server, POLLIN, 0};
    if (::poll(&waiting, 1, deadline_ms) == 1) fd_ = ::accept4(server, nullptr, nullptr, SOCK_CLOEXEC);
    ::close(server);
    if (fd_ < 0) {
      end();
      throw std::runtime_error(command[0] + " did not connect");
    }
  }
  StartedWorker(const StartedWorker&) = delete;
  ~StartedWorker() { end(); }

  int fd() const { return fd_; }
  pid_t pid() const { return pid_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // The exit code (128 + signal), none when it did not end in time.
  std::optional<int> wait() {
    int pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
    pollfd waiting{pidfd, POLLIN, 0};
    int n = ::poll(&waiting, 1, deadline_ms);
    ::close(pidfd);
    if (n != 1) return std::nullopt;
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  static constexpr int deadline_ms = 20'000;
  void end() {
    close();
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }
  pid_t pid_ = -1;
  int fd_ = -1;
};
