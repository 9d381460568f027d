// `daemon stop --all`: for each resource, all at the same time: reach its hub, end its pilots, end the hub. What cannot be reached
// in a bounded time is left, and named. Pure: facts and a `now` come in, what is to be done goes out.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace flotilla::daemon {

// What stands about one resource at this moment.
struct StopFacts {
  bool connected = false;   // there is a link to its hub
  bool answers = false;     // ... and something came on it since the last `ask`: it is not a dead one that nobody noticed
  bool connecting = false;  // on the way
  bool hopeless = false;    // it could not be connected, and trying again would not help
  bool hub_ended = false;   // the hub said goodbye after `end_hub`
  std::string trouble;      // why it is not connected
  std::size_t pilots = 0;   // that have not ended
};

enum class StopAction {
  ask,      // send something that the hub answers
  connect,  // begin to connect
  drop,     // give up the connection, it is dead
  end_hub,
  kill,  // this machine: end the processes of its pilots the hard way
};

struct StopStep {
  std::vector<std::pair<std::string, StopAction>> actions;
  std::vector<std::string> notes;  // for the user
};

class StopAll {
 public:
  // Reaching includes the agent's start there, and the attempts that fail.
  static constexpr std::int64_t reach_ms = 20'000;
  static constexpr std::int64_t answer_ms = 3'000;  // a link that says nothing for so long is made anew
  static constexpr std::int64_t retry_ms = 500;     // between two attempts
  // A process that ignores TERM gets its grace (5 s) before KILL; a pilot behind a new hub has 15 s to come back before.
  static constexpr std::int64_t pilots_ms = 25'000;
  static constexpr std::int64_t killed_ms = 5'000;  // after the hard way
  static constexpr std::int64_t hub_ms = 12'000;    // it kills what is left after 8 s, and ends after 2 more
  static constexpr std::int64_t total_ms = 60'000;  // a link that ends under way is not made anew after this
  static constexpr std::int64_t note_ms = 1'000;

  enum class Phase { reaching, ending_pilots, killed, ending_hub, over, left };
  struct Part {
    Phase phase = Phase::reaching;
    std::string gateway;  // it is reached through that one's hub, which therefore ends later
    bool local = false;   // this machine: there is no hub
    std::string cause;    // of `left`
    std::int64_t began_ms = 0, until_ms = 0, tried_ms = 0, asked_ms = 0, noted_ms = 0;
    bool asked = false;
  };

  void add(const std::string& name, const std::string& gateway, bool local, std::int64_t now_ms);
  StopStep step(const std::map<std::string, StopFacts>& facts, std::int64_t now_ms);
  bool over() const;
  const std::map<std::string, Part>& parts() const { return parts_; }

 private:
  bool needed_as_gateway(const std::string& name) const;
  void enter(Part& part, Phase phase, std::int64_t limit_ms, std::int64_t now_ms);

  std::map<std::string, Part> parts_;
};

}  // namespace flotilla::daemon
