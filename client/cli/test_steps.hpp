// A test that is told step by step: `resource test`, `amuse test`.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "client/cli/command.hpp"

namespace flotilla::cli {

// May be called from any thread.
class TestSteps {
 public:
  // `name_columns`: of the steps' names; `prefix`: of the line that says what goes on.
  TestSteps(const Context& context, std::size_t name_columns, std::string prefix = {});
  // A running step is shown on the status line; any other is printed, or kept for JSON.
  void take(const v1::TestStep& step);
  void show_wait(const std::string& sentence);  // why the present step does not get on
  // With --json the list of all steps.
  void finish();
  void fall_silent();  // nothing more is printed
  bool failed() const { return failed_ > 0; }
  std::string summary() const;  // one line
  StatusLine& line() { return line_; }
  // While it lives, a question may stand on the terminal.
  class Pause {
   public:
    explicit Pause(StatusLine& line) : line_(line) { line_.pause(); }
    ~Pause() { line_.resume(); }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    StatusLine& line_;
  };
  Pause pause() { return Pause(line_); }

 private:
  void print_step(const v1::TestStep& step);

  const Context& context_;
  const std::size_t name_columns_;
  const std::string prefix_;
  StatusLine line_;
  mutable std::mutex mutex_;
  std::vector<std::string> json_;
  std::size_t ok_ = 0, warnings_ = 0, failed_ = 0, skipped_ = 0;
  bool silent_ = false;
};

}  // namespace flotilla::cli
