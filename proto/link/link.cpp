#include "proto/link/link.hpp"

#include <fcntl.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <grpcpp/support/async_stream.h>
#include <grpcpp/support/channel_arguments.h>
#include <signal.h>

#include <boost/asio/post.hpp>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "flotilla/v1/link.grpc.pb.h"
#include "proto/base/grpc_window.hpp"
#include "proto/base/log.hpp"
#include "proto/base/text.hpp"

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

// Error output and names from outside, of any encoding: with such a text the other side could not read the frame.
bool tells_what_others_said(const v1::Frame& frame) {
  switch (frame.body_case()) {
    case v1::Frame::kHello:
    case v1::Frame::kNodeJoined:
    case v1::Frame::kLaunchReport:
    case v1::Frame::kNodeLeft:
    case v1::Frame::kPilotEnding:
    case v1::Frame::kGoodbye:
    case v1::Frame::kAttemptRunning:
    case v1::Frame::kWorkerConnected:
    case v1::Frame::kAttemptEnded:
    case v1::Frame::kBlobData:
    case v1::Frame::kChannelRefused:
    case v1::Frame::kChannelEnd:
    case v1::Frame::kLogData:
    case v1::Frame::kEndPilot:
    case v1::Frame::kWelcome: return true;
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

// What gRPC is told to come back with: an address that it hands over when an operation has ended.
class Completion {
 public:
  virtual void complete(bool ok) = 0;

 protected:
  ~Completion() = default;
};

// Runs what has ended, on a thread of its own. With one thread nothing is handed from one to another; gRPC's own callbacks have at
// least two for each process, which wake one another at every event.
class CompletionThread {
 public:
  // Throws std::system_error where the system has no thread left.
  explicit CompletionThread(std::unique_ptr<grpc::CompletionQueue> queue) : shared_(std::make_shared<Shared>()) {
    shared_->queue = std::move(queue);
    // Signals are the business of the program's other threads.
    struct Blocked {
      sigset_t before;
      Blocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
      }
      ~Blocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
    } blocked;
    thread_ = std::thread([shared = shared_] {
      void* completion = nullptr;
      for (bool ok = false; shared->queue->Next(&completion, &ok);) {
        std::unique_lock(shared->made).unlock();
        static_cast<Completion*>(completion)->complete(ok);
      }
    });
  }
  ~CompletionThread() { end(); }
  // When no operation is begun any more; waits for those under way. What is ended by its own thread ends right after.
  void end() {
    if (!thread_.joinable()) return;
    shared_->queue->Shutdown();
    if (thread_.get_id() == std::this_thread::get_id()) thread_.detach();
    else thread_.join();
  }
  grpc::CompletionQueue& queue() { return *shared_->queue; }
  // Before the first operation of an object: what was written to it until now is there when the operation ends. gRPC sees to that
  // too, in a way that ThreadSanitizer does not.
  void publish() { std::unique_lock(shared_->made).unlock(); }

 private:
  struct Shared {
    std::unique_ptr<grpc::CompletionQueue> queue;
    std::mutex made;
  };
  std::shared_ptr<Shared> shared_;
  std::thread thread_;
};

// The part that both sides share:
//   io thread:         send/close/abort/detach
//   completion thread: what ends an operation
// mutex_ guards the queue and the flags below it; handlers_ belongs to the io thread.
class BaseLink : public Link {
 public:
  BaseLink(boost::asio::io_context& io, Handlers handlers) : io_(io), handlers_(std::move(handlers)) {}

  void send(v1::Frame frame) override {
    if (tells_what_others_said(frame)) make_utf8(frame);
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
  void detach() override {
    handlers_ = {};
    std::lock_guard lock(mutex_);
    detached_ = true;
    if (std::exchange(reading_paused_, false)) start_read();  // its end must be seen
  }
  bool open() const override {
    std::lock_guard lock(mutex_);
    return !ended_ && !closing_;
  }

 protected:
  // An operation of this link. It is under way from begin() until its end has been dealt with.
  class Operation final : public Completion {
   public:
    Operation(BaseLink& link, void (BaseLink::*done)(bool)) : link_(link), done_(done) {}
    void complete(bool ok) override { link_.completed(done_, ok); }

   private:
    BaseLink& link_;
    void (BaseLink::*done_)(bool);
  };
  // Under mutex_.
  void* begin(Operation& operation) {
    ++under_way_;
    return static_cast<Completion*>(&operation);
  }

  // Called under mutex_, never concurrently with themselves.
  virtual void do_start_write(const v1::Frame& frame, void* end) = 0;
  virtual void do_start_read(v1::Frame* into, void* end) = 0;
  virtual void do_finish() = 0;
  virtual void do_cancel() = 0;
  // No operation is under way any more, and none will be: tells the cause, and lets go of the link itself.
  virtual void over() = 0;

  // Runs `what` on the owner's thread. Under mutex_. Not after detach(): its io_context may be gone.
  template <class F>
  void tell(F&& what) {
    if (!detached_) boost::asio::post(io_, std::forward<F>(what));
  }
  // Under mutex_.
  void opened() {
    tell([self = self()] {
      if (auto handler = self->handlers_.on_open) handler(self);  // the handler may detach
    });
  }
  // Under mutex_.
  void start_read() {
    if (!reading_over_) do_start_read(&incoming_, begin(read_));
  }
  void read_done(bool ok) {
    if (!ok) {
      stream_ended();
      return;
    }
    auto frame = std::make_shared<v1::Frame>(std::move(incoming_));
    incoming_.Clear();
    const auto bytes = static_cast<std::ptrdiff_t>(frame->ByteSizeLong());
    std::lock_guard lock(mutex_);
    if (detached_) return start_read();
    tell([self = self(), frame = std::move(frame), bytes] {
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
      if (self->reading_paused_ && self->unread_bytes_ < unread_limit_bytes / 2) {
        self->reading_paused_ = false;
        self->start_read();
      }
    });
    unread_bytes_ += bytes;
    if (unread_bytes_ < unread_limit_bytes) start_read();
    else reading_paused_ = true;
  }
  void write_done(bool ok) {
    std::unique_lock lock(mutex_);
    writing_ = false;
    queued_bytes_ -= std::exchange(outgoing_bytes_, 0);
    outgoing_.Clear();
    if (ok && full_ && queued_bytes_ < room_bytes / 2) {
      full_ = false;
      tell([self = self()] {
        if (auto handler = self->handlers_.on_room) handler(self);
      });
    }
    if (!ok) {
      closing_ = true;
      drop_queue();
    }
    start_next(lock);
  }
  // The peer ended its direction, or the stream broke.
  virtual void stream_ended() = 0;
  void finish_done(bool) {
    std::lock_guard lock(mutex_);
    finished_ = true;
  }
  void nothing_done(bool) {}
  // Under mutex_: nothing more goes out.
  void end_sending(std::unique_lock<std::mutex>& lock) {
    closing_ = true;
    drop_queue();
    start_next(lock);
  }
  // The last that is done with a link.
  void ended(std::string cause, std::shared_ptr<BaseLink> self) {
    const auto last = self;  // outside of the lock
    std::lock_guard lock(mutex_);
    ended_ = true;
    tell([self = std::move(self), cause = std::move(cause)] {
      auto handler = std::move(self->handlers_.on_closed);
      self->handlers_ = {};
      if (handler) handler(self, cause);
    });
  }
  std::shared_ptr<BaseLink> self() { return std::static_pointer_cast<BaseLink>(shared_from_this()); }

  void start_next(std::unique_lock<std::mutex>&) {
    if (writing_ || finishing_) return;
    if (!queue_.empty()) {
      writing_ = true;
      take_outgoing();
      do_start_write(outgoing_, begin(write_));
    } else if (closing_) {
      finishing_ = true;
      do_finish();
    }
  }

  mutable std::mutex mutex_;
  bool detached_ = false;
  bool writing_ = false;
  bool finishing_ = false;     // this side has ended its direction
  bool reading_over_ = false;  // no further read is begun
  bool finished_ = false;      // gRPC is done with the call

 private:
  void completed(void (BaseLink::*done)(bool), bool ok) {
    (this->*done)(ok);
    {
      std::lock_guard lock(mutex_);
      if (--under_way_ > 0 || !finished_) return;
    }
    over();
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
  Operation read_{*this, &BaseLink::read_done}, write_{*this, &BaseLink::write_done};
  int under_way_ = 0;
  v1::Frame outgoing_;  // the one in flight
  std::size_t outgoing_bytes_ = 0;
  bool start_posted_ = false;
  v1::Frame incoming_;
  std::size_t queued_bytes_ = 0;
  std::ptrdiff_t unread_bytes_ = 0;  // the owner may be done with a frame before it is counted
  bool reading_paused_ = false;
  bool full_ = false;
  bool closing_ = false;
  bool ended_ = false;
};

// ---- upper side ------------------------------------------------------------------------------------

class ServerLink final : public BaseLink {
 public:
  using BaseLink::BaseLink;

  // Waits for the next call. On the completion thread: on_accepted runs when it is there, on_over last of all, also without a call.
  void accept(std::shared_ptr<ServerLink> self, v1::LinkService::AsyncService& service, grpc::ServerCompletionQueue& queue,
              std::function<void()> on_accepted, std::function<void()> on_over) {
    std::lock_guard lock(mutex_);
    alive_ = std::move(self);  // until it is over
    on_accepted_ = std::move(on_accepted);
    on_over_ = std::move(on_over);
    context_.AsyncNotifyWhenDone(begin(gone_));
    service.RequestOpen(&context_, &stream_, &queue, &queue, static_cast<Completion*>(&accepted_));
  }
  std::string peer_uri() const override { return uri_; }

 private:
  struct Accepted final : Completion {
    explicit Accepted(ServerLink& link) : link_(link) {}
    void complete(bool ok) override { link_.accepted(ok); }
    ServerLink& link_;
  };
  void accepted(bool ok) {
    std::unique_lock lock(mutex_);
    if (!ok) {  // the server ends. Then gRPC does not say that the call is gone: there was none.
      const auto last = std::move(alive_);
      const auto done = std::move(on_over_);
      lock.unlock();
      return done();
    }
    const auto next = std::exchange(on_accepted_, nullptr);
    if (auto auth = context_.auth_context()) {
      for (const auto& uri : auth->FindPropertyValues("peer_uri")) uri_ = std::string(uri.data(), uri.size());
    }
    opened();
    start_read();
    lock.unlock();
    next();
  }
  void gone(bool) { stream_ended(); }

  void do_start_write(const v1::Frame& frame, void* end) override { stream_.Write(frame, end); }
  void do_start_read(v1::Frame* into, void* end) override { stream_.Read(into, end); }
  void do_finish() override {
    reading_over_ = true;
    stream_.Finish(grpc::Status::OK, begin(finish_));
  }
  void do_cancel() override { context_.TryCancel(); }
  void stream_ended() override {
    std::unique_lock lock(mutex_);
    end_sending(lock);
  }
  void over() override {
    const auto done = std::move(on_over_);
    ended("the other side ended the link", std::move(alive_));
    done();
  }

  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<v1::Frame, v1::Frame> stream_{&context_};
  Accepted accepted_{*this};
  Operation gone_{*this, static_cast<void (BaseLink::*)(bool)>(&ServerLink::gone)};
  Operation finish_{*this, static_cast<void (BaseLink::*)(bool)>(&ServerLink::finish_done)};
  std::function<void()> on_accepted_, on_over_;
  std::string uri_;
  std::shared_ptr<ServerLink> alive_;
};

// ---- lower side ------------------------------------------------------------------------------------

class ClientLink final : public BaseLink {
 public:
  ClientLink(boost::asio::io_context& io, Handlers handlers, std::shared_ptr<grpc::Channel> channel)
      : BaseLink(io, std::move(handlers)), channel_(std::move(channel)), stub_(v1::LinkService::NewStub(channel_)),
        thread_(std::make_unique<grpc::CompletionQueue>()) {}

  void start(std::shared_ptr<ClientLink> self) {
    std::lock_guard lock(mutex_);
    alive_ = std::move(self);  // until it is over
    writing_ = true;           // until it has begun
    thread_.publish();
    stream_ = stub_->PrepareAsyncOpen(&context_, &thread_.queue());
    stream_->StartCall(begin(started_));
  }
  std::string peer_uri() const override { return {}; }

 private:
  // Where it did not start, the read fails and tells why.
  void started(bool) {
    std::unique_lock lock(mutex_);
    writing_ = false;
    start_read();
    start_next(lock);
  }
  void do_start_write(const v1::Frame& frame, void* end) override { stream_->Write(frame, end); }
  void do_start_read(v1::Frame* into, void* end) override { stream_->Read(into, end); }
  void do_finish() override { stream_->WritesDone(begin(writes_done_)); }
  void do_cancel() override { context_.TryCancel(); }  // the pending read then fails
  void stream_ended() override {
    std::unique_lock lock(mutex_);
    reading_over_ = finishing_ = true;
    end_sending(lock);
    stream_->Finish(&status_, begin(finish_));
    context_.TryCancel();  // where the call itself has not ended: what came could not be read
  }
  void over() override {
    ended(status_.ok() ? "the other side ended the link" : "the link broke: " + status_.error_message(), std::move(alive_));
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::LinkService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::Frame, v1::Frame>> stream_;
  grpc::Status status_;
  Operation started_{*this, static_cast<void (BaseLink::*)(bool)>(&ClientLink::started)};
  Operation writes_done_{*this, static_cast<void (BaseLink::*)(bool)>(&ClientLink::nothing_done)};
  Operation finish_{*this, static_cast<void (BaseLink::*)(bool)>(&ClientLink::finish_done)};
  std::shared_ptr<ClientLink> alive_;
  CompletionThread thread_;  // the first to end
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

class Server::Impl final {
 public:
  Impl(boost::asio::io_context& io, Handlers handlers, Keepalive keepalive)
      : io_(io), shared_(std::make_shared<Shared>(std::move(handlers))), keepalive_(keepalive) {}
  ~Impl() {
    shared_->over = true;
    for (auto& [raw, weak] : shared_->links)
      if (auto link = weak.lock()) {
        link->detach();
        link->abort();
      }
    {
      std::lock_guard lock(accepting_);
      ending_ = true;
    }
    if (server_) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    {
      // Each link's call has ended; no operation may be begun for it when the queue is shut down.
      std::unique_lock lock(accepting_);
      none_left_.wait(lock, [this] { return links_ == 0; });
    }
    if (thread_) thread_->end();
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
    builder.RegisterService(&service_);
    auto queue = builder.AddCompletionQueue();
    queue_ = queue.get();
    server_ = builder.BuildAndStart();
    thread_ = std::make_unique<CompletionThread>(std::move(queue));
    if (server_) accept_next();
  }

  void accept_next() {
    std::lock_guard lock(accepting_);
    if (ending_) return;
    auto link = std::make_shared<ServerLink>(io_, handlers_of_link());
    auto* raw = link.get();
    ++links_;
    thread_->publish();
    raw->accept(
        std::move(link), service_, *queue_, [this] { accept_next(); },
        [this] {
          std::lock_guard over(accepting_);
          if (--links_ == 0) none_left_.notify_all();
        });
  }

  Handlers handlers_of_link() const {
    auto shared = shared_;
    Handlers handlers;
    handlers.on_open = [shared](const LinkPtr& link) {
      if (shared->over) {
        link->detach();
        link->abort();
        return;
      }
      std::erase_if(shared->links, [](const auto& each) { return each.second.expired(); });  // those that were detached
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
    return handlers;
  }

  boost::asio::io_context& io_;
  std::shared_ptr<Shared> shared_;
  Keepalive keepalive_;
  v1::LinkService::AsyncService service_;
  std::unique_ptr<CompletionThread> thread_;
  grpc::ServerCompletionQueue* queue_ = nullptr;  // the thread's
  std::unique_ptr<grpc::Server> server_;
  std::mutex accepting_;
  std::condition_variable none_left_;
  int links_ = 0;  // with the one that waits for a call
  bool ending_ = false;
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
