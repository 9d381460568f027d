// What other machines say before a link stands: lines of a remote shell, of ssh, of a hub, of a node; a hub's own state file.
// What a job of an AMUSE script sends back, and ldd's words.
// Any bytes: nothing crashes, and what was understood is within its bounds and can be written down again.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "client/amuse/core/bundle_list.hpp"
#include "client/amuse/core/runner_pieces.hpp"
#include "daemon/transport/core/bootstrap.hpp"
#include "daemon/transport/core/connector.hpp"
#include "daemon/transport/core/known_hosts.hpp"
#include "daemon/transport/core/location.hpp"
#include "daemon/transport/core/ssh_words.hpp"
#include "flotilla/message.hpp"
#include "hub/core/node_script.hpp"
#include "hub/core/record.hpp"
#include "hub/hub_start.hpp"
#include "proto/base/ids.hpp"
#include "proto/tls/certificate.hpp"

using namespace flotilla;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

// The front end's shell, line by line.
void bootstrap(const std::string& text) {
  daemon::BootstrapAnswer answer;
  for (std::size_t at = 0; at <= text.size();) {
    const auto end = std::min(text.find('\n', at), text.size());
    daemon::parse_bootstrap_line(answer, "0a", std::string_view(text).substr(at, end - at));
    at = end + 1;
  }
  for (const auto& place : answer.places) require(!place.directory.empty() && place.free_kib >= -1);
  (void)daemon::check_machine(answer, {"x86_64", std::string(64, 'a'), 1, 1}, "hpc1");
  (void)daemon::no_place_error(answer, "hpc1");
  // A path that the other side chose stays one word of a command.
  const auto quoted = daemon::sh_quote(answer.agent);
  require(quoted.size() >= 2 && quoted.front() == '\'' && quoted.back() == '\'');
}

void lines(const std::string& text) {
  (void)daemon::parse_hub_answer(text);
  (void)daemon::judge_ssh_failure(text, "hpc1 (alice@login)", "hpc1");
  (void)daemon::says_forwarding_forbidden(text);
  (void)daemon::parse_ssh_question("", text, "hpc1");
  (void)daemon::parse_ssh_question("confirm", text, "hpc1");
  for (int line : daemon::find_known_host_lines(text, "login.example", 2222)) require(line >= 1);
  (void)daemon::machine_of_elf(text);
  if (const auto location = daemon::parse_location(text)) {
    require(!location->host.empty() && location->port >= 0 && location->port < 65536);
    const auto again = daemon::parse_location(daemon::format_location(*location));
    require(again && *again == *location);
  }
  if (const auto node = hub::parse_node_line(text)) (void)hub::format_address(node->hub_address, 1);
  (void)hub::parse_started(text);
  (void)hub::parse_setup_line(text);
  (void)hub::describe_failure("node1", 1, 0, text);
  require(hub::tail_of(text, 10).size() <= 10);
  if (const auto address = hub::parse_address(text)) {
    require(address->second >= 0 && address->second < 65536);
    require(hub::parse_address(hub::format_address(address->first, address->second)) == address);
  }
  if (hub::check_host(text)) require(!text.empty() && text[0] != '-' && text.find_first_of(" \n'\"$`;") == std::string::npos);
  if (const auto record = hub::parse_record(text)) require(hub::parse_record(hub::format_record(*record)).has_value());
  if (const auto size = hub::parse_hub_start_size(std::string_view(text).substr(0, 4))) require(*size <= hub::hub_start_limit);
  (void)hub::parse_hub_start(text);
  (void)parse_peer(text);
  (void)tls::parse_pilot_uri(text);
}

// Files that a job sends stay in their folder, and their bytes come between their begin and end.
struct Received final : amuse::PieceSink {
  bool in_file = false;
  void on_output(std::string_view) override {}
  void on_value(std::string_view) override {}
  void on_file_begin(const std::string& path, unsigned mode) override {
    require(!in_file && mode <= 0777 && path.front() != '/' && ("/" + path + "/").find("/../") == std::string::npos);
    in_file = true;
  }
  void on_file_bytes(std::string_view) override { require(in_file); }
  void on_file_end() override {
    require(in_file);
    in_file = false;
  }
};

void pieces(const std::string& text) {
  for (const std::size_t step : {std::size_t{1}, text.size() + 1}) {
    Received received;
    amuse::RunnerPieces taken(received);
    try {
      for (std::size_t at = 0; at < text.size(); at += step) taken.take(std::string_view(text).substr(at, step));
    } catch (const MessageError&) {}
  }
  for (const auto& [name, path] : amuse::parse_ldd(text).libraries) require(!name.empty() && path.front() == '/');
  (void)amuse::parse_ldd_of_many(text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  bootstrap(text);
  lines(text);
  pieces(text);
  return 0;
}
