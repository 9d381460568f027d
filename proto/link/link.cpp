#include "proto/link/link.hpp"

#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <grpcpp/support/channel_arguments.h>

#include <boost/asio/post.hpp>
#include <deque>
#include <mutex>
#include <map>

#include "flotilla/v1/link.grpc.pb.h"
#include "proto/base/grpc_window.hpp"
#include "proto/base/log.hpp"

namespace flotilla::link {
namespace {

constexpr int max_frame_bytes = 64 << 20;
// What may wait for the owner's thread before reading stops: gRPC's flow control then slows the peer.
constexpr std::ptrdiff_t unread_limit_bytes = 4 << 20;
// Small frames that wait go together in one message, which costs as much as one of them.
constexpr std::size_t batch_bytes = 64 << 10;

template <class Settable>
void set_transport(Settable&& set, Keepalive keepalive) {
  set_window(set);
  set(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(keepalive.time.count()));
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(keepalive.timeout.count()));
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 200);
  set(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);  // the default answers a ping each second with GOAWAY
}

// What comes in numbers when there is much to do goes at the end of this turn of the loop, so that what else is sent in it goes
// along. All else may be waited for by somebody who does not run the loop.
bool may_wait(const v1::Frame& frame) {
  switch (frame.body_case()) {
    case v1::Frame::kStartAttempt:
    case v1::Frame::kForgetAttempt:
    case v1::Frame::kAttemptRunning:
    case v1::Frame::kAttemptEnded: return true;
    default: return false;
  }
}

// At debug level each frame is told by its kind and whom it concerns, never by its content. What carries logs, and what only keeps
// a link alive, is left out: the first would tell of itself for ever.
void tell_frame(const char* direction, const v1::Frame& frame, std::size_t bytes) {
  if (!spdlog::should_log(spdlog::level::debug)) return;
  switch (frame.body_case()) {
    case v1::Frame::kPing:
    case v1::Frame::kPong:
    case v1::Frame::kReadLog:
    case v1::Frame::kLogData:
    case v1::Frame::kBatch:  // told one by one
    case v1::Frame::BODY_NOT_SET: return;
    default: break;
  }
  const auto* body = frame.GetReflection()->GetOneofFieldDescriptor(frame, frame.GetDescriptor()->FindOneofByName("body"));
  const auto& message = frame.GetReflection()->GetMessage(frame, body);
  std::string whom = frame.peer().empty() ? "" : " " + frame.peer();
  if (const auto* id = message.GetDescriptor()->FindFieldByName("id"); id && id->message_type() == v1::AttemptId::descriptor()) {
    const auto& attempt = static_cast<const v1::AttemptId&>(message.GetReflection()->GetMessage(message, id));
    whom += fmt::format(" job {}.{}", attempt.job(), attempt.attempt());
  }
  for (const char* name : {"channel", "pilot"}) {
    const auto* field = message.GetDescriptor()->FindFieldByName(name);
    if (field && !field->is_repeated() && field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_UINT64)
      whom += fmt::format(" {} {}", name, message.GetReflection()->GetUInt64(message, field));
  }
  spdlog::debug("{} {}{} ({} bytes)", direction, body->name(), whom, bytes);
}

void make_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

// The part that both sides share. The reactor of the respective side drives it:
//   io thread:    send/close/abort/detach
//   gRPC threads: read_done/write_done/ended
// mutex_ guards the queue and the flags below it; handlers_ belongs to the io thread.
class BaseLink : public Link {
 public:
  BaseLink(boost::asio::io_context& io, Handlers handlers) : io_(io), handlers_(std::move(handlers)) {}

  void send(v1::Frame frame) override {
    std::unique_lock lock(mutex_);
    if (ended_ || closing_) return;
    const std::size_t bytes = frame.ByteSizeLong();
    tell_frame("sent", frame, bytes);
    queued_bytes_ += bytes;
    full_ = full_ || queued_bytes_ >= room_bytes;
    queue_.push_back({std::move(frame), bytes});
    if (writing_) return;
    if (!may_wait(queue_.back().frame)) {
      start_next(lock);
      return;
    }
    if (std::exchange(start_posted_, true)) return;
    boost::asio::post(io_, [self = self()] {
      std::unique_lock lock(self->mutex_);
      self->start_posted_ = false;
      self->start_next(lock);
    });
  }
  std::size_t queued_bytes() const override {
    std::lock_guard lock(mutex_);
    return queued_bytes_;
  }
  void close() override {
    std::unique_lock lock(mutex_);
    if (ended_ || closing_) return;
    closing_ = true;
    start_next(lock);
  }
  void abort() override {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    closing_ = true;
    do_cancel();
  }
  void detach() override { handlers_ = {}; }
  bool open() const override {
    std::lock_guard lock(mutex_);
    return !ended_ && !closing_;
  }

 protected:
  // Called under mutex_, never concurrently with themselves.
  virtual void do_start_write(const v1::Frame* frame) = 0;
  virtual void do_start_read(v1::Frame* into) = 0;
  virtual void do_finish() = 0;
  virtual void do_cancel() = 0;

  void opened() {
    boost::asio::post(io_, [self = self()] {
      if (self->handlers_.on_open) self->handlers_.on_open(self);
    });
  }
  void first_read() {
    std::lock_guard lock(mutex_);
    do_start_read(&incoming_);
  }
  void read_done(bool ok) {
    if (!ok) {
      stream_ended();
      return;
    }
    auto frame = std::make_shared<v1::Frame>(std::move(incoming_));
    incoming_.Clear();
    const auto bytes = static_cast<std::ptrdiff_t>(frame->ByteSizeLong());
    // Post first: the next read may complete on another thread, and order must hold.
    boost::asio::post(io_, [self = self(), frame = std::move(frame), bytes] {
      auto take = [&self](v1::Frame&& one) {
        if (!self->handlers_.on_frame) return;
        if (spdlog::should_log(spdlog::level::debug)) tell_frame("got", one, one.ByteSizeLong());
        auto handler = self->handlers_.on_frame;  // the handler may detach
        handler(self, std::move(one));
      };
      if (frame->has_batch()) {
        for (auto& one : *frame->mutable_batch()->mutable_frames()) take(std::move(one));
      } else {
        take(std::move(*frame));
      }
      std::lock_guard lock(self->mutex_);
      self->unread_bytes_ -= bytes;
      if (self->reading_paused_ && self->unread_bytes_ < unread_limit_bytes / 2 && !self->ended_) {
        self->reading_paused_ = false;
        self->do_start_read(&self->incoming_);
      }
    });
    std::lock_guard lock(mutex_);
    unread_bytes_ += bytes;
    if (unread_bytes_ < unread_limit_bytes) do_start_read(&incoming_);
    else reading_paused_ = true;
  }
  void write_done(bool ok) {
    std::unique_lock lock(mutex_);
    writing_ = false;
    queued_bytes_ -= std::exchange(outgoing_bytes_, 0);
    outgoing_.Clear();
    if (ok && full_ && queued_bytes_ < room_bytes / 2) {
      full_ = false;
      boost::asio::post(io_, [self = self()] {
        if (auto handler = self->handlers_.on_room) handler(self);
      });
    }
    if (!ok) {
      closing_ = true;
      drop_queue();
    }
    start_next(lock);
  }
  // The peer ended its direction, or the stream broke: nothing more goes out.
  virtual void stream_ended() {
    std::unique_lock lock(mutex_);
    closing_ = true;
    drop_queue();
    start_next(lock);
  }
  void ended(std::string cause) {
    {
      std::lock_guard lock(mutex_);
      if (ended_) return;
      ended_ = true;
    }
    boost::asio::post(io_, [self = self(), cause = std::move(cause)] {
      auto handler = std::move(self->handlers_.on_closed);
      self->handlers_ = {};
      if (handler) handler(self, cause);
    });
  }
  // The reference is dropped on the owner's thread.
  void keep_until_posted(std::shared_ptr<BaseLink> last) {
    boost::asio::post(io_, [last = std::move(last)] {});
  }
  std::shared_ptr<BaseLink> self() { return std::static_pointer_cast<BaseLink>(shared_from_this()); }

  mutable std::mutex mutex_;
  bool finishing_ = false;

 private:
  void start_next(std::unique_lock<std::mutex>&) {
    if (writing_ || finishing_) return;
    if (!queue_.empty()) {
      writing_ = true;
      take_outgoing();
      do_start_write(&outgoing_);
    } else if (closing_) {
      finishing_ = true;
      do_finish();
    }
  }
  void take_outgoing() {
    auto next_fits = [this] { return !queue_.empty() && outgoing_bytes_ + queue_.front().bytes <= batch_bytes; };
    outgoing_bytes_ = queue_.front().bytes;
    outgoing_ = std::move(queue_.front().frame);
    queue_.pop_front();
    if (!next_fits()) return;
    v1::Batch batch;
    *batch.add_frames() = std::move(outgoing_);
    while (next_fits()) {
      outgoing_bytes_ += queue_.front().bytes;
      *batch.add_frames() = std::move(queue_.front().frame);
      queue_.pop_front();
    }
    outgoing_.Clear();
    *outgoing_.mutable_batch() = std::move(batch);
  }
  void drop_queue() {
    for (const auto& waiting : queue_) queued_bytes_ -= waiting.bytes;
    queue_.clear();
  }

  boost::asio::io_context& io_;
  Handlers handlers_;
  struct Waiting {
    v1::Frame frame;
    std::size_t bytes;
  };
  std::deque<Waiting> queue_;
  v1::Frame outgoing_;  // the one in flight
  std::size_t outgoing_bytes_ = 0;
  bool start_posted_ = false;
  v1::Frame incoming_;
  std::size_t queued_bytes_ = 0;
  std::ptrdiff_t unread_bytes_ = 0;  // the owner may be done with a frame before it is counted
  bool reading_paused_ = false;
  bool writing_ = false;
  bool full_ = false;
  bool closing_ = false;
  bool ended_ = false;
};

// ---- upper side ------------------------------------------------------------------------------------

class ServerLink final : public BaseLink, public grpc::ServerBidiReactor<v1::Frame, v1::Frame> {
 public:
  ServerLink(boost::asio::io_context& io, Handlers handlers, grpc::CallbackServerContext* context)
      : BaseLink(io, std::move(handlers)), context_(context) {
    if (auto auth = context->auth_context()) {
      for (const auto& uri : auth->FindPropertyValues("peer_uri")) uri_ = std::string(uri.data(), uri.size());
    }
  }
  void start(std::shared_ptr<ServerLink> self) {
    alive_ = std::move(self);  // until OnDone
    opened();
    first_read();
  }
  std::string peer_uri() const override { return uri_; }

  void OnReadDone(bool ok) override { read_done(ok); }
  void OnWriteDone(bool ok) override { write_done(ok); }
  void OnCancel() override { stream_ended(); }
  void OnDone() override {
    ended("the other side ended the link");
    auto last = std::move(alive_);
  }

 private:
  void do_start_write(const v1::Frame* frame) override { StartWrite(frame); }
  void do_start_read(v1::Frame* into) override { StartRead(into); }
  void do_finish() override { Finish(grpc::Status::OK); }
  void do_cancel() override { context_->TryCancel(); }

  grpc::CallbackServerContext* context_;  // valid until OnDone
  std::string uri_;
  std::shared_ptr<ServerLink> alive_;
};

// ---- lower side ------------------------------------------------------------------------------------

class ClientLink final : public BaseLink, public grpc::ClientBidiReactor<v1::Frame, v1::Frame> {
 public:
  ClientLink(boost::asio::io_context& io, Handlers handlers, std::shared_ptr<grpc::Channel> channel)
      : BaseLink(io, std::move(handlers)), channel_(std::move(channel)), stub_(v1::LinkService::NewStub(channel_)) {}

  void start(std::shared_ptr<ClientLink> self) {
    alive_ = std::move(self);
    stub_->async()->Open(&context_, this);
    AddHold();  // sends come from outside the reactions
    first_read();
    StartCall();
  }
  std::string peer_uri() const override { return {}; }

  void OnReadDone(bool ok) override { read_done(ok); }
  void OnWriteDone(bool ok) override { write_done(ok); }
  void OnDone(const grpc::Status& status) override {
    ended(status.ok() ? "the other side ended the link" : "the link broke: " + status.error_message());
    // With the last channel gRPC joins the thread that runs its callbacks. This is that thread: let go on the owner's.
    keep_until_posted(std::move(alive_));
  }

 private:
  void do_start_write(const v1::Frame* frame) override { StartWrite(frame); }
  void do_start_read(v1::Frame* into) override { StartRead(into); }
  void do_finish() override {
    StartWritesDone();
    release();
  }
  void do_cancel() override { context_.TryCancel(); }  // the pending read then fails
  void stream_ended() override {
    std::lock_guard lock(mutex_);
    finishing_ = true;
    release();
  }
  void release() {
    if (std::exchange(released_, true)) return;
    RemoveHold();
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::LinkService::Stub> stub_;
  grpc::ClientContext context_;
  std::shared_ptr<ClientLink> alive_;
  bool released_ = false;
};

grpc::SslServerCredentialsOptions server_options(const TlsIdentity& identity) {
  grpc::SslServerCredentialsOptions options(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = identity.ca;
  options.pem_key_cert_pairs.push_back({identity.private_key, identity.chain});
  return options;
}

LinkPtr start_client(boost::asio::io_context& io, Handlers handlers, std::shared_ptr<grpc::Channel> channel) {
  auto link = std::make_shared<ClientLink>(io, std::move(handlers), std::move(channel));
  link->start(link);
  return link;
}

grpc::ChannelArguments client_arguments(Keepalive keepalive) {
  grpc::ChannelArguments arguments;
  set_transport([&](const char* name, int value) { arguments.SetInt(name, value); }, keepalive);
  arguments.SetMaxReceiveMessageSize(max_frame_bytes);
  arguments.SetMaxSendMessageSize(max_frame_bytes);
  // Its own connection, whatever other channels to the same address there are.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

}  // namespace

class Server::Impl final : public v1::LinkService::CallbackService {
 public:
  Impl(boost::asio::io_context& io, Handlers handlers, Keepalive keepalive)
      : io_(io), shared_(std::make_shared<Shared>(std::move(handlers))), keepalive_(keepalive) {}
  ~Impl() override {
    shared_->over = true;
    for (auto& [raw, weak] : shared_->links)
      if (auto link = weak.lock()) {
        link->detach();
        link->abort();
      }
    if (server_) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  }

  grpc::ServerBidiReactor<v1::Frame, v1::Frame>* Open(grpc::CallbackServerContext* context) override {
    auto shared = shared_;
    Handlers handlers;
    handlers.on_open = [shared](const LinkPtr& link) {
      if (shared->over) {
        link->detach();
        link->abort();
        return;
      }
      shared->links[link.get()] = link;
      if (shared->handlers.on_open) shared->handlers.on_open(link);
    };
    handlers.on_frame = [shared](const LinkPtr& link, v1::Frame frame) {
      if (!shared->over && shared->handlers.on_frame) shared->handlers.on_frame(link, std::move(frame));
    };
    handlers.on_closed = [shared](const LinkPtr& link, const std::string& cause) {
      shared->links.erase(link.get());
      if (!shared->over && shared->handlers.on_closed) shared->handlers.on_closed(link, cause);
    };
    handlers.on_room = [shared](const LinkPtr& link) {
      if (!shared->over && shared->handlers.on_room) shared->handlers.on_room(link);
    };
    auto link = std::make_shared<ServerLink>(io_, std::move(handlers), context);
    auto* reactor = link.get();
    reactor->start(std::move(link));
    return reactor;
  }

  Result<int> listen_tls(const std::string& address, const TlsIdentity& identity) {
    int port = 0;
    build([&](grpc::ServerBuilder& builder) {
      builder.AddListeningPort(address, grpc::SslServerCredentials(server_options(identity)), &port);
    });
    if (!server_ || port == 0) return fail(Code::unavailable, "cannot listen on " + address);
    return port;
  }
  void add_fd(unique_fd fd) {
    if (!server_) build([](grpc::ServerBuilder&) {});
    make_nonblocking(fd.get());
    grpc::AddInsecureChannelFromFd(server_.get(), fd.release());
  }

 private:
  struct Shared {  // lives as long as a link's handlers do; the io thread alone touches it
    explicit Shared(Handlers h) : handlers(std::move(h)) {}
    Handlers handlers;
    std::map<Link*, std::weak_ptr<Link>> links;
    bool over = false;
  };

  template <class Configure>
  void build(Configure&& configure) {
    grpc::ServerBuilder builder;
    set_transport([&](const char* name, int value) { builder.AddChannelArgument(name, value); }, keepalive_);
    builder.SetMaxReceiveMessageSize(max_frame_bytes);
    builder.SetMaxSendMessageSize(max_frame_bytes);
    configure(builder);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }

  boost::asio::io_context& io_;
  std::shared_ptr<Shared> shared_;
  Keepalive keepalive_;
  std::unique_ptr<grpc::Server> server_;
};

Server::Server(boost::asio::io_context& io, Handlers handlers, Keepalive keepalive)
    : impl_(std::make_unique<Impl>(io, std::move(handlers), keepalive)) {}
Server::~Server() = default;
Result<int> Server::listen_tls(const std::string& address, const TlsIdentity& identity) { return impl_->listen_tls(address, identity); }
void Server::add_fd(unique_fd fd) { impl_->add_fd(std::move(fd)); }

LinkPtr connect_fd(boost::asio::io_context& io, unique_fd fd, Handlers handlers, Keepalive keepalive) {
  make_nonblocking(fd.get());
  // The target's name is only the authority in HTTP/2; the fd is what is used.
  auto arguments = client_arguments(keepalive);
  auto channel = grpc::CreateCustomInsecureChannelFromFd("flotilla", fd.release(), arguments);
  return start_client(io, std::move(handlers), std::move(channel));
}

LinkPtr connect_tls(boost::asio::io_context& io, const std::string& address, const std::string& server_name, const TlsIdentity& identity,
                    Handlers handlers, Keepalive keepalive) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = identity.ca;
  options.pem_cert_chain = identity.chain;
  options.pem_private_key = identity.private_key;
  auto arguments = client_arguments(keepalive);
  arguments.SetSslTargetNameOverride(server_name);
  auto channel = grpc::CreateCustomChannel(address, grpc::SslCredentials(options), arguments);
  return start_client(io, std::move(handlers), std::move(channel));
}

}  // namespace flotilla::link
