#include "client/lib/questions.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <mutex>

#include "proto/base/unique_fd.hpp"

namespace flotilla::detail {
namespace {

Prompt from_wire(const v1::Prompt& wire) {
  Prompt prompt;
  prompt.kind = wire.kind() == v1::PROMPT_HOST_KEY ? Prompt::Kind::host_key
                : wire.kind() == v1::PROMPT_SECRET ? Prompt::Kind::secret
                                                   : Prompt::Kind::text;
  prompt.resource = wire.resource();
  prompt.text = wire.text();
  prompt.fingerprint = wire.fingerprint();
  return prompt;
}

}  // namespace

struct Questions::State {
  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<v1::PromptAnswer, v1::Prompt>> stream;
  };
  Handler handler;
  bool accept_new_host_keys = false;
  unique_fd withdrawn{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};

  std::mutex mutex;  // guards all below
  std::condition_variable changed;
  std::shared_ptr<Call> call;
  std::deque<v1::Prompt> waiting;
  std::uint64_t asked = 0;  // the question that the handler has
  bool closing = false;

  void withdraw() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto n = ::write(withdrawn.get(), &one, sizeof one);
  }
  void close() {
    const std::scoped_lock lock(mutex);
    closing = true;
    if (call) call->context.TryCancel();
    withdraw();
    changed.notify_all();
  }

  // One daemon after the other: what one asked is void when it has gone, and the next one asks again.
  void read(v1::ClientService::Stub& stub) {
    for (;;) {
      const auto mine = std::make_shared<Call>();
      mine->context.set_wait_for_ready(true);
      {
        const std::scoped_lock lock(mutex);
        if (closing) return;
        mine->stream = stub.Prompts(&mine->context);
        call = mine;
      }
      v1::PromptAnswer first;
      first.set_accept_new_host_keys(accept_new_host_keys);
      mine->stream->Write(first);
      v1::Prompt prompt;
      while (mine->stream->Read(&prompt)) {
        const std::scoped_lock lock(mutex);
        if (prompt.withdrawn()) {
          std::erase_if(waiting, [&](const v1::Prompt& other) { return other.id() == prompt.id(); });
          if (asked == prompt.id()) withdraw();
        } else {
          waiting.push_back(prompt);
          changed.notify_all();
        }
      }
      const auto status = mine->stream->Finish();
      const std::scoped_lock lock(mutex);
      waiting.clear();
      if (asked != 0) withdraw();
      if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return;
    }
  }

  void answer() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return closing || !waiting.empty(); });
      if (closing) return;
      const auto from = call;
      const v1::Prompt prompt = std::move(waiting.front());
      waiting.pop_front();
      asked = prompt.id();
      std::uint64_t drained = 0;
      [[maybe_unused]] const auto n = ::read(withdrawn.get(), &drained, sizeof drained);
      lock.unlock();
      std::optional<std::string> said;
      try {
        said = handler(from_wire(prompt), withdrawn.get());
      } catch (...) {
        // A handler that fails refuses; there is nobody here who could take its exception.
      }
      v1::PromptAnswer reply;
      reply.set_id(prompt.id());
      if (said) reply.set_text(*said);
      else reply.set_refused(true);
      from->stream->Write(reply);
      lock.lock();
      asked = 0;
    }
  }
};

Questions::Questions(v1::ClientService::Stub& stub, Handler handler, bool accept_new_host_keys) : state_(std::make_shared<State>()) {
  state_->handler = std::move(handler);
  state_->accept_new_host_keys = accept_new_host_keys;
  reader_ = std::thread([state = state_, &stub] { state->read(stub); });
  answerer_ = std::thread([state = state_] { state->answer(); });
}

Questions::~Questions() {
  state_->close();
  reader_.join();
  // A handler may let go of the last that holds this.
  if (answerer_.get_id() == std::this_thread::get_id()) answerer_.detach();
  else answerer_.join();
}

}  // namespace flotilla::detail
