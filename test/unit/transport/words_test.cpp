#include <catch2/catch.hpp>

#include "daemon/transport/core/connector.hpp"
#include "daemon/transport/core/known_hosts.hpp"
#include "daemon/transport/core/location.hpp"
#include "daemon/transport/core/ssh_words.hpp"

using namespace flotilla;
using namespace flotilla::daemon;

TEST_CASE("locations are read as people write them, and written back the same") {
  const std::pair<const char*, Location> good[] = {
      {"host", {"", "host", 0}},
      {"alice@host.example", {"alice", "host.example", 0}},
      {"alice@host:2222", {"alice", "host", 2222}},
      {"[2001:db8::1]:22", {"", "2001:db8::1", 22}},
      {"bob@[::1]", {"bob", "::1", 0}},
      {"name@realm@host", {"name@realm", "host", 0}},
  };
  for (const auto& [text, wanted] : good) {
    INFO(text);
    const auto got = parse_location(text);
    REQUIRE(got);
    CHECK(*got == wanted);
    CHECK(format_location(*got) == text);
  }
  CHECK(parse_location("::1")->host == "::1");
}

TEST_CASE("a wrong location is refused with the reason") {
  const std::pair<const char*, const char*> bad[] = {
      {"", "the host is missing"},
      {"alice@", "the host is missing"},
      {"@host", "the user is missing"},
      {"host:0", "is no port"},
      {"host:65536", "is no port"},
      {"host:22x", "is no port"},
      {"host:", "is no port"},
      {"[::1", "']' is missing"},
      {"[::1]22", "only ':port'"},
      {"-oProxyCommand=x", "begins with '-'"},
      {"-x@host", "begins with '-'"},
      {"a b", "a character that no name has"},
      {"$(reboot)", "a character that no name has"},
  };
  for (const auto& [text, reason] : bad) {
    INFO(text);
    const auto got = parse_location(text);
    REQUIRE_FALSE(got);
    CHECK(got.error().code == Code::invalid_argument);
    CHECK_THAT(got.error().message, Catch::Contains(reason));
  }
}

TEST_CASE("entries of known_hosts are found with their lines") {
  // The hashed names were made by ssh-keygen -H of "hpc1.example" and "[hpc1.example]:2222".
  const std::string file =
      "# comment\n"
      "hpc1.example,10.0.0.1 ssh-ed25519 AAAA\n"
      "\n"
      "[hpc1.example]:2222 ssh-ed25519 AAAA\n"
      "*.cluster,!bad.cluster ssh-rsa AAAA\n"
      "@revoked hpc1.example ssh-rsa AAAA\n"
      "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ssh-rsa AAAA\n";
  CHECK(find_known_host_lines(file, "HPC1.example", 22) == std::vector<int>{2, 6});
  CHECK(find_known_host_lines(file, "hpc1.example", 2222) == std::vector<int>{4});
  CHECK(find_known_host_lines(file, "node7.cluster", 22) == std::vector<int>{5});
  CHECK(find_known_host_lines(file, "bad.cluster", 22).empty());
  // OpenSSH's own example of a hashed name (sshd(8)): 192.168.1.61
  CHECK(find_known_host_lines(file, "192.168.1.61", 22) == std::vector<int>{7});
  CHECK(find_known_host_lines("", "x", 22).empty());
}

TEST_CASE("what the connector answers is understood or named") {
  const auto good = parse_hub_answer("FLOTILLA-HUB 1 node1 /tmp/fl-1000-ab/hub channels.sock");
  REQUIRE(good);
  CHECK(good->host == "node1");
  CHECK(good->channel_socket == "/tmp/fl-1000-ab/hub channels.sock");

  const auto refused = parse_hub_answer(R"(ERROR {"code":"PERMISSION_DENIED","message":"no room","hint":"make some","retry":true})");
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Code::permission_denied);
  CHECK(refused.error().message == "no room");
  CHECK(refused.error().hint == "make some");
  CHECK(refused.error().retry == Retry::yes);

  for (const char* line : {"", "FLOTILLA-HUB 2 a b", "FLOTILLA-HUB 1 a", "FLOTILLA-HUB 1 a ", "ERROR nonsense", "bash: no such file"}) {
    INFO(line);
    CHECK_FALSE(parse_hub_answer(line));
  }
}

TEST_CASE("a HubStart has its length in front") {
  v1::HubStart start;
  start.set_hub_id(std::string(300, 'x'));
  const auto text = format_hub_start(start);
  REQUIRE(text.size() == 4 + start.ByteSizeLong());
  CHECK(text.substr(0, 4) == std::string("\0\0\x01\x2f", 4));
  v1::HubStart back;
  REQUIRE(back.ParseFromString(text.substr(4)));
  CHECK(back.hub_id() == start.hub_id());
}

TEST_CASE("what ssh says is put to the step that failed") {
  const auto judge = [](const char* text) { return judge_ssh_failure(text, "hpc1 (alice@login)", "hpc1"); };
  // As OpenSSH 9.2 writes it.
  auto verdict = judge("ssh: Could not resolve hostname nosuch.example: Name or service not known\r\n");
  CHECK(verdict.where == SshFailure::name);
  CHECK_THAT(verdict.error.message, Catch::Contains("nosuch.example"));

  verdict = judge("ssh: connect to host 127.0.0.1 port 1: Connection refused\r\n");
  CHECK(verdict.where == SshFailure::reachability);
  CHECK(verdict.error.retry == Retry::yes);

  verdict = judge(
      "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n"
      "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\nIT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\n"
      "The fingerprint for the ED25519 key sent by the remote host is\nSHA256:h7FPwNGRLP7jSBfjRNlyZD2mE1cH9YhPIfdTPRkjVmk.\n"
      "Please contact your system administrator.\nAdd correct host key in /home/me/.ssh/known_hosts to get rid of this message.\n"
      "Offending ED25519 key in /home/me/.ssh/known_hosts:7\nHost key for [127.0.0.1]:2222 has changed and you have requested strict "
      "checking.\n"
      "Host key verification failed.\r\n");
  CHECK(verdict.where == SshFailure::host_key);
  CHECK(verdict.error.code == Code::host_key_changed);
  CHECK_THAT(verdict.error.message, Catch::Contains("/home/me/.ssh/known_hosts line 7"));
  CHECK_THAT(verdict.error.message, Catch::Contains("SHA256:h7FPwNGRLP7jSBfjRNlyZD2mE1cH9YhPIfdTPRkjVmk."));

  verdict = judge("Host key verification failed.\r\n");
  CHECK(verdict.error.code == Code::host_key_unknown);

  verdict = judge("alice@login: Permission denied (publickey,password).\r\n");
  CHECK(verdict.where == SshFailure::authentication);
  CHECK(verdict.error.code == Code::authentication_failed);
  CHECK_THAT(verdict.error.message, Catch::Contains("(publickey,password)"));

  verdict = judge("kex_exchange_identification: Connection closed by remote host\r\n");
  CHECK(verdict.where == SshFailure::reachability);

  verdict = judge("line 3: Bad configuration option: foo\n");
  CHECK(verdict.where == SshFailure::other);
  CHECK_THAT(verdict.error.message, Catch::Contains("Bad configuration option"));
}

TEST_CASE("questions of ssh become prompts of the right kind") {
  auto prompt = parse_ssh_question("",
                                   "The authenticity of host '[127.0.0.1]:2222 ([127.0.0.1]:2222)' can't be established.\n"
                                   "ED25519 key fingerprint is SHA256:h7FPwNGRLP7jSBfjRNlyZD2mE1cH9YhPIfdTPRkjVmk.\n"
                                   "This key is not known by any other names.\n"
                                   "Are you sure you want to continue connecting (yes/no/[fingerprint])? ",
                                   "hpc1");
  CHECK(prompt.kind() == v1::PROMPT_HOST_KEY);
  CHECK(prompt.fingerprint() == "SHA256:h7FPwNGRLP7jSBfjRNlyZD2mE1cH9YhPIfdTPRkjVmk");
  CHECK(prompt.resource() == "hpc1");
  prompt = parse_ssh_question("", "alice@login's password: ", "hpc1");
  CHECK(prompt.kind() == v1::PROMPT_SECRET);
  prompt = parse_ssh_question("confirm", "Allow use of key?", "hpc1");
  CHECK(prompt.kind() == v1::PROMPT_TEXT);
}

TEST_CASE("what ssh says of a refused forwarding is told from other failures") {
  // Recorded with OpenSSH 9.2: AllowStreamLocalForwarding no; AllowTcpForwarding no; a port where nobody listens.
  CHECK(says_forwarding_forbidden("channel 3: open failed: connect failed: open failed\r\n"));
  CHECK(says_forwarding_forbidden("Warning: ...\r\nchannel 2: open failed: administratively prohibited: open failed\r\n"));
  CHECK_FALSE(says_forwarding_forbidden("channel 2: open failed: connect failed: Connection refused\r\n"));
  CHECK_FALSE(says_forwarding_forbidden(""));
}

TEST_CASE("why a gateway cannot reach a host is told in its own words, whoever said them") {
  const std::pair<const char*, const char*> said[] = {
      {"flotilla-agent: cannot connect to inner port 22: Connection refused\n", "Connection refused"},
      {"motd\r\nflotilla-agent: cannot connect to fe80::1 port 22: No route to host\n", "No route to host"},
      {"Channel opening failure: channel 43 error (2) Connection timed out", "Connection timed out"},
      {"sh: 1: /home/a/.cache/flotilla/flotilla-agent-1: not found", "sh: 1: /home/a/.cache/flotilla/flotilla-agent-1: not found"},
  };
  for (const auto& [text, cause] : said)
    CHECK(gateway_cannot_reach("gate", "inner", 22, text).message == "the gateway gate cannot reach inner port 22: " + std::string(cause));
  CHECK(gateway_cannot_reach("gate", "inner", 22, "").message == "the gateway gate cannot reach inner port 22");
  CHECK(gateway_cannot_reach("gate", "inner", 22, said[0].first).hint.starts_with("nothing listens there"));
  CHECK(gateway_cannot_reach("gate", "inner", 22, said_nothing).hint == "is it sshd that listens there?");
  CHECK(gateway_cannot_reach("gate", "inner", 22, "No route to host").hint.starts_with("is inner up"));
}
