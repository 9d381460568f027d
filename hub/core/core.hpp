// What a hub decides: who is known, what is forwarded where, which pilots are started, given up, ended, and when the hub
// itself ends. Pure: events and the present moment come in, an Outbox goes out.
//
// Life of a pilot's node, as the hub sees it:
//   starting -> started -> linked <-> lost -> left          (lost: its link ended; left: it did not come back, or is known dead)
//       \-> failed                                          (its start failed, on every host that could be tried)
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "flotilla/v1/link.pb.h"
#include "proto/base/ids.hpp"
#include "proto/base/result.hpp"

namespace flotilla::hub {

// Names a link; given by the shell, never used again. 0 = none.
using Tag = std::uint64_t;
// Milliseconds of a clock that counts also while the machine sleeps.
using Moment = std::int64_t;

// A pilot whose link ends dials again at once (PROTOCOL.md 2.4). A silent one is noticed after 3.5 s (keepalive); with this its
// loss is told within 5 s.
constexpr Moment relink_grace_ms = 1'300;
// After the hub was started again, or has ended the links itself: pilots dial at least every 2 s,
constexpr Moment rejoin_grace_ms = 3'000;
// and each one more that comes back at the same time (a handshake) needs this.
constexpr Moment rejoin_each_ms = 10;
// Who connects says who it is, or goes.
constexpr Moment hello_grace_ms = 10'000;
// A hub that nobody needs: long enough for a laptop that was carried to another room.
constexpr Moment idle_hub_ms = 10 * 60'000;
// Without other word: a day (as pilots).
constexpr Moment default_cutoff_ms = 24 * 3'600'000;
// How long pilots have to end their jobs when the hub ends, before they are killed; and what is left for the killing.
constexpr std::int64_t end_job_grace_ms = 5'000;
constexpr Moment end_pilots_ms = 8'000;
constexpr Moment end_killed_ms = 2'000;
// Ended launches that are remembered, to be told again after a reconnect.
constexpr std::size_t remembered_launches = 64;

struct Identity {
  std::string instance;  // 16 bytes
  std::string hub_id;
  std::string build;
  std::string host;
  std::string boot_id;
  std::uint32_t pid = 0;
  std::string channel_socket;
};

enum class Stage { starting, started, linked, lost, failed, left };
const char* name_of(Stage stage);
std::optional<Stage> parse_stage(const std::string& name);

struct Node {
  Stage stage = Stage::starting;
  std::string host;  // as the resource names it; the hub's own name for a pilot beside it
  bool beside = false;
  std::string secret;  // beside: what it shows
  std::uint32_t guard_pid = 0, pid = 0;
  bool process_dead = false;  // with `left`
  std::string message;        // why it failed or left, one sentence
  std::string stderr_tail;
  std::int32_t exit_code = 0;
  std::string goodbye;  // the reason it gave, if it said goodbye
  bool said_goodbye = false;
  // Not kept over a restart of the hub:
  bool told = false;  // the daemon knows how it ended
  Tag link = 0;
  Moment lost_since = 0;
  Moment grace_ms = 0;          // from then on
  std::set<std::string> tried;  // hosts that could not be reached
  std::string troubles;         // why not
};

bool alive(const Node& node);  // not known to be gone

struct Launch {
  v1::PilotSettings settings;
  std::uint32_t node_count = 1;
  std::vector<std::string> hosts;  // empty = beside the hub
  bool stopping = false;
  std::map<std::uint32_t, Node> nodes;
  v1::LaunchPilot order;  // for starts; empty after a restart of the hub
};

// What a pilot's link proves by itself.
struct PilotProof {
  bool beside = false;  // a unix socket of this user; else the certificate's:
  PilotId pilot;
};

struct StartResult {
  bool ok = false;
  std::uint32_t guard_pid = 0, pid = 0;
  bool unreachable = false;  // the host, not the pilot, is the reason: another host may do
  std::string message;
  std::string stderr_tail;
  std::int32_t exit_code = 0;
};

struct StartOrder {
  NodeId node;
  std::string host;    // empty = beside the hub
  std::string secret;  // beside
};
struct ChannelOrder {
  v1::ExpectChannel expect;
  NodeId node;
  bool beside = false;
};

// To be done in this order: save, then frames, then the rest.
struct Outbox {
  bool save = false;  // what snapshot() gives has changed
  std::vector<std::pair<Tag, v1::Frame>> frames;
  std::vector<Tag> close;  // after what was sent
  std::vector<Tag> abort;  // at once
  std::vector<StartOrder> starts;
  std::vector<NodeId> cancel_starts;
  std::vector<NodeId> kill;  // pilots beside the hub
  std::vector<ChannelOrder> channels;
  std::vector<v1::Frame> requests;  // logs: for the shell to answer
  std::vector<std::string> notes;   // for the log
  bool finished = false;            // the hub ends; what was sent goes out first
};

class Core {
 public:
  // `make_secret`: 32 random bytes in hex.
  Core(Identity identity, std::string (*make_secret)());

  // From a state file, before anything else. Nodes that were starting, started or linked count as lost from now on.
  void restore(std::map<std::uint64_t, Launch> launches, std::set<std::uint64_t> ended, Moment now);
  // A connector has brought a link to the daemon; the newest counts.
  void on_daemon_link(Tag link, const std::string& token, Moment cutoff_ms, Moment now, Outbox& out);
  void on_daemon_frame(Tag link, v1::Frame frame, Moment now, Outbox& out);
  void on_daemon_closed(Tag link, Moment now, Outbox& out);

  void on_pilot_link(Tag link, const PilotProof& proof, Moment now, Outbox& out);
  void on_pilot_frame(Tag link, v1::Frame frame, Moment now, Outbox& out);
  void on_pilot_closed(Tag link, const std::string& cause, Moment now, Outbox& out);

  void on_start_progress(NodeId node, const std::string& message, Outbox& out);
  void on_start_result(NodeId node, const StartResult& result, Moment now, Outbox& out);
  // The process of a pilot beside the hub is gone.
  void on_process_ended(NodeId node, Moment now, Outbox& out);

  void on_tick(Moment now, Outbox& out);
  // When on_tick has something to do; nullopt = never.
  std::optional<Moment> next_tick() const;

  // Where frames for this node go now; 0 = it is not linked.
  Tag link_of(NodeId node) const;
  bool serves(std::uint64_t pilot) const;  // known and not ended
  bool has_pilots() const;                 // started or starting, not known to be gone
  bool daemon_linked() const { return daemon_ != 0; }
  bool ending() const { return ending_; }
  // There are pilots of which the daemon does not know what became of them: the next hub here will tell.
  bool untold() const;
  Tag daemon_link() const { return daemon_; }
  void set_address(std::string address) { address_ = std::move(address); }
  const std::map<std::uint64_t, Launch>& launches() const { return launches_; }
  const std::set<std::uint64_t>& ended_pilots() const { return ended_; }

  const Node* node(NodeId id) const;

 private:
  struct PilotLink {
    PilotProof proof;
    NodeId node;  // {0,0} before its hello
    Moment since = 0;
    bool awaiting_hello = true;
    bool joined_up = false;  // the present daemon link has its inventory: frames go up
  };

  Node* find(NodeId id);
  void to_daemon(v1::Frame frame, Outbox& out);
  void report(NodeId id, Node& node, Outbox& out);
  void tell_left(NodeId id, Node& node, Outbox& out);
  void launch(const v1::LaunchPilot& order, Moment now, Outbox& out);
  void stop_launch(const v1::StopLaunch& order, Moment now, Outbox& out);
  void end_node(NodeId id, Node& node, const std::string& reason, std::int64_t grace_ms, Outbox& out, bool cut_off = false);
  void answer_unknown(const std::string& peer, const Node* node, Outbox& out);  // `node` may be null
  void end_hub(const std::string& why, Moment now, Outbox& out);
  void end_all_pilots(const std::string& reason, Outbox& out);
  void on_hello(Tag link, PilotLink& at, v1::Hello hello, Moment now, Outbox& out);
  Status check_hello(const PilotLink& at, const v1::Hello& hello) const;
  void leave(NodeId id, Node& node, std::string message, bool process_dead, Outbox& out);
  std::string next_host(const Launch& launch, const Node& node) const;
  void settle(std::uint64_t pilot, Outbox& out);
  void finish_if_done(Moment now, Outbox& out);
  void note_need(Moment now);
  Moment crowd_ms() const;
  Moment cutoff_of(const Launch& launch) const;
  Moment cutoff_of_hub() const;
  static void lose(Node& node, Moment grace_ms, std::string message, Moment now);

  Identity identity_;
  std::string (*make_secret_)();
  std::string address_;
  std::map<std::uint64_t, Launch> launches_;
  std::set<std::uint64_t> ended_;  // pilots of which nothing is left
  std::map<Tag, PilotLink> links_;
  std::vector<ChannelOrder> waiting_channels_;  // for nodes whose link is being made again
  Tag daemon_ = 0;
  bool welcomed_ = false;
  Moment cutoff_ms_ = default_cutoff_ms;
  Moment daemon_gone_since_ = 0;
  Moment unneeded_since_ = 0;  // 0 = needed
  bool cut_off_ = false;
  bool ending_ = false, finished_ = false, killed_ = false;
  Moment ending_since_ = 0;
};

}  // namespace flotilla::hub
