#include "daemon/core/stop_all.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace flotilla::daemon {

void StopAll::add(const std::string& name, const std::string& gateway, bool local, std::int64_t now_ms) {
  Part part;
  part.gateway = gateway;
  part.local = local;
  part.began_ms = now_ms;
  enter(part, local ? Phase::ending_pilots : Phase::reaching, local ? pilots_ms : reach_ms, now_ms);
  parts_.emplace(name, std::move(part));
}

void StopAll::enter(Part& part, Phase phase, std::int64_t limit_ms, std::int64_t now_ms) {
  part.phase = phase;
  part.until_ms = now_ms + limit_ms;
}

bool StopAll::over() const {
  return std::all_of(parts_.begin(), parts_.end(),
                     [](const auto& entry) { return entry.second.phase == Phase::over || entry.second.phase == Phase::left; });
}

bool StopAll::needed_as_gateway(const std::string& name) const {
  return std::any_of(parts_.begin(), parts_.end(), [&](const auto& entry) {
    return entry.second.gateway == name && entry.second.phase != Phase::over && entry.second.phase != Phase::left;
  });
}

StopStep StopAll::step(const std::map<std::string, StopFacts>& all, std::int64_t now_ms) {
  StopStep out;
  for (auto& [name, part] : parts_) {
    const auto found = all.find(name);
    const StopFacts facts = found == all.end() ? StopFacts{} : found->second;
    auto act = [&, &name = name](StopAction action) { out.actions.emplace_back(name, action); };
    auto note = [&, &name = name, &part = part](const std::string& text) {
      part.noted_ms = now_ms;
      out.notes.push_back(name + ": " + text);
    };
    auto leave = [&, &part = part](std::string cause) {
      part.phase = Phase::left;
      part.cause = std::move(cause);
      note("given up: " + part.cause);
    };
    // A link that was lost under way is made again: what was said on it may not have arrived.
    const bool lost = !facts.connected && !(part.phase == Phase::ending_hub && facts.hub_ended);
    if (!part.local && lost && (part.phase == Phase::ending_pilots || part.phase == Phase::ending_hub)) {
      if (now_ms >= part.began_ms + total_ms) {
        leave("its link ended again and again");
        continue;
      }
      enter(part, Phase::reaching, reach_ms, now_ms);
      part.tried_ms = 0;
      part.asked = false;
      note("the link ended; connecting again");
    }
    switch (part.phase) {
      case Phase::reaching:
        if (facts.connected && facts.answers && part.asked) {
          enter(part, Phase::ending_pilots, pilots_ms, now_ms);
          if (facts.pilots) note(fmt::format("ending {} pilot{}", facts.pilots, facts.pilots == 1 ? "" : "s"));
          break;
        }
        if (now_ms >= part.until_ms) {
          leave(fmt::format("not reached within {} s{}", reach_ms / 1000, facts.trouble.empty() ? "" : ": " + facts.trouble));
          break;
        }
        if (facts.connected) {
          if (!std::exchange(part.asked, true)) {
            part.asked_ms = now_ms;
            act(StopAction::ask);
          } else if (now_ms - part.asked_ms >= answer_ms) {
            part.asked = false;
            act(StopAction::drop);
            note("its link is silent; connecting again");
          }
        } else if (!facts.connecting) {
          part.asked = false;
          if (facts.hopeless && part.tried_ms) {
            leave("it cannot be connected: " + facts.trouble);
          } else if (!part.tried_ms || now_ms - part.tried_ms >= retry_ms) {
            part.tried_ms = now_ms;
            act(StopAction::connect);
          }
        } else if (!part.tried_ms) {
          part.tried_ms = now_ms;
        }
        if (part.phase == Phase::reaching && !facts.connected && now_ms - part.noted_ms >= note_ms)
          note(fmt::format("connecting, for {} s more{}", (part.until_ms - now_ms + 999) / 1000,
                           facts.trouble.empty() ? "" : " (" + facts.trouble + ")"));
        break;
      case Phase::ending_pilots:
        if (facts.pilots && now_ms < part.until_ms) break;
        if (part.local) {
          if (!facts.pilots) {
            part.phase = Phase::over;
          } else {
            enter(part, Phase::killed, killed_ms, now_ms);
            act(StopAction::kill);
            note("its pilots have not ended in time and are killed");
          }
          break;
        }
        if (needed_as_gateway(name)) break;
        enter(part, Phase::ending_hub, hub_ms, now_ms);
        act(StopAction::end_hub);
        note("ending its hub");
        break;
      case Phase::killed:
        if (!facts.pilots) part.phase = Phase::over;
        else if (now_ms >= part.until_ms) leave("its pilots were killed, but have not ended");
        break;
      case Phase::ending_hub:
        if (facts.hub_ended) {
          part.phase = Phase::over;
          note("all there has ended");
        } else if (now_ms >= part.until_ms) {
          leave(fmt::format("its hub has not ended within {} s", hub_ms / 1000));
        }
        break;
      case Phase::over:
      case Phase::left: break;
    }
  }
  return out;
}

}  // namespace flotilla::daemon
