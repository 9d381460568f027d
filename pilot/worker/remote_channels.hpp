// The pilot's ends of resumable channels to workers (PROTOCOL.md 5.2, 5.3). On the io thread; the bytes of each channel move on
// a thread of its own.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/thread_pool.hpp>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "flotilla/v1/link.pb.h"
#include "pilot/process/processes.hpp"
#include "pilot/worker/acceptor.hpp"
#include "pilot/worker/hand_over.hpp"
#include "proto/base/ids.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/channel/wire.hpp"
#include "proto/link/link.hpp"
#include "proto/channel/opening.hpp"
#include "proto/tls/stream.hpp"

namespace flotilla::pilot {

class RemoteChannels {
 public:
  struct Upper {
    std::function<void(v1::Frame)> send;
    std::function<std::size_t()> queued_bytes;  // of the link
    link::TlsIdentity identity;                 // empty beside the hub
    std::string server_name;
  };
  RemoteChannels(boost::asio::io_context& io, Upper upper);
  ~RemoteChannels();

  // The hub passes the sockets of connections to it, each with the header that was read off it. Again when it was lost.
  Status listen(const std::filesystem::path& socket);

  // The worker's connection becomes the user's side of channel `attempt.job`. on_client_gone: the channel is over from
  // the other end, or lost for this cause; it does not run after end().
  void add(Attempt attempt, unique_fd worker, std::function<void(const std::string& cause)> on_client_gone);
  // The worker was reaped: what it wrote is still delivered, then the daemon is told why.
  void end(Attempt attempt, const v1::ExitReason& reason);
  // Undelivered bytes are kept for a while longer.
  void forget(Attempt attempt);
  std::optional<ChannelCounts> counts(Attempt attempt) const;

  // From the link.
  void on_expect(const v1::ExpectChannel& expect);  // with `dial`
  void on_ack(const v1::ChannelAck& ack);
  void on_data(const v1::ChannelData& data);
  void on_end(const v1::ChannelEnd& end);
  void on_link_up();
  void on_link_down();

 private:
  struct Channel;
  struct FrameWire;
  struct Dial;

  void wait_for_message(const std::shared_ptr<boost::asio::posix::stream_descriptor>& connection);
  // A wire whose header was read; refused where there is no such channel (any more).
  void attach(const channel::Opening& opening, std::unique_ptr<channel::Wire> wire);
  void send_end(Channel& channel);
  void send_refusal(const v1::ExpectChannel& expect, const Error& error);
  void drop(std::uint64_t number);
  void read_frames(const std::shared_ptr<FrameWire>& frames);
  void write_frames(const std::shared_ptr<FrameWire>& frames);

  boost::asio::io_context& io_;
  Upper upper_;
  Acceptor acceptor_;
  tls::ContextPtr context_;
  std::map<std::uint64_t, std::shared_ptr<Channel>> channels_;  // by job
  std::map<std::uint64_t, std::shared_ptr<FrameWire>> frames_;  // where forwarding is forbidden
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::map<std::uint64_t, std::shared_ptr<Dial>> dialling_;  // by job: the newest
  std::optional<boost::asio::thread_pool> dial_threads_;
};

}  // namespace flotilla::pilot
