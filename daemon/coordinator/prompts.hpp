// Questions to the user: to every client that said it would answer; the first answer counts.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>

#include "daemon/api/stream.hpp"
#include "daemon/transport/hub_connection.hpp"
#include "flotilla/v1/client.pb.h"

namespace flotilla::daemon {

class Prompts final : public Prompter {
 public:
  explicit Prompts(boost::asio::io_context& io) : io_(io) {}

  void add(TwoWayStreamPtr<v1::PromptAnswer, v1::Prompt> stream);

  std::uint64_t ask(v1::Prompt prompt, Answer answer) override;
  void withdraw(std::uint64_t token) override;
  bool accepts_new_host_keys(const std::string& resource) const override;

 private:
  struct Client {
    TwoWayStreamPtr<v1::PromptAnswer, v1::Prompt> stream;
    bool ready = false;  // its first message has come
    std::string resource;
    bool accept_new_host_keys = false;
  };
  struct Question {
    v1::Prompt prompt;
    Answer answer;
    std::shared_ptr<boost::asio::steady_timer> patience;
  };
  bool answers_for(const Client& client, const std::string& resource) const;
  bool anybody(const std::string& resource) const;
  void settle(std::uint64_t id, Result<std::string> result);
  void gone(std::uint64_t client);
  void wait_for_somebody(std::uint64_t id);

  boost::asio::io_context& io_;
  std::map<std::uint64_t, Client> clients_;
  std::map<std::uint64_t, Question> questions_;
  std::uint64_t last_ = 0;
};

}  // namespace flotilla::daemon
