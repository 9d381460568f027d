#include "client/cli/test_steps.hpp"

#include <cstdio>

namespace flotilla::cli {
namespace {

constexpr std::size_t status_columns = 8, text_columns = 100;

const char* status_word(v1::TestStep::Status status) {
  switch (status) {
    case v1::TestStep::OK: return "ok";
    case v1::TestStep::WARNING: return "warning";
    case v1::TestStep::FAILED: return "failed";
    case v1::TestStep::SKIPPED: return "skipped";
    default: return "running";
  }
}

}  // namespace

TestSteps::TestSteps(const Context& context, std::size_t name_columns, std::string prefix)
    : context_(context), name_columns_(name_columns), prefix_(std::move(prefix)) {}

void TestSteps::take(const v1::TestStep& step) {
  const std::lock_guard lock(mutex_);
  if (silent_) return;
  if (step.status() == v1::TestStep::RUNNING) {
    line_.show((prefix_.empty() ? "" : prefix_ + ": ") + step.name() + " ...");
    return;
  }
  line_.clear();
  (step.status() == v1::TestStep::FAILED    ? failed_
   : step.status() == v1::TestStep::WARNING ? warnings_
   : step.status() == v1::TestStep::SKIPPED ? skipped_
                                            : ok_)++;
  if (context_.json) json_.push_back(to_json(step));
  else print_step(step);
}

void TestSteps::print_step(const v1::TestStep& step) {
  const char* word = status_word(step.status());
  std::string text =
      paint(pad(word, status_columns), state_colour(word), context_.out) + pad(printable(step.name()), name_columns_ - 1) + " ";
  // What a program wrote follows on lines of its own.
  std::string_view message = step.message();
  const auto first = message.substr(0, message.find('\n'));
  message.remove_prefix(std::min(first.size() + 1, message.size()));
  text += printable(first);
  if (step.took_ms() >= 100) text += " (" + format_duration(step.took_ms()) + ")";
  print_line(text);
  while (!message.empty()) {
    const auto line = message.substr(0, message.find('\n'));
    message.remove_prefix(std::min(line.size() + 1, message.size()));
    print_line(std::string(status_columns + 2, ' ') + paint(printable(line), colour::dim, context_.out));
  }
  if (!step.hint().empty())
    print_line(std::string(status_columns, ' ') + wrap("To do: " + printable(step.hint()), text_columns, status_columns));
}

void TestSteps::show_wait(const std::string& sentence) {
  const std::lock_guard lock(mutex_);
  if (silent_) return;
  if (line_.visible()) line_.show(printable(sentence));
  else std::fputs(("flotilla: " + printable(sentence) + "\n").c_str(), stderr);
}

void TestSteps::finish() {
  const std::lock_guard lock(mutex_);
  line_.clear();
  if (context_.json && !silent_) print_line(json_list(json_));
}

void TestSteps::fall_silent() {
  const std::lock_guard lock(mutex_);
  line_.clear();
  silent_ = true;
}

std::string TestSteps::summary() const {
  const std::lock_guard lock(mutex_);
  const auto count = [](std::size_t n, const char* what) { return std::to_string(n) + " " + what; };
  if (failed_ == 0 && warnings_ == 0) return "All is right.";
  std::string text;
  if (failed_) text += count(failed_, failed_ == 1 ? "step failed" : "steps failed");
  if (warnings_) text += (text.empty() ? "" : ", ") + count(warnings_, warnings_ == 1 ? "warning" : "warnings");
  return text + "; " + count(ok_, ok_ == 1 ? "is right." : "are right.");
}

}  // namespace flotilla::cli
