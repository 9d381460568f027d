// The user's terminal: size, raw mode that is always undone, one updating line, questions.
#pragma once

#include <termios.h>

#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "client/cli/core/table.hpp"
#include "flotilla/v1/types.pb.h"

namespace flotilla::cli {

// What stdout (or stderr) can show; NO_COLOR and TERM=dumb switch colours off.
Look look_of(int fd);
// Of the first of stdin, stdout, stderr that is a terminal; nothing when none is.
std::optional<v1::WindowSize> window_size();

// false = the reader has gone (EPIPE) or the descriptor does not take it.
bool write_all(int fd, std::string_view data);

// Changes a terminal's settings and restores them: in the destructor, at exit, and when a signal kills the process.
class TerminalGuard {
 public:
  enum class Mode {
    raw,          // every key goes on as it is
    line_detach,  // lines as usual, but Ctrl-Q ends one too, so that the detach keys are seen
  };
  TerminalGuard(int fd, Mode mode);
  ~TerminalGuard();
  TerminalGuard(const TerminalGuard&) = delete;
  TerminalGuard& operator=(const TerminalGuard&) = delete;
  bool active() const { return active_; }
  void restore();
  void apply_again();  // after a stop (Ctrl-Z) and `fg`

 private:
  int fd_;
  bool active_ = false;
  termios wanted_{};
};

// One line on stderr that is written over; nothing at all when stderr is no terminal. Safe from any thread.
class StatusLine {
 public:
  StatusLine();
  ~StatusLine();
  void show(const std::string& text);
  void clear();
  bool visible() const { return look_.terminal; }
  // Nothing is drawn while a question stands on the terminal.
  void pause();
  void resume();

 private:
  std::mutex mutex_;
  Look look_;
  std::string shown_;
  bool paused_ = false;
};

// Asks on the controlling terminal. `withdrawn_fd`: readable = stop asking. Nothing = no terminal, Ctrl-C, Ctrl-D, or withdrawn.
enum class Echo { off, on };
std::optional<std::string> ask(const std::string& question, Echo echo, int withdrawn_fd);
bool can_ask();

}  // namespace flotilla::cli
