// Plays the daemon at the socket that argv[1] names: asks for a password, and says on stdout what was answered; a resource of the name
// "fails-N" is an error of code N. argv[2], if any, is the protocol that it speaks. Run by client_test.
#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <iostream>
#include <mutex>

#include "flotilla/v1/client.grpc.pb.h"
#include "proto/base/version.hpp"

namespace v1 = flotilla::v1;

class Played final : public v1::ClientService::Service {
 public:
  std::uint32_t protocol = flotilla::protocol_version;

 private:
  grpc::Status GetInfo(grpc::ServerContext*, const v1::GetInfoRequest*, v1::DaemonInfo* info) override {
    info->set_protocol(protocol);
    info->set_build("a build of another time");
    return grpc::Status::OK;
  }
  grpc::Status Prompts(grpc::ServerContext*, grpc::ServerReaderWriter<v1::Prompt, v1::PromptAnswer>* stream) override {
    v1::PromptAnswer answer;
    stream->Read(&answer);
    v1::Prompt prompt;
    prompt.set_id(1);
    prompt.set_kind(v1::PROMPT_SECRET);
    prompt.set_resource("far");
    prompt.set_text("Password:");
    stream->Write(prompt);
    while (stream->Read(&answer)) say(answer.refused() ? "refused" : answer.text());
    return grpc::Status::OK;
  }
  // Returns at once: the question stays.
  grpc::Status ConnectResource(grpc::ServerContext*, const v1::ConnectResourceRequest*, grpc::ServerWriter<v1::Progress>* stream) override {
    v1::Progress progress;
    progress.set_done(true);
    stream->Write(progress);
    return grpc::Status::OK;
  }
  grpc::Status ListResources(grpc::ServerContext*, const v1::ListResourcesRequest* request, v1::ListResourcesReply* reply) override {
    if (const std::string prefix = "fails-"; request->name().starts_with(prefix)) {
      v1::Error error;
      error.set_code(static_cast<v1::ErrorCode>(std::stoi(request->name().substr(prefix.size()))));
      error.set_message("it broke");
      error.set_hint("mend it");
      error.set_retry(true);
      error.add_faults("one");
      error.add_faults("two");
      error.mutable_exit()->set_kind(v1::SIGNALED);
      error.mutable_exit()->set_signal(9);
      error.mutable_exit()->set_stderr_tail("help\n");
      return {grpc::StatusCode::ABORTED, error.message(), error.SerializeAsString()};
    }
    reply->add_resources()->mutable_spec()->set_name(request->name());
    return grpc::Status::OK;
  }
  void say(const std::string& text) {
    const std::scoped_lock lock(mutex_);
    std::cout << text << std::endl;
  }
  std::mutex mutex_;
};

int main(int argc, char** argv) {
  Played played;
  if (argc > 2) played.protocol = static_cast<std::uint32_t>(std::stoul(argv[2]));
  grpc::ServerBuilder builder;
  builder.AddListeningPort(std::string("unix:") + argv[1], grpc::InsecureServerCredentials());
  builder.RegisterService(&played);
  const auto server = builder.BuildAndStart();
  std::cout << "ready" << std::endl;
  server->Wait();  // until it is killed
}
