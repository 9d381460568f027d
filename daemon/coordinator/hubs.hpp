// The connections to hubs: made when wanted, made again when lost, and the frames on them.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "daemon/api/stream.hpp"
#include "daemon/coordinator/coordinator.hpp"
#include "daemon/coordinator/hub_notes.hpp"
#include "daemon/coordinator/network_watch.hpp"
#include "daemon/transport/channel_table.hpp"
#include "daemon/transport/hub_connection.hpp"

namespace flotilla::daemon {

class Hubs {
 public:
  explicit Hubs(Coordinator& coordinator);
  ~Hubs();

  // Begins to connect, unless it is connected or on the way. A resource that needs its user is only tried when `by_user`.
  void want(const std::string& resource, bool by_user);
  bool connected(const std::string& resource) const;
  void send(const std::string& resource, v1::Frame frame);
  bool has_room(const std::string& resource) const;  // for bulk
  // Shows how the connecting goes, and its outcome.
  void follow(const std::string& resource, OutStreamPtr<v1::Progress> stream);
  void disconnect(const std::string& resource);    // the hub and its pilots live on
  void forget(const std::string& resource);        // the resource is gone, or elsewhere now: the hub ends
  void go_other_way(const std::string& resource);  // the same hub; connected anew, where it was connected
  // For the end of everything (core/stop_all.hpp): how it stands with one, and what is then done.
  struct Standing {
    bool connected = false, connecting = false, hopeless = false, answers = false, said_goodbye = false;
    std::string trouble;
  };
  Standing standing(const std::string& resource) const;
  void ask(const std::string& resource);        // it answers, or its link is dead
  void reconnect(const std::string& resource);  // the link is dead, whatever it looks like
  void end(const std::string& resource);        // EndHub, with its pilots; it says goodbye
  // Was a hub there when this or the last daemon last heard of it, and may it still be?
  bool may_be_there(const std::string& resource) const;
  void note_end_of_daemon();  // hubs without pilots end themselves some time after
  void test(const std::string& resource, OutStreamPtr<v1::TestStep> stream);

  ChannelTable& channels() { return *channels_; }
  // Opens the connection of a channel: announces the ticket, then asks the transport.
  void open_channel(JobId job, NodeId node);
  void reopen_channel(std::uint64_t channel);  // it broke: at once, but not in a tight circle
  void on_channel_refused(const v1::ChannelRefused& refused);
  void close_channel(JobId job);
  void retire_channel(JobId job);  // its worker has ended: closed when its last bytes were read
  std::vector<JobId> open_channels() const;

 private:
  struct Hub {
    std::unique_ptr<HubConnection> connection;
    std::unique_ptr<boost::asio::steady_timer> retry;
    int failures = 0;
    bool connected = false;
    bool ending = false;  // told to end: not connected again,
    bool left = false;    // except for a resource that has its name by now
    bool answers = false, said_goodbye = false, hopeless = false;
    std::string trouble;  // of the last end of the connection
    std::string last_message;
    std::vector<OutStreamPtr<v1::Progress>> followers;
  };
  struct OpenChannel {
    std::string resource;
    NodeId node;
    std::uint32_t epoch = 0;
    std::chrono::steady_clock::time_point opened;
    int soon_broken = 0;  // in a row
    std::unique_ptr<boost::asio::steady_timer> again;
  };

  void connect(const std::string& resource);
  // Ends the connection and all trying; who follows it goes on to wait.
  void let_go(const std::string& resource, Hub& hub, const std::string& cause);
  void on_state(const std::string& resource, v1::HubState state, const std::string& message, double fraction);
  void on_connected(const std::string& resource, const v1::Hello& hello);
  void ask_for_missing(const std::string& resource, const v1::HubHello& hub);
  void on_frame(const std::string& resource, v1::Frame frame);
  void on_hub_lost(const std::string& resource, const Error& error);
  void on_ended(const std::string& resource, const Error& error);
  // Connections that cannot go on are ended now, and those that wait for their next try are made now.
  void on_network_change();
  bool needed(const std::string& resource) const;
  HubConnectionConfig config_for(const v1::ResourceSpec& spec);
  HubConnectionServices services_for(const v1::ResourceSpec& spec);
  void tell(Hub& hub, const std::string& message, double fraction);
  void settle(Hub& hub, const Status& status);

  Coordinator& coordinator_;
  HubNotes notes_;
  std::unique_ptr<ChannelTable> channels_;
  std::map<std::string, Hub> hubs_;
  std::map<std::uint64_t, OpenChannel> open_;
  std::map<std::uint64_t, std::unique_ptr<ResourceTest>> tests_;
  std::uint64_t last_test_ = 0;
  NetworkWatch network_;
};

}  // namespace flotilla::daemon
