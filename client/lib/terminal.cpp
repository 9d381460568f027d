// The daemon's questions on the user's terminal.
#include "client/lib/terminal.hpp"

#include <fcntl.h>
#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "proto/base/unique_fd.hpp"

namespace flotilla {
namespace {

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const auto count = ::write(fd, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(count));
  }
}

// Text of a server may hold escape sequences; they do not reach the terminal.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text)
    if (c == '\n' || c == '\t' || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f)) out += c;
  return out;
}

// The echo is off while this lives. Ctrl-C and Ctrl-\ end the line instead of the process, which would leave the echo off.
class NoEcho {
 public:
  explicit NoEcho(int fd) : fd_(fd), changed_(tcgetattr(fd, &before_) == 0) {
    if (!changed_) return;
    termios quiet = before_;
    quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO | ISIG);
    quiet.c_cc[VEOL] = before_.c_cc[VINTR];
    quiet.c_cc[VEOL2] = before_.c_cc[VQUIT];
    tcsetattr(fd_, TCSAFLUSH, &quiet);
  }
  // The signal that the user's key means, or 0.
  int signal_of(char key) const {
    const auto is = [&](int which) { return changed_ && before_.c_cc[which] && static_cast<cc_t>(key) == before_.c_cc[which]; };
    return is(VINTR) ? SIGINT : is(VQUIT) ? SIGQUIT : 0;
  }
  ~NoEcho() {
    if (changed_) tcsetattr(fd_, TCSAFLUSH, &before_);
  }
  NoEcho(const NoEcho&) = delete;
  NoEcho& operator=(const NoEcho&) = delete;

 private:
  int fd_;
  termios before_{};
  bool changed_;
};

// Up to the end of the line, or to a key that `ends` knows (it is the last character then).
template <class Ends>
std::optional<std::string> read_line(int fd, int withdrawn, Ends ends) {
  std::string line;
  char c;
  for (;;) {
    pollfd polled[]{{fd, POLLIN, 0}, {withdrawn, POLLIN, 0}};  // poll() passes over -1
    if (::poll(polled, 2, -1) < 0 && errno == EINTR) continue;
    if (polled[1].revents) {
      tcflush(fd, TCIFLUSH);  // half an answer is not for who reads next
      return std::nullopt;
    }
    const auto count = ::read(fd, &c, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return std::nullopt;
    if (c == '\n') return line;
    line += c;
    if (ends(c)) return line;
  }
}

}  // namespace

void tell_on_stderr(const WaitNotice& notice) {
  write_all(STDERR_FILENO, "flotilla: job " + std::to_string(notice.job) + " waits: " + printable(notice.sentence) + "\n");
}

std::optional<std::string> ask_on_terminal(const Prompt& prompt) { return detail::ask_on_terminal(prompt, -1); }

std::optional<std::string> detail::ask_on_terminal(const Prompt& prompt, int withdrawn) {
  const unique_fd terminal(::open("/dev/tty", O_RDWR | O_CLOEXEC));
  if (!terminal) return std::nullopt;
  std::string text = printable(prompt.text);
  if (!prompt.resource.empty()) text = printable(prompt.resource) + ": " + text;
  if (prompt.kind == Prompt::Kind::host_key) text += "\nAccept this host key (yes/no)? ";
  else if (!text.empty() && text.back() != ' ') text += ' ';
  if (prompt.kind != Prompt::Kind::secret) {
    write_all(terminal.get(), text);
    return read_line(terminal.get(), withdrawn, [](char) { return false; });
  }
  std::optional<std::string> answer;
  int signal = 0;
  {
    const NoEcho quiet(terminal.get());  // before the question stands there
    write_all(terminal.get(), text);
    answer = read_line(terminal.get(), withdrawn, [&](char key) { return (signal = quiet.signal_of(key)) != 0; });
  }
  write_all(terminal.get(), "\n");
  if (signal != 0) {
    ::kill(0, signal);  // as the terminal would have: to its foreground processes
    return std::nullopt;
  }
  return answer;
}

}  // namespace flotilla
