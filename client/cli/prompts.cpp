#include "client/cli/prompts.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include "client/cli/core/units.hpp"

namespace flotilla::cli {

Prompter::Prompter(DaemonClient& client, const std::string& resource, bool accept_new_host_keys, StatusLine& line,
                   std::function<void()> on_question)
    : stream_(client.prompts()), line_(line), on_question_(std::move(on_question)), withdrawn_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  v1::PromptAnswer first;
  first.set_accept_new_host_keys(accept_new_host_keys);
  first.set_resource(resource);
  stream_->write(first);
  reader_ = std::thread([this] { read(); });
  answerer_ = std::thread([this] { answer(); });
}

Prompter::~Prompter() {
  {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
  }
  stream_->cancel();
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto n = ::write(withdrawn_.get(), &one, sizeof one);
  changed_.notify_all();
  reader_.join();
  answerer_.join();
}

void Prompter::read() {
  v1::Prompt prompt;
  while (stream_->read(prompt)) {
    const std::scoped_lock lock(mutex_);
    if (prompt.withdrawn()) {
      std::erase_if(waiting_, [&](const v1::Prompt& other) { return other.id() == prompt.id(); });
      if (asked_ == prompt.id()) {
        const std::uint64_t one = 1;
        [[maybe_unused]] const auto n = ::write(withdrawn_.get(), &one, sizeof one);
      }
    } else {
      waiting_.push_back(prompt);
      changed_.notify_all();
    }
  }
  // Why it ended is told by the call that the command makes; nothing is answered any more.
  [[maybe_unused]] const auto ended = stream_->finish();
}

void Prompter::answer() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ended_ || !waiting_.empty(); });
    if (ended_) return;
    const v1::Prompt prompt = waiting_.front();
    waiting_.pop_front();
    asked_ = prompt.id();
    std::uint64_t drained = 0;
    [[maybe_unused]] const auto n = ::read(withdrawn_.get(), &drained, sizeof drained);
    lock.unlock();
    const auto tell = [&](bool asks) {
      asks_ = asks;
      if (on_question_) on_question_();
    };
    tell(true);
    {
      const std::scoped_lock keys(keys_);
      ask_one(prompt);
    }
    tell(false);
    lock.lock();
    asked_ = 0;
  }
}

void Prompter::ask_one(const v1::Prompt& prompt) {
  v1::PromptAnswer reply;
  reply.set_id(prompt.id());
  const std::string who = printable(prompt.resource());
  if (!can_ask()) {
    line_.clear();
    write_all(2, "flotilla: " + who + " asks: " + printable(prompt.text()) + "\n" +
                     "  There is no terminal to answer on; log in with 'flotilla resource connect " + shell_quote(who) +
                     (prompt.kind() == v1::PROMPT_HOST_KEY ? "' in one, or give --accept-new.\n" : "' in one.\n"));
    reply.set_refused(true);
    stream_->write(reply);
    return;
  }
  line_.pause();
  // The server's words may hold several lines; what would move the cursor is not passed on.
  std::string question;
  std::string_view rest = prompt.text();
  for (bool first = true; first || !rest.empty(); first = false) {
    const std::size_t end = rest.find('\n');
    question += (first ? "[" + who + "] " : "\n") + printable(rest.substr(0, end));
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
  }
  if (prompt.kind() == v1::PROMPT_HOST_KEY) {
    if (!prompt.fingerprint().empty() && prompt.text().find(prompt.fingerprint()) == std::string::npos)
      question += "\n  fingerprint " + printable(prompt.fingerprint());
    question += "\nIs this key right? [yes/no] ";
    std::optional<std::string> said = ask(question, Echo::on, withdrawn_.get());
    while (said && *said != "yes" && *said != "no") said = ask("Please answer yes or no: ", Echo::on, withdrawn_.get());
    if (said) reply.set_text(*said);
    else reply.set_refused(true);
  } else {
    if (question.empty() || question.back() != ' ') question += " ";
    const auto said = ask(question, prompt.kind() == v1::PROMPT_SECRET ? Echo::off : Echo::on, withdrawn_.get());
    if (said) reply.set_text(*said);
    else reply.set_refused(true);
  }
  line_.resume();
  stream_->write(reply);
}

}  // namespace flotilla::cli
