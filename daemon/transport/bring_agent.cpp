#include "daemon/transport/bring_agent.hpp"

#include <cmath>

#include "daemon/transport/agent_package.hpp"
#include "proto/base/clock.hpp"
#include "proto/base/log.hpp"
#include "proto/base/random.hpp"

namespace flotilla::daemon {
namespace {

constexpr auto shell_patience = std::chrono::seconds(30);   // login shells that start slowly: home on a sleepy NFS server, module systems
constexpr auto place_patience = std::chrono::seconds(60);   // each answer of the script
constexpr auto upload_patience = std::chrono::minutes(30);  // 5 MB at modem speed
constexpr auto hub_patience = std::chrono::seconds(30);
constexpr double skew_worth_a_word_s = 10;  // certificates are dated back a day; logs are hard to compare

std::string said_instead(const BootstrapAnswer& answer, const RemoteCommand& shell) {
  std::string text;
  for (const auto& line : answer.noise) text += (text.empty() ? "" : " / ") + line;
  const auto errors = shell.stderr_tail();
  if (!errors.empty()) text += (text.empty() ? "" : " / ") + errors;
  return text.empty() ? "" : "; it said: " + text;
}

// One conversation, from the script to the running connector or the reason why not.
class Conversation {
 public:
  Conversation(Session& session, Observer& observer, const BringRequest& request, const AgentDescription& agent)
      : session_(session), observer_(observer), request_(request), agent_(agent) {}

  Result<Brought> hold() {
    observer_.begin(Step::shell, "starting a shell");
    auto shell = session_.run("exec /bin/sh", after(shell_patience));
    if (!shell) return fail(shell.error());
    shell_ = std::move(*shell);

    BootstrapRequest script;
    script.agent = agent_;
    script.nonce = "flotilla-" + random_hex(8);
    script.scratch_dir = request_.scratch_dir;
    script.instance = request_.instance;
    nonce_ = script.nonce;
    asked_ms_ = wall_ms();
    if (auto sent = shell_->write(build_bootstrap_script(script), after(shell_patience), {}); !sent) return fail(no_shell(sent.error()));

    // What the machine is like.
    if (auto got = read_until([&] { return answer_.greeted; }, shell_patience); !got) return fail(no_shell(got.error()));
    observer_.done(Step::shell, "a POSIX shell answers");
    observer_.begin(Step::scratch, "looking for a place for the agent");
    if (auto got = read_until([&] { return answer_.ended || answer_.ready_for_unpacker; }, place_patience); !got) return fail(got.error());
    if (auto judged = judge(); !judged) return fail(judged.error());

    Brought brought;
    const auto unfit = answer_.refused.size();
    // One place after the other, in this shell: the system's ssh ends with its first command.
    while (answer_.ready_for_unpacker) {
      brought.uploaded = true;
      if (auto sent = upload(); !sent) return fail(sent.error());
      if (answer_.failure.empty()) break;
      spdlog::info("{}: cannot use {}: {}", request_.resource, answer_.upload_to, answer_.failure);
      if (auto sent = shell_->write(build_next_place_line(nonce_), after(upload_patience), {}); !sent) return fail(sent.error());
      if (auto got = read_until([&] { return answer_.ended || answer_.ready_for_unpacker; }, place_patience); !got)
        return fail(got.error());
    }
    if (answer_.agent.empty()) return fail(no_place_error(answer_, request_.resource));
    const auto is = (brought.uploaded ? "sent to " : "is there: ") + answer_.agent;
    const auto refused = refused_since(unfit);
    if (refused.empty()) observer_.done(Step::agent, is);
    else observer_.warn(Step::agent, is + "; it could not be sent to " + refused, "free some space there, or choose another scratch_dir");
    brought.agent = answer_.agent;
    brought.connector = std::move(shell_);
    return brought;
  }

 private:
  std::string refused_since(std::size_t begin) const {
    std::string text;
    for (auto i = begin; i < answer_.refused.size(); ++i)
      text += (text.empty() ? "" : ", ") + answer_.refused[i].directory + ": " + answer_.refused[i].reason;
    return text;
  }
  template <class Condition>
  Status read_until(Condition&& condition, std::chrono::milliseconds patience) {
    while (!condition()) {
      auto line = shell_->read_line(after(patience));
      if (!line) return fail(line.error());
      const bool had_time = answer_.time_s != 0;
      parse_bootstrap_line(answer_, nonce_, *line);
      if (!had_time && answer_.time_s != 0)
        skew_s_ = static_cast<double>(answer_.time_s) + 0.5 - static_cast<double>(asked_ms_ + wall_ms()) / 2000.0;
    }
    return {};
  }

  Error no_shell(Error error) {
    if (error.code == Code::canceled) return error;
    error.message = "no POSIX shell answers on resource " + request_.resource + ": " + error.message + said_instead(answer_, *shell_);
    error.hint = "the account needs a login shell that can run /bin/sh, without a forced command; try: ssh HOST /bin/sh -c true";
    return error;
  }

  Status judge() {
    const auto machine = check_machine(answer_, agent_, request_.resource);
    if (machine) {
      if (answer_.places.empty()) return fail(no_place_error(answer_, request_.resource));
      if (request_.trial)
        if (auto scratch = check_scratch(answer_, request_.scratch_dir, request_.resource); !scratch) return scratch;
      std::string text;
      for (const auto& each : answer_.places)
        text += (text.empty() ? "" : ", ") + each.directory +
                (each.free_kib < 0 ? "" : " (" + std::to_string(each.free_kib >> 10) + " MiB free)");
      const auto refused = refused_since(0);
      if (refused.empty()) observer_.done(Step::scratch, text);
      else observer_.warn(Step::scratch, text + "; not usable: " + refused, "see scratch_dir of the resource");
    } else {
      observer_.skip(Step::scratch, "not looked for");
    }
    observer_.begin(Step::architecture, "comparing processors");
    if (!machine) return machine;
    observer_.done(Step::architecture, answer_.system + " on " + answer_.machine);
    observer_.begin(Step::time_skew, "comparing clocks");
    char text[96];
    std::snprintf(text, sizeof text, "the clock there is %.0f s %s this one", std::fabs(skew_s_), skew_s_ < 0 ? "behind" : "ahead of");
    if (answer_.time_s == 0) observer_.warn(Step::time_skew, "the clock there cannot be read", "");
    else if (std::fabs(skew_s_) > skew_worth_a_word_s)
      observer_.warn(Step::time_skew, text, "let the machine that is wrong keep its time by NTP");
    else observer_.done(Step::time_skew, "less than " + std::to_string(static_cast<int>(skew_worth_a_word_s)) + " s");
    observer_.begin(Step::agent, "looking for the agent");
    return {};
  }

  // Also ends well when the place has refused it: answer_.failure says why.
  Status upload() {
    const auto what = "sending the agent to " + answer_.upload_to;
    observer_.begin(Step::agent, what, 0);
    auto packed = packed_agent(request_.agent, agent_, request_.cache_dir);
    if (!packed) return fail(packed.error());
    const auto total = static_cast<double>(packed->size() + unpacker().size());
    double told = 0;
    const auto progress = [&](std::size_t before) {
      return [&, before](std::size_t done) {
        const auto fraction = static_cast<double>(before + done) / total;
        if (fraction - told >= 0.01) {  // more would be noise
          told = fraction;
          observer_.begin(Step::agent, what, fraction);
        }
        return !shell_->has_line();  // it says something before it has all: a failure
      };
    };
    const auto head = std::to_string(packed->size()) + "\n" + std::string(unpacker());
    if (auto sent = shell_->write(head, after(upload_patience), progress(0)); !sent && !shell_->has_line()) return sent;
    if (auto got = read_until([&] { return answer_.ready_for_agent || answer_.ended || !answer_.failure.empty(); }, upload_patience); !got)
      return got;
    if (answer_.ready_for_agent && answer_.failure.empty()) {
      if (auto sent = shell_->write(*packed, after(upload_patience), progress(head.size())); !sent && !shell_->has_line()) return sent;
      if (auto got = read_until([&] { return answer_.ended || !answer_.failure.empty(); }, upload_patience); !got) return got;
    }
    return {};
  }

  Session& session_;
  Observer& observer_;
  const BringRequest& request_;
  const AgentDescription& agent_;
  std::unique_ptr<RemoteCommand> shell_;
  BootstrapAnswer answer_;
  std::string nonce_;
  std::int64_t asked_ms_ = 0;
  double skew_s_ = 0;
};

}  // namespace

Result<Brought> bring_agent(Session& session, ThreadControl&, Observer& observer, const BringRequest& request) {
  auto agent = describe_agent(request.agent);
  if (!agent) return fail(agent.error());
  return Conversation(session, observer, request, *agent).hold();
}

Result<HubAnswer> start_hub(RemoteCommand& connector, Observer& observer, const v1::HubStart& start) {
  observer.begin(Step::hub, "starting the hub");
  const auto explain = [&](Error error) {
    if (error.code != Code::canceled) {
      error.message = "the hub of resource " + start.resource() + " does not start: " + error.message;
      const auto said = connector.stderr_tail();
      if (!said.empty() && error.message.find(said) == std::string::npos) error.message += "; it said: " + said;
    }
    return error;
  };
  if (auto sent = connector.write(format_hub_start(start), after(hub_patience), {}); !sent) return fail(explain(sent.error()));
  auto line = connector.read_line(after(hub_patience));
  if (!line) return fail(explain(line.error()));
  auto answer = parse_hub_answer(*line);
  if (!answer) return fail(explain(answer.error()));
  return answer;
}

}  // namespace flotilla::daemon
