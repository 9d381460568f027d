// What a program has switched on in the terminal, read from its output, so that it can be undone when we leave it.
#pragma once

#include <set>
#include <string>
#include <string_view>

namespace flotilla::cli {

class TerminalModes {
 public:
  void feed(std::string_view output);
  // The bytes that put a terminal back: alternate screen left, cursor shown, mouse and paste reporting off, colours plain.
  // Empty when nothing was changed.
  std::string undo() const;

 private:
  enum class At { text, escape, bracket, mode };
  At at_ = At::text;
  std::string digits_;
  std::set<int> on_, off_;  // private modes (CSI ? n h / l) that differ from a fresh terminal
  bool coloured_ = false;
};

// Looks for the two detach keys (Ctrl-P Ctrl-Q) in what is typed. A Ctrl-P is held back until the next byte.
class DetachKeys {
 public:
  // Appends to `out` what is to go on; true when the keys were seen (the rest is dropped).
  bool feed(std::string_view typed, std::string& out);
  bool holding() const { return held_; }
  // Nothing followed for a while: the held byte was meant for the program.
  std::string release();

 private:
  bool held_ = false;
};

}  // namespace flotilla::cli
