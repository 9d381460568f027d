// Host keys and logins.
#include <arpa/inet.h>
#include <libssh/libssh.h>
#include <libssh/server.h>
#include <sys/socket.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "test/integration/transport/machine.hpp"

namespace {

// A server that asks: keyboard-interactive with two questions, or a password. Nothing can be run on it. It takes the connections
// one after the other, in a thread of its own.
class AskingServer {
 public:
  AskingServer(const Home& home, bool interactive) : interactive_(interactive) {
    ssh_init();
    bind_ = ssh_bind_new();
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t size = sizeof address;
    REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(fd, 4) == 0);
    getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
    port = ntohs(address.sin_port);
    ssh_bind_options_set(bind_, SSH_BIND_OPTIONS_HOSTKEY, home.key().c_str());
    ssh_bind_set_fd(bind_, fd);
    fd_ = fd;
    thread_ = std::thread([this] { run(); });
  }
  ~AskingServer() {
    stop_ = true;
    shutdown(fd_, SHUT_RDWR);
    thread_.join();
    ssh_bind_free(bind_);
  }
  int port = 0;
  std::atomic<int> rounds{0}, logins{0};

 private:
  void run() {
    while (!stop_) {
      ssh_session session = ssh_new();
      if (ssh_bind_accept(bind_, session) == SSH_OK) serve(session);
      ssh_disconnect(session);
      ssh_free(session);
    }
  }
  void serve(ssh_session session) {
    ssh_set_auth_methods(session, interactive_ ? SSH_AUTH_METHOD_INTERACTIVE : SSH_AUTH_METHOD_PASSWORD);
    if (ssh_handle_key_exchange(session) != SSH_OK) return;
    while (ssh_message message = ssh_message_get(session)) {
      answer(session, message);
      ssh_message_free(message);
    }
  }
  void answer(ssh_session session, ssh_message message) {
    const int type = ssh_message_type(message), kind = ssh_message_subtype(message);
    if (type == SSH_REQUEST_AUTH && kind == SSH_AUTH_METHOD_INTERACTIVE && interactive_) {
      if (!ssh_message_auth_kbdint_is_response(message)) {
        ++rounds;
        const char* prompts[] = {"Password: ", "Code from your phone: "};
        char echo[] = {0, 1};
        ssh_message_auth_interactive_request(message, "", "Two things are needed.", 2, prompts, echo);
        return;
      }
      const char* password = ssh_userauth_kbdint_getanswer(session, 0);
      const char* code = ssh_userauth_kbdint_getanswer(session, 1);
      if (password && code && std::string(password) == "secret" && std::string(code) == "123456") {
        ++logins;
        ssh_message_auth_reply_success(message, 0);
        return;
      }
    } else if (type == SSH_REQUEST_AUTH && kind == SSH_AUTH_METHOD_PASSWORD && !interactive_) {
      ++rounds;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
      const char* password = ssh_message_auth_password(message);
#pragma GCC diagnostic pop
      if (password && std::string(password) == "secret") {
        ++logins;
        ssh_message_auth_reply_success(message, 0);
        return;
      }
    }
    if (type == SSH_REQUEST_AUTH)
      ssh_message_auth_set_methods(message, interactive_ ? SSH_AUTH_METHOD_INTERACTIVE : SSH_AUTH_METHOD_PASSWORD);
    ssh_message_reply_default(message);
  }

  bool interactive_;
  ssh_bind bind_ = nullptr;
  int fd_ = -1;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace

TEST_CASE("an unknown host key is shown with its fingerprint and taken by the user's word only") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      Machine machine(home);
      Side side(home);
      side.prompter.accept_new = false;
      auto config = side.config(machine, transport);

      side.connect(config);
      REQUIRE(side.until([&] { return side.ended.has_value(); }));
      CHECK(side.ended->code == Code::host_key_unknown);
      CHECK(side.ended->retry == Retry::no);
      CHECK_THAT(side.ended->message, Catch::Contains("SHA256:"));
      CHECK(home.known_hosts().empty());

      side.prompter.respond = [](const v1::Prompt&) -> Result<std::string> { return "no"; };
      side.connect(config);
      REQUIRE(side.until([&] { return side.ended.has_value(); }));
      CHECK(side.ended->code == Code::host_key_unknown);
      CHECK(home.known_hosts().empty());

      side.prompter.asked.clear();
      side.prompter.respond = [](const v1::Prompt&) -> Result<std::string> { return "yes"; };
      side.connect(config);
      REQUIRE(side.until_connected());
      REQUIRE(side.prompter.asked.size() == 1);
      CHECK(side.prompter.asked[0].kind() == v1::PROMPT_HOST_KEY);
      CHECK_THAT(side.prompter.asked[0].fingerprint(), Catch::StartsWith("SHA256:"));
      CHECK(side.prompter.asked[0].resource() == "hpc1");
      CHECK_THAT(home.known_hosts(), Catch::Contains("[127.0.0.1]:" + std::to_string(machine.port())));
      side.end_hub();

      side.connect(config);
      REQUIRE(side.until_connected());
      CHECK(side.prompter.asked.size() == 1);
      side.end_hub();

      machine.new_host_key();
      side.prompter.accept_new = true;  // means unknown ones, never changed ones
      side.connect(config);
      REQUIRE(side.until([&] { return side.ended || side.hello; }));
      REQUIRE(side.ended);
      CHECK(side.ended->code == Code::host_key_changed);
      CHECK(side.ended->retry == Retry::no);
      CHECK_THAT(side.ended->message, Catch::Contains((home.path / ".ssh" / "known_hosts").string() + " line 1"));
      CHECK_THAT(side.ended->hint, Catch::Contains("ssh-keygen -R"));
      CHECK(side.prompter.asked.size() == 1);
    }
  }
}

TEST_CASE("without a key that fits, the error names what the server takes") {
  Home home;
  Machine machine(home);
  Side side(home);
  fs::remove(home.key());
  fs::remove(home.key().string() + ".pub");
  side.connect(side.config(machine));
  REQUIRE(side.until([&] { return side.ended.has_value(); }));
  CHECK(side.ended->code == Code::authentication_failed);
  CHECK_THAT(side.ended->message, Catch::Contains("publickey"));
  CHECK_FALSE(side.ended->hint.empty());
  CHECK(side.prompter.asked.empty());
}

TEST_CASE("a key with a passphrase asks for it once") {
  Home home;
  Machine machine(home);
  {
    auto child =
        Child::start({"ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", home.key().string()}, {}, Child::Errors::dropped);
    REQUIRE(child);
    Side wait(home);
    REQUIRE(wait.until([&] { return (*child)->ended().has_value(); }));
  }
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Side side(home);
      side.prompter.respond = [](const v1::Prompt&) -> Result<std::string> { return "open sesame"; };
      side.connect(side.config(machine, transport));
      REQUIRE(side.until_connected());
      REQUIRE(side.prompter.asked.size() == 1);
      CHECK(side.prompter.asked[0].kind() == v1::PROMPT_SECRET);
    }
  }
}

TEST_CASE("keyboard-interactive: each question is asked once, echoed or not as the server says") {
  for (const std::string transport : {"libssh", "openssh"}) {
    DYNAMIC_SECTION(transport) {
      Home home;
      AskingServer server(home, true);
      Machine machine(home);
      Side side(home);
      auto config = side.config(machine, transport);
      config.spec.set_location("alice@127.0.0.1:" + std::to_string(server.port));
      side.prompter.respond = [](const v1::Prompt& prompt) -> Result<std::string> {
        return prompt.text().find("Code") != std::string::npos ? "123456" : "secret";
      };
      side.connect(config);
      REQUIRE(side.until([&] { return side.ended.has_value(); }));
      CHECK(server.logins == 1);
      CHECK(server.rounds == 1);
      REQUIRE(side.prompter.asked.size() == 2);
      CHECK(side.prompter.asked[0].kind() == v1::PROMPT_SECRET);
      if (transport == "libssh") CHECK(side.prompter.asked[1].kind() == v1::PROMPT_TEXT);
      CHECK_THAT(side.prompter.asked[1].text(), Catch::Contains("Code from your phone"));
      // It lets us in, and can run nothing: the error is about that.
      CHECK(side.ended->code != Code::authentication_failed);
    }
  }
}

TEST_CASE("a wrong password is asked for three times, then it is over") {
  Home home;
  AskingServer server(home, false);
  Machine machine(home);
  Side side(home);
  auto config = side.config(machine);
  config.spec.set_location("alice@127.0.0.1:" + std::to_string(server.port));
  side.prompter.respond = [](const v1::Prompt&) -> Result<std::string> { return "guess"; };
  side.connect(config);
  REQUIRE(side.until([&] { return side.ended.has_value(); }));
  CHECK(side.ended->code == Code::authentication_failed);
  CHECK(side.ended->retry == Retry::no);
  CHECK(side.prompter.asked.size() == 3);
  CHECK(server.logins == 0);
  for (const auto& prompt : side.prompter.asked) CHECK(prompt.text().find("guess") == std::string::npos);

  // Nobody there: at once, and the reason is the prompter's.
  side.prompter.respond = nullptr;
  side.connect(config);
  REQUIRE(side.until([&] { return side.ended.has_value(); }));
  CHECK_THAT(side.ended->message, Catch::Contains("nobody is there"));
}

TEST_CASE("a question is withdrawn when the connection is dropped") {
  Home home;
  AskingServer server(home, false);
  Machine machine(home);
  Side side(home);
  auto config = side.config(machine);
  config.spec.set_location("alice@127.0.0.1:" + std::to_string(server.port));
  side.prompter.hold = true;
  side.connect(config);
  REQUIRE(side.until([&] { return side.prompter.asked.size() == 1; }));
  side.connection.reset();
  CHECK(side.prompter.withdrawn == std::vector<std::uint64_t>{1});
  side.prompter.held[0](std::string("late"));  // does nothing
  side.until([] { return false; }, 100ms);
  CHECK_FALSE(side.ended);
}

TEST_CASE("~/.ssh/config is followed: alias, user, port, identity, ProxyCommand") {
  Home home;
  Machine machine(home);
  Side side(home);
  fs::rename(home.key(), home.path / "other_key");
  fs::rename(home.key().string() + ".pub", home.path / "other_key.pub");
  std::ofstream(home.path / ".ssh" / "config") << "Host cluster\n  HostName 127.0.0.1\n  Port " << machine.port()
                                               << "\n  User root\n  IdentityFile " << (home.path / "other_key").string() << "\n"
                                               << "Host behind\n  HostName 127.0.0.1\n  Port " << machine.port()
                                               << "\n  User root\n  IdentityFile " << (home.path / "other_key").string()
                                               << "\n  ProxyCommand ssh -F " << home.ssh_config() << " -i "
                                               << (home.path / "other_key").string() << " -o StrictHostKeyChecking=accept-new -p "
                                               << machine.port() << " -W %h:%p root@127.0.0.1\n";
  auto config = side.config(machine);
  config.spec.set_location("cluster");
  side.connect(config);
  REQUIRE(side.until_connected());
  side.end_hub();
  config.spec.set_location("behind");
  side.connect(config);
  REQUIRE(side.until_connected());
  CHECK(machine.connections().size() == 2);
  side.end_hub();
  side.connection.reset();
  CHECK(side.until([&] { return machine.connections().empty(); }));
}
