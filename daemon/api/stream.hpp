// Answers that take time, without gRPC's headers: what the daemon is handed for a call of a client.
// Everything is called on the daemon's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "proto/base/result.hpp"

namespace flotilla::daemon {

template <class T>
using Reply = std::function<void(Result<T>)>;

// A stream of messages to one client.
template <class Out>
class OutStream {
 public:
  virtual ~OutStream() = default;
  virtual void send(Out message) = 0;
  virtual void finish(Status status) = 0;
  virtual std::size_t queued_bytes() const = 0;
  // The client is gone (or canceled the call). Not called after finish().
  std::function<void()> on_gone;
  // The queue has run empty after having been over low_water.
  std::function<void()> on_drained;
};
template <class Out>
using OutStreamPtr = std::shared_ptr<OutStream<Out>>;

// And one back.
template <class In, class Out>
class TwoWayStream : public OutStream<Out> {
 public:
  std::function<void(In)> on_message;
  std::function<void()> on_half_close;  // the client sends no more
  // Nothing more is read until resume(); gRPC's flow control slows the client.
  virtual void pause() = 0;
  virtual void resume() = 0;
};
template <class In, class Out>
using TwoWayStreamPtr = std::shared_ptr<TwoWayStream<In, Out>>;

// A call that may be canceled by its client while it waits.
class CallContext {
 public:
  std::function<void()> on_canceled;
};
using CallContextPtr = std::shared_ptr<CallContext>;

}  // namespace flotilla::daemon
