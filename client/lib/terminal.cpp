// The daemon's questions on the user's terminal.
#include <fcntl.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <flotilla/client.hpp>

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

// The echo is off while this lives.
class NoEcho {
 public:
  explicit NoEcho(int fd) : fd_(fd), changed_(tcgetattr(fd, &before_) == 0) {
    if (!changed_) return;
    termios quiet = before_;
    quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    tcsetattr(fd_, TCSAFLUSH, &quiet);
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

std::optional<std::string> read_line(int fd) {
  std::string line;
  char c;
  for (;;) {
    const auto count = ::read(fd, &c, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return std::nullopt;
    if (c == '\n') return line;
    line += c;
  }
}

}  // namespace

void tell_on_stderr(const WaitNotice& notice) {
  write_all(STDERR_FILENO, "flotilla: job " + std::to_string(notice.job) + " waits: " + printable(notice.sentence) + "\n");
}

std::optional<std::string> ask_on_terminal(const Prompt& prompt) {
  const unique_fd terminal(::open("/dev/tty", O_RDWR | O_CLOEXEC));
  if (!terminal) return std::nullopt;
  std::string text = printable(prompt.text);
  if (!prompt.resource.empty()) text = printable(prompt.resource) + ": " + text;
  if (prompt.kind == Prompt::Kind::host_key) text += "\nAccept this host key (yes/no)? ";
  else if (!text.empty() && text.back() != ' ') text += ' ';
  if (prompt.kind != Prompt::Kind::secret) {
    write_all(terminal.get(), text);
    return read_line(terminal.get());
  }
  std::optional<std::string> answer;
  {
    const NoEcho quiet(terminal.get());  // before the question stands there
    write_all(terminal.get(), text);
    answer = read_line(terminal.get());
  }
  write_all(terminal.get(), "\n");
  return answer;
}

}  // namespace flotilla
