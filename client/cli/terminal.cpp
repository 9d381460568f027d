#include "client/cli/terminal.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "client/cli/core/units.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::cli {
namespace {

// For the handlers below, which may touch nothing else. The terminal as it was before the first change; a question on a terminal
// that is raw already leaves them alone.
termios original;
volatile sig_atomic_t changed_fd = -1;

void restore_now() {
  const int fd = changed_fd;
  if (fd >= 0) tcsetattr(fd, TCSANOW, &original);
  changed_fd = -1;
}

void restore_and_die(int number) {
  restore_now();
  signal(number, SIG_DFL);
  raise(number);
}

void install_restore() {
  static const bool once = [] {
    std::atexit(restore_now);
    for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTERM, SIGHUP, SIGINT, SIGQUIT}) {
      struct sigaction now {};
      sigaction(number, nullptr, &now);
      if (now.sa_handler != SIG_DFL) continue;  // ignored (nohup), or a sanitizer's
      struct sigaction mine {};
      mine.sa_handler = restore_and_die;
      mine.sa_flags = static_cast<int>(SA_RESETHAND);
      sigemptyset(&mine.sa_mask);
      sigaction(number, &mine, nullptr);
    }
    return true;
  }();
  (void)once;
}

}  // namespace

Look look_of(int fd) {
  Look look;
  look.terminal = isatty(fd) != 0;
  const char* no_colour = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  look.colour = look.terminal && !(no_colour && *no_colour) && term && std::strcmp(term, "dumb") != 0;
  winsize size{};
  if (look.terminal && ioctl(fd, TIOCGWINSZ, &size) == 0) look.columns = size.ws_col;
  return look;
}

std::optional<v1::WindowSize> window_size() {
  for (const int fd : {0, 1, 2}) {
    winsize size{};
    if (isatty(fd) && ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0) {
      v1::WindowSize out;
      out.set_rows(size.ws_row);
      out.set_columns(size.ws_col);
      return out;
    }
  }
  return std::nullopt;
}

bool write_all(int fd, std::string_view data) {
  while (!data.empty()) {
    const ssize_t n = write(fd, data.data(), data.size());
    if (n >= 0) {
      data.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {  // somebody who shares the descriptor made it non-blocking
      pollfd ready{fd, POLLOUT, 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

TerminalGuard::TerminalGuard(int fd, Mode mode) : fd_(fd) {
  if (!isatty(fd) || tcgetattr(fd, &wanted_) != 0) return;
  install_restore();
  original = wanted_;
  if (mode == Mode::raw) {
    cfmakeraw(&wanted_);
  } else {
    wanted_.c_iflag &= ~static_cast<tcflag_t>(IXON);  // else Ctrl-Q never arrives
    wanted_.c_cc[VEOL2] = 'Q' & 0x1F;
  }
  changed_fd = fd;
  // A background process that sets its terminal is stopped: not wanted.
  sigset_t block, before;
  sigemptyset(&block);
  sigaddset(&block, SIGTTOU);
  pthread_sigmask(SIG_BLOCK, &block, &before);
  active_ = tcgetpgrp(fd) == getpgrp() && tcsetattr(fd, TCSADRAIN, &wanted_) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!active_) changed_fd = -1;
}

TerminalGuard::~TerminalGuard() { restore(); }

void TerminalGuard::restore() {
  if (!active_) return;
  active_ = false;
  tcsetattr(fd_, TCSADRAIN, &original);
  changed_fd = -1;
}

void TerminalGuard::apply_again() {
  if (active_ && tcgetpgrp(fd_) == getpgrp()) tcsetattr(fd_, TCSADRAIN, &wanted_);
}

StatusLine::StatusLine() : look_(look_of(2)) {}
StatusLine::~StatusLine() { clear(); }

void StatusLine::show(const std::string& text) {
  const std::scoped_lock lock(mutex_);
  if (!look_.terminal || paused_) return;
  look_ = look_of(2);  // the window may have another size now
  const std::string line = printable(text, look_.columns > 1 ? look_.columns - 1 : 0);
  if (line == shown_) return;
  shown_ = line;
  write_all(2, "\r\033[K" + paint(line, colour::dim, look_));
}

void StatusLine::clear() {
  const std::scoped_lock lock(mutex_);
  if (shown_.empty()) return;
  shown_.clear();
  write_all(2, "\r\033[K");
}

void StatusLine::pause() {
  clear();
  const std::scoped_lock lock(mutex_);
  paused_ = true;
}

void StatusLine::resume() {
  const std::scoped_lock lock(mutex_);
  paused_ = false;
}

bool can_ask() {
  const unique_fd terminal(open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY));
  return static_cast<bool>(terminal);
}

std::optional<std::string> ask(const std::string& question, Echo echo, int withdrawn_fd) {
  const unique_fd terminal(open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY));
  if (!terminal) return std::nullopt;
  termios before{};
  if (tcgetattr(terminal.get(), &before) != 0) return std::nullopt;
  install_restore();
  termios asking = before;
  // Key by key: Ctrl-C ends the question, not the program, and a question can be withdrawn half typed.
  asking.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG);
  asking.c_iflag |= ICRNL;
  asking.c_oflag |= OPOST | ONLCR;  // the job's terminal may be raw
  asking.c_cc[VMIN] = 1;
  asking.c_cc[VTIME] = 0;
  const bool changed_before = changed_fd >= 0;
  if (!changed_before) {
    original = before;
    changed_fd = terminal.get();
  }
  tcsetattr(terminal.get(), TCSAFLUSH, &asking);
  write_all(terminal.get(), question);
  std::optional<std::string> answer;
  std::string typed;
  for (bool going = true; going;) {
    pollfd wait[2] = {{terminal.get(), POLLIN, 0}, {withdrawn_fd, POLLIN, 0}};
    if (poll(wait, withdrawn_fd >= 0 ? 2 : 1, -1) < 0) {
      if (errno == EINTR) continue;
      break;
    }
    if (withdrawn_fd >= 0 && wait[1].revents) break;
    char key = 0;
    if (read(terminal.get(), &key, 1) != 1) break;
    constexpr char ctrl_c = 3, ctrl_d = 4, backspace = 8, ctrl_u = 21, rubout = 127;
    switch (key) {
      case '\n':
      case '\r':
        answer = typed;
        going = false;
        break;
      case ctrl_c: going = false; break;
      case ctrl_d: going = !typed.empty(); break;
      case backspace:
      case rubout:
        if (typed.empty()) break;
        while (!typed.empty() && (static_cast<unsigned char>(typed.back()) & 0xC0) == 0x80) typed.pop_back();
        if (!typed.empty()) typed.pop_back();
        if (echo == Echo::on) write_all(terminal.get(), "\b \b");
        break;
      case ctrl_u:
        if (echo == Echo::on)
          for (std::size_t i = width(typed); i > 0; --i) write_all(terminal.get(), "\b \b");
        typed.clear();
        break;
      default:
        typed += key;
        if (echo == Echo::on) write_all(terminal.get(), std::string_view(&key, 1));
    }
  }
  write_all(terminal.get(), "\n");
  tcsetattr(terminal.get(), TCSANOW, &before);
  if (!changed_before) changed_fd = -1;
  return answer;
}

}  // namespace flotilla::cli
