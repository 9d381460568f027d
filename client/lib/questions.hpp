// Answers the daemon's questions (passwords, second factors, host keys) while a program runs, and those of the daemon after it.
#pragma once

#include <flotilla/client.hpp>
#include <functional>
#include <memory>
#include <thread>

#include "flotilla/v1/client.grpc.pb.h"

namespace flotilla::detail {

class Questions {
 public:
  // `withdrawn`: a descriptor that is readable when no answer is wanted any more.
  using Handler = std::function<std::optional<std::string>(const Prompt&, int withdrawn)>;
  Questions(v1::ClientService::Stub& stub, Handler handler, bool accept_new_host_keys);
  ~Questions();  // withdraws the question that stands
  Questions(const Questions&) = delete;
  Questions& operator=(const Questions&) = delete;

 private:
  struct State;  // shared with the threads: a handler may outlive this
  std::shared_ptr<State> state_;
  std::thread reader_, answerer_;
};

}  // namespace flotilla::detail
