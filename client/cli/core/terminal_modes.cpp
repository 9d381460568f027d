#include "client/cli/core/terminal_modes.hpp"

#include <cstdlib>

namespace flotilla::cli {
namespace {
constexpr char escape = '\033';
constexpr char ctrl_p = '\020';
constexpr char ctrl_q = '\021';
constexpr int wrap_mode = 7, cursor_mode = 25;  // on in a fresh terminal
constexpr std::size_t longest_parameters = 64;
}  // namespace

void TerminalModes::feed(std::string_view output) {
  for (const char c : output) {
    switch (at_) {
      case At::text:
        if (c == escape) at_ = At::escape;
        break;
      case At::escape:
        at_ = c == '[' ? At::bracket : c == escape ? At::escape : At::text;
        digits_.clear();
        if (c == 'c') on_.clear(), off_.clear(), coloured_ = false;  // full reset
        break;
      case At::bracket:
        if (c == '?') {
          at_ = At::mode;
        } else {
          if (c == 'm') coloured_ = !(digits_.empty() || digits_ == "0");
          if ((c >= '0' && c <= '9') || c == ';') {
            if (digits_.size() < longest_parameters) digits_ += c;
          } else {
            at_ = c == escape ? At::escape : At::text;
          }
        }
        break;
      case At::mode:
        if (((c >= '0' && c <= '9') || c == ';') && digits_.size() < longest_parameters) {
          digits_ += c;
          break;
        }
        if (c == 'h' || c == 'l') {
          const char* text = digits_.c_str();
          while (*text) {
            char* end = nullptr;
            const int number = static_cast<int>(std::strtol(text, &end, 10));
            const bool normally_on = number == wrap_mode || number == cursor_mode;
            if (normally_on) c == 'l' ? (void)off_.insert(number) : (void)off_.erase(number);
            else c == 'h' ? (void)on_.insert(number) : (void)on_.erase(number);
            text = *end == ';' ? end + 1 : end;
          }
        }
        at_ = c == escape ? At::escape : At::text;
        break;
    }
  }
}

std::string TerminalModes::undo() const {
  std::string out;
  for (const int mode : on_) out += "\033[?" + std::to_string(mode) + "l";
  for (const int mode : off_) out += "\033[?" + std::to_string(mode) + "h";
  if (coloured_ || !out.empty()) out += "\033[0m";
  return out;
}

bool DetachKeys::feed(std::string_view typed, std::string& out) {
  for (const char c : typed) {
    if (held_) {
      held_ = false;
      if (c == ctrl_q) return true;
      out += ctrl_p;
    }
    if (c == ctrl_p) held_ = true;
    else out += c;
  }
  return false;
}

std::string DetachKeys::release() {
  if (!held_) return {};
  held_ = false;
  return std::string(1, ctrl_p);
}

}  // namespace flotilla::cli
