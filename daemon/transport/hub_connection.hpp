// One resource's hub, seen from the daemon: one authenticated ssh connection, the agent brought there, the hub started or
// taken up again, its link, and the raw channels beside it. All methods are called, and all events run, on the
// thread of the io_context; the ssh session has a thread of its own behind this.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flotilla/v1/client.pb.h"
#include "flotilla/v1/link.pb.h"
#include "flotilla/v1/types.pb.h"
#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {

// Asks the user. Implemented by the API layer; with nobody there to answer it fails at once with a hint.
class Prompter {
 public:
  virtual ~Prompter() = default;
  using Answer = std::function<void(Result<std::string>)>;
  // `prompt.id` is filled in by the prompter. Returns a token for withdraw().
  virtual std::uint64_t ask(v1::Prompt prompt, Answer answer) = 0;
  virtual void withdraw(std::uint64_t token) = 0;
  virtual bool accepts_new_host_keys(const std::string& resource) const = 0;
};

struct HubConnectionConfig {
  v1::ResourceSpec spec;            // driver ssh
  std::string instance;             // 16 bytes
  std::filesystem::path agent;      // the local flotilla-agent binary
  std::filesystem::path state_dir;  // for caches (compressed agent) of this daemon
  // What the hub needs to admit pilots: made by proto/tls from the instance's CA.
  std::string hub_id;
  std::string tls_ca, tls_chain, tls_key;       // PEM; the intermediate CA of this hub
  std::int64_t cutoff_ms = 24LL * 3600 * 1000;  // the hub's; as the configuration says
  v1::Traces traces;                            // the same
};

struct HubConnectionEvents {
  // Every step, with a sentence for the user; fraction is of the upload, negative = not known.
  std::function<void(v1::HubState, std::string message, double fraction)> on_state;
  // The hub's Hello was accepted. After this frames flow.
  std::function<void(const v1::Hello&)> on_connected;
  std::function<void(v1::Frame)> on_frame;
  // has_room() was false and is true again.
  std::function<void()> on_room;
  // The hub ended, the login did not: another hub is started in it. on_connected or on_ended follows. Without this event the
  // connection ends with its hub.
  std::function<void(const Error&)> on_hub_lost;
  // The connection ended, or could not be made. `retry` in the error says whether trying again may help.
  std::function<void(const Error&)> on_ended;
};

// One raw connection of a channel through the hub. Events come on the io thread.
struct ChannelRequest {
  std::uint64_t channel = 0;
  std::uint32_t epoch = 0;
  std::string ticket;  // 32 bytes, already announced to the hub by ExpectChannel
  std::string peer;
};

class HubConnection {
 public:
  virtual ~HubConnection() = default;  // ends the connection; no event runs after it
  virtual void start() = 0;
  virtual void send(v1::Frame frame) = 0;
  virtual bool connected() const = 0;
  // For bulk: little waits to go out.
  virtual bool has_room() const = 0;
  // This machine's network may have changed: ends the connection at once when the address that it used is gone, and when
  // the hub does not answer within `patience`.
  virtual void probe(std::chrono::milliseconds patience) = 0;

  // Joins the daemon's end of a resumable channel (proto/channel) with a new connection to the hub's channel socket.
  // `user` is the client's end of the stream on the first call for this channel, none later: the end is kept by
  // channel number across reconnects of this object's successor (see ChannelTable).
  virtual void open_channel(const ChannelRequest& request) = 0;

  // A byte stream to host:port as the front end reaches it: for resources whose gateway this is.
  virtual void open_tcp(const std::string& host, int port, std::function<void(Result<unique_fd>)> done) = 0;
};

class ChannelTable;  // the daemon's ends of resumable channels; they outlive connections. daemon/transport/channel_table.hpp

struct HubConnectionServices {
  boost::asio::io_context& io;
  Prompter& prompter;
  ChannelTable& channels;
  // The stream that this connection goes through, where the resource has a gateway.
  std::function<void(const std::string& host, int port, std::function<void(Result<unique_fd>)>)> dial_gateway;
};

// spec.transport chooses: "libssh" (or empty) or "openssh".
std::unique_ptr<HubConnection> make_hub_connection(HubConnectionServices services, HubConnectionConfig config, HubConnectionEvents events);

// `flotilla resource test`: tries each step by itself, nothing stays. Steps are reported as they begin and end.
// The returned object is kept until on_done; destroying it stops the test.
class ResourceTest {
 public:
  virtual ~ResourceTest() = default;
};
std::unique_ptr<ResourceTest> start_resource_test(HubConnectionServices services, HubConnectionConfig config,
                                                  std::function<void(v1::TestStep)> on_step, std::function<void()> on_done);

}  // namespace flotilla::daemon
