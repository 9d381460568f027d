#include "daemon/coordinator/prompts.hpp"

#include <fmt/format.h>

namespace flotilla::daemon {
namespace {
// A client's offer to answer may arrive a moment after the call that makes the daemon ask.
constexpr auto patience_without_client = std::chrono::seconds(2);
}  // namespace

bool Prompts::answers_for(const Client& client, const std::string& resource) const {
  return client.ready && (client.resource.empty() || client.resource == resource);
}

bool Prompts::anybody(const std::string& resource) const {
  for (const auto& [id, client] : clients_)
    if (answers_for(client, resource)) return true;
  return false;
}

void Prompts::add(TwoWayStreamPtr<v1::PromptAnswer, v1::Prompt> stream) {
  const std::uint64_t id = ++last_;
  clients_[id].stream = stream;
  stream->on_gone = [this, id] { gone(id); };
  stream->on_half_close = [this, id, weak = std::weak_ptr(stream)] {
    gone(id);
    if (auto s = weak.lock()) s->finish({});
  };
  stream->on_message = [this, id](v1::PromptAnswer message) {
    const auto it = clients_.find(id);
    if (it == clients_.end()) return;
    Client& client = it->second;
    if (!client.ready) {
      client.ready = true;
      client.resource = message.resource();
      client.accept_new_host_keys = message.accept_new_host_keys();
      std::vector<std::uint64_t> accepted;  // which were asked before this client came
      for (auto& [question, q] : questions_) {
        if (!answers_for(client, q.prompt.resource())) continue;
        q.patience->cancel();
        if (client.accept_new_host_keys && q.prompt.kind() == v1::PROMPT_HOST_KEY) accepted.push_back(question);
        else client.stream->send(q.prompt);
      }
      for (const auto question : accepted) settle(question, "yes");
      return;
    }
    if (!message.id()) return;
    if (message.refused()) settle(message.id(), fail(Code::canceled, "the question was not answered"));
    else settle(message.id(), message.text());
  };
}

void Prompts::gone(std::uint64_t client) {
  clients_.erase(client);
  std::vector<std::uint64_t> alone;
  for (const auto& [id, question] : questions_)
    if (!anybody(question.prompt.resource())) alone.push_back(id);
  for (const auto id : alone) wait_for_somebody(id);
}

void Prompts::wait_for_somebody(std::uint64_t id) {
  Question& question = questions_.at(id);
  question.patience->expires_after(patience_without_client);
  question.patience->async_wait([this, id](boost::system::error_code code) {
    if (code) return;
    const auto it = questions_.find(id);
    if (it == questions_.end()) return;
    const std::string resource = it->second.prompt.resource();
    settle(id, fail(it->second.prompt.kind() == v1::PROMPT_HOST_KEY ? Code::host_key_unknown : Code::authentication_failed,
                    fmt::format("resource '{}' asks for the user, and nobody is there to answer: {}", resource, it->second.prompt.text()),
                    fmt::format("log in with: flotilla resource connect {}", resource)));
  });
}

std::uint64_t Prompts::ask(v1::Prompt prompt, Answer answer) {
  const std::uint64_t id = ++last_;
  prompt.set_id(id);
  for (auto& [client_id, client] : clients_)
    if (answers_for(client, prompt.resource())) client.stream->send(prompt);
  const bool alone = !anybody(prompt.resource());
  questions_[id] = {std::move(prompt), std::move(answer), std::make_shared<boost::asio::steady_timer>(io_)};
  if (alone) wait_for_somebody(id);
  return id;
}

void Prompts::settle(std::uint64_t id, Result<std::string> result) {
  const auto it = questions_.find(id);
  if (it == questions_.end()) return;
  Question question = std::move(it->second);
  questions_.erase(it);
  question.patience->cancel();
  v1::Prompt over = question.prompt;
  over.set_withdrawn(true);
  for (auto& [client_id, client] : clients_)
    if (answers_for(client, over.resource())) client.stream->send(over);
  if (question.answer) question.answer(std::move(result));
}

void Prompts::withdraw(std::uint64_t token) {
  const auto it = questions_.find(token);
  if (it == questions_.end()) return;
  it->second.answer = nullptr;
  settle(token, fail(Code::canceled, "withdrawn"));
}

bool Prompts::accepts_new_host_keys(const std::string& resource) const {
  for (const auto& [id, client] : clients_)
    if (answers_for(client, resource) && client.accept_new_host_keys) return true;
  return false;
}

}  // namespace flotilla::daemon
