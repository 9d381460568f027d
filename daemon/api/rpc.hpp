// gRPC's callback reactors behind the interfaces of stream.hpp. Only service.cpp includes this.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <deque>
#include <mutex>

#include "daemon/api/stream.hpp"
#include "proto/base/error_wire.hpp"
#include "proto/base/text.hpp"

namespace flotilla::daemon::rpc {

inline grpc::StatusCode grpc_code(Code code) {
  switch (code) {
    case Code::invalid_argument: return grpc::StatusCode::INVALID_ARGUMENT;
    case Code::not_found: return grpc::StatusCode::NOT_FOUND;
    case Code::already_exists: return grpc::StatusCode::ALREADY_EXISTS;
    case Code::failed_precondition: return grpc::StatusCode::FAILED_PRECONDITION;
    case Code::unavailable: return grpc::StatusCode::UNAVAILABLE;
    case Code::permission_denied:
    case Code::authentication_failed:
    case Code::host_key_unknown:
    case Code::host_key_changed: return grpc::StatusCode::PERMISSION_DENIED;
    case Code::timeout: return grpc::StatusCode::DEADLINE_EXCEEDED;
    case Code::canceled: return grpc::StatusCode::CANCELLED;
    case Code::unsupported: return grpc::StatusCode::UNIMPLEMENTED;
    case Code::resource_exhausted: return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case Code::version_mismatch: return grpc::StatusCode::FAILED_PRECONDITION;
    case Code::worker_failed: return grpc::StatusCode::ABORTED;
    case Code::internal: return grpc::StatusCode::INTERNAL;
  }
  return grpc::StatusCode::UNKNOWN;
}

inline grpc::Status grpc_status(const Error& error) { return {grpc_code(error.code), error.message, to_wire(error).SerializeAsString()}; }
inline grpc::Status grpc_status(const Status& status) { return status ? grpc::Status::OK : grpc_status(status.error()); }

// One request, one answer.
template <class Request, class Answer>
class Unary final : public grpc::ServerUnaryReactor {
 public:
  explicit Unary(boost::asio::io_context& io) : io_(io), context_(std::make_shared<CallContext>()) {}

  template <class Handler>
  void start(const Request* request, Answer* answer, Handler handler) {
    boost::asio::post(io_, [this, request, answer, handler = std::move(handler)] {
      handler(*request, context_, [this, answer](Result<Answer> result) {
        context_->on_canceled = nullptr;
        if (result) {
          *answer = std::move(*result);
          make_utf8(*answer);
        }
        Finish(result ? grpc::Status::OK : grpc_status(result.error()));
      });
    });
  }
  void OnCancel() override {
    boost::asio::post(io_, [context = context_] {
      if (auto canceled = std::exchange(context->on_canceled, nullptr)) canceled();
    });
  }
  void OnDone() override { delete this; }

 private:
  boost::asio::io_context& io_;
  CallContextPtr context_;
};

// The part that both kinds of stream share: a queue with one write in flight.
// mutex_ guards the queue; on_gone and on_drained belong to the daemon's thread.
template <class Base, class Reactor, class Out>
class StreamBase : public Base, public Reactor {
 public:
  explicit StreamBase(boost::asio::io_context& io) : io_(io) {}

  void send(Out message) override {
    make_utf8(message);
    std::lock_guard lock(mutex_);
    if (finishing_ || dead_) return;
    bytes_ += message.ByteSizeLong();
    queue_.push_back(std::move(message));
    pump();
  }
  void finish(Status status) override {
    this->on_gone = nullptr;
    std::lock_guard lock(mutex_);
    if (finishing_) return;
    finishing_ = true;
    status_ = grpc_status(status);
    if (dead_) queue_keep_front();
    pump();
  }
  std::size_t queued_bytes() const override {
    std::lock_guard lock(mutex_);
    return bytes_;
  }

  void OnWriteDone(bool ok) override {
    bool drained = false;
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      bytes_ -= queue_.front().ByteSizeLong();
      queue_.pop_front();
      if (!ok) {
        dead_ = true;
        queue_keep_front();
      }
      pump();
      drained = queue_.empty() && !finishing_;
    }
    if (drained)
      boost::asio::post(io_, [self = self_] {
        if (self && self->on_drained) {
          auto call = self->on_drained;
          call();
        }
      });
  }
  void OnCancel() override {
    {
      std::lock_guard lock(mutex_);
      dead_ = true;
      queue_keep_front();
      pump();
    }
    boost::asio::post(io_, [self = self_] {
      if (!self) return;
      if (auto gone = std::exchange(self->on_gone, nullptr)) gone();
      self->finish({});
    });
  }
  void OnDone() override {
    // The daemon's thread may still hold handlers that refer to it: let go there.
    boost::asio::post(io_, [self = std::move(self_)] {
      self->on_drained = nullptr;
      self->on_gone = nullptr;
      self->released();
    });
  }

  void keep(std::shared_ptr<StreamBase> self) { self_ = std::move(self); }
  virtual void released() {}

 protected:
  boost::asio::io_context& io_;
  mutable std::mutex mutex_;
  std::shared_ptr<StreamBase> self_;
  bool finished_ = false;  // Finish was called

 private:
  void queue_keep_front() {
    while (queue_.size() > (writing_ ? 1u : 0u)) {
      bytes_ -= queue_.back().ByteSizeLong();
      queue_.pop_back();
    }
  }
  void pump() {
    if (writing_ || finished_) return;
    if (!queue_.empty()) {
      writing_ = true;
      this->StartWrite(&queue_.front());
    } else if (finishing_) {
      finished_ = true;
      this->Finish(status_);
    }
  }

  std::deque<Out> queue_;
  std::size_t bytes_ = 0;
  grpc::Status status_;
  bool writing_ = false, finishing_ = false, dead_ = false;
};

template <class Out>
class Writer final : public StreamBase<OutStream<Out>, grpc::ServerWriteReactor<Out>, Out> {
 public:
  using StreamBase<OutStream<Out>, grpc::ServerWriteReactor<Out>, Out>::StreamBase;
};

// Starts a server stream; `handler(request, stream)` runs on the daemon's thread.
template <class Request, class Out, class Handler>
grpc::ServerWriteReactor<Out>* stream(boost::asio::io_context& io, const Request* request, Handler handler) {
  auto writer = std::make_shared<Writer<Out>>(io);
  writer->keep(writer);
  boost::asio::post(io, [writer, request = *request, handler = std::move(handler)] { handler(request, writer); });
  return writer.get();
}

template <class In, class Out>
class TwoWay final : public StreamBase<TwoWayStream<In, Out>, grpc::ServerBidiReactor<In, Out>, Out> {
  using Base = StreamBase<TwoWayStream<In, Out>, grpc::ServerBidiReactor<In, Out>, Out>;

 public:
  using Base::Base;

  void first_read() { this->StartRead(&incoming_); }
  void OnReadDone(bool ok) override {
    auto self = std::static_pointer_cast<TwoWay>(this->self_);
    if (!ok) {
      boost::asio::post(this->io_, [self] {
        if (self->on_half_close) {
          auto call = std::exchange(self->on_half_close, nullptr);
          call();
        }
      });
      return;
    }
    auto message = std::make_shared<In>(std::move(incoming_));
    incoming_.Clear();
    boost::asio::post(this->io_, [self, message] {
      if (self->on_message) {
        auto call = self->on_message;
        call(std::move(*message));
      }
      if (self->paused_) self->read_wanted_ = true;
      else self->read_next();
    });
  }
  void pause() override { paused_ = true; }
  void resume() override {
    paused_ = false;
    if (std::exchange(read_wanted_, false)) read_next();
  }
  void released() override {
    this->on_message = nullptr;
    this->on_half_close = nullptr;
  }

 private:
  void read_next() {
    std::lock_guard lock(this->mutex_);
    if (!this->finished_) this->StartRead(&incoming_);  // after Finish the call may be gone at any moment
  }
  In incoming_;
  bool paused_ = false, read_wanted_ = false;  // the daemon's thread only
};

template <class In, class Out, class Handler>
grpc::ServerBidiReactor<In, Out>* two_way(boost::asio::io_context& io, Handler handler) {
  auto both = std::make_shared<TwoWay<In, Out>>(io);
  both->keep(both);
  boost::asio::post(io, [both, handler = std::move(handler)] {
    handler(TwoWayStreamPtr<In, Out>(both));
    both->first_read();
  });
  return both.get();
}

// Many messages from a client, one answer.
template <class In, class Answer>
class Upload final : public grpc::ServerReadReactor<In> {
 public:
  Upload(boost::asio::io_context& io, Answer* answer) : io_(io), answer_(answer) {}
  std::function<Status(In)> on_message;  // an error ends the call
  std::function<Result<Answer>()> on_end;

  void begin() { this->StartRead(&incoming_); }
  void OnReadDone(bool ok) override {
    boost::asio::post(io_, [this, ok] {
      if (over_) return;
      if (ok) {
        if (auto status = on_message(std::move(incoming_)); !status) return end(grpc_status(status.error()));
        incoming_.Clear();
        this->StartRead(&incoming_);
        return;
      }
      auto result = on_end();
      if (result) *answer_ = std::move(*result);
      end(result ? grpc::Status::OK : grpc_status(result.error()));
    });
  }
  void OnCancel() override {}  // the pending read fails and ends the call
  void OnDone() override {
    boost::asio::post(io_, [this] { delete this; });
  }

 private:
  void end(grpc::Status status) {
    over_ = true;
    this->Finish(status);
  }
  boost::asio::io_context& io_;
  Answer* answer_;
  In incoming_;
  bool over_ = false;
};

}  // namespace flotilla::daemon::rpc
