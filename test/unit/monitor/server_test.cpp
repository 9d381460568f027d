// The server over real sockets on loopback, with a source that the test holds.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <catch2/catch.hpp>
#include <cstdio>
#include <cstring>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "daemon/monitor/monitor.hpp"
#include "proto/base/unique_fd.hpp"

using namespace flotilla;
using namespace std::chrono_literals;
using nlohmann::json;

namespace {

constexpr auto patience = 20s;  // only a defect waits this long
const std::string secret = "3b9d50c1e2f4a5968778695a4b3c2d1e";

v1::Change job_change(std::uint64_t id, v1::JobState state, const std::string& message = {}) {
  v1::Change change;
  auto* job = change.mutable_job();
  job->set_id(id);
  job->set_state(state);
  job->set_message(message);
  job->mutable_spec()->mutable_command()->add_argv("true");
  return change;
}

struct FakeSource : MonitorSource {
  std::map<std::uint64_t, v1::Change> jobs;
  std::string out = "line 1\nline 2\n";

  v1::DaemonInfo info() override {
    v1::DaemonInfo info;
    info.set_host("laptop");
    info.set_web_url("http://127.0.0.1/?token=" + secret);
    return info;
  }
  void for_each(const std::function<void(const v1::Change&)>& tell) override {
    v1::Change resource;
    resource.mutable_resource()->mutable_spec()->set_name("local");
    tell(resource);
    for (const auto& entry : jobs) tell(entry.second);
    v1::Change end;
    end.set_snapshot_end(true);
    tell(end);
  }
  std::optional<v1::Job> job(std::uint64_t id) override {
    auto found = jobs.find(id);
    if (found == jobs.end()) return std::nullopt;
    auto job = found->second.job();
    job.mutable_exit()->set_stderr_tail("Segmentation fault");
    return job;
  }
  Result<std::string> output(std::uint64_t id, std::uint32_t stream, std::uint64_t tail) override {
    if (jobs.count(id) == 0) return fail(Code::not_found, "there is no job " + std::to_string(id));
    if (stream == 2) return fail(Code::unavailable, "node1 cannot be reached", "wait until it is back");
    return out.substr(out.size() - std::min<std::size_t>(out.size(), tail));
  }
};

// The server on a thread of its own; everything is called there, as in the daemon.
struct Server {
  explicit Server(MonitorLimits limits = {}, bool admit_user = false) {
    MonitorOptions options;
    options.token = secret;
    options.admit_user = admit_user;
    options.limits = limits;
    monitor = std::make_unique<Monitor>(io, source, options);
    auto started = monitor->start();
    REQUIRE(started.has_value());
    port = monitor->port();
    thread = std::thread([this] { io.run(); });
  }
  ~Server() {
    on_thread([this] { monitor->end(); });
    work.reset();
    thread.join();
  }
  void on_thread(const std::function<void()>& what) {
    std::promise<void> done;
    boost::asio::post(io, [&] {
      what();
      done.set_value();
    });
    done.get_future().get();
  }
  void change(const v1::Change& change) {
    on_thread([&] {
      source.jobs[change.job().id()] = change;
      monitor->changed(change);
    });
  }

  boost::asio::io_context io;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{io.get_executor()};
  FakeSource source;
  std::unique_ptr<Monitor> monitor;
  std::uint16_t port = 0;
  std::thread thread;
};

struct Event {
  std::string name, id;
  json data;
};

// Bytes out, bytes in, with a deadline.
class Client {
 public:
  explicit Client(std::uint16_t port, int receive_buffer = 0) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    REQUIRE(fd_);
    if (receive_buffer != 0) ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  }
  void send(const std::string& text) {
    REQUIRE(::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
  }
  // false at the end of the stream.
  bool more() {
    pollfd wait{fd_.get(), POLLIN, 0};
    auto timeout = static_cast<int>(std::chrono::milliseconds(patience).count());
    if (::poll(&wait, 1, timeout) != 1) FAIL("the server said nothing for " << patience.count() << " s");
    char part[65536];
    auto got = ::recv(fd_.get(), part, sizeof part, 0);
    if (got <= 0) return false;
    text_.append(part, static_cast<std::size_t>(got));
    return true;
  }
  std::string until(const std::string& mark) {
    std::size_t at;
    while ((at = text_.find(mark)) == std::string::npos)
      if (!more()) FAIL("the stream ended before '" << mark << "': " << text_);
    auto out = text_.substr(0, at + mark.size());
    text_.erase(0, at + mark.size());
    return out;
  }
  std::string rest() {
    while (more()) {}
    return std::move(text_);
  }
  // The next event of the stream; comments are counted.
  Event event() {
    Event event;
    while (event.name.empty()) {
      auto block = until("\n\n");
      std::string line;
      for (std::istringstream lines(block); std::getline(lines, line);) {
        if (line.starts_with(":")) ++comments;
        if (line.starts_with("id: ")) event.id = line.substr(4);
        if (line.starts_with("event: ")) event.name = line.substr(7);
        if (line.starts_with("data: ")) event.data = json::parse(line.substr(6));
      }
    }
    return event;
  }
  int comments = 0;

 private:
  unique_fd fd_;
  std::string text_;
};

std::string request(const Server& server, const std::string& target, const std::string& more = {}, const std::string& method = "GET") {
  return method + " " + target + " HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(server.port) + "\r\nAuthorization: Bearer " + secret +
         "\r\n" + more + "\r\n";
}

struct Reply {
  int status = 0;
  std::string head, body;
};

// One request, one answer, the connection closed.
Reply ask_raw(const Server& server, const std::string& text) {
  Client client(server.port);
  client.send(text);
  Reply reply;
  reply.head = client.until("\r\n\r\n");
  reply.status = std::stoi(reply.head.substr(9, 3));
  reply.body = client.rest();
  return reply;
}
Reply ask(const Server& server, const std::string& target, const std::string& more = {}, const std::string& method = "GET") {
  return ask_raw(server, request(server, target, "Connection: close\r\n" + more, method));
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Asks for events until there is a place for one more watcher, and leaves again.
void wait_for_place(const Server& server) {
  auto deadline = std::chrono::steady_clock::now() + patience;
  for (int status = 503; status == 503;) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    Client client(server.port);
    client.send(request(server, "/api/v1/events"));
    status = std::stoi(client.until("\r\n\r\n").substr(9, 3));
  }
}

// Reads the opening of an event stream up to the end of the snapshot; returns the jobs' ids.
std::vector<std::string> read_snapshot(Client& client, std::string* id = nullptr) {
  auto begin = client.event();
  REQUIRE(begin.name == "snapshot");
  std::vector<std::string> jobs;
  for (;;) {
    auto event = client.event();
    if (event.name == "snapshot_end") {
      if (id != nullptr) *id = event.id;
      return jobs;
    }
    REQUIRE(event.name == "changes");
    CHECK(event.id.empty());
    for (const auto& change : event.data)
      if (change.contains("job")) jobs.push_back(change["job"]["id"]);
  }
}

}  // namespace

TEST_CASE("The link lets a browser in, and nothing else does") {
  Server server;
  auto host = "Host: 127.0.0.1:" + std::to_string(server.port) + "\r\nConnection: close\r\n\r\n";
  CHECK(server.monitor->url() == "http://127.0.0.1:" + std::to_string(server.port) + "/?token=" + secret);

  auto refused = ask_raw(server, "GET / HTTP/1.1\r\n" + host);
  CHECK(refused.status == 401);
  CHECK(has(refused.body, "flotilla web"));
  CHECK(ask_raw(server, "GET /?token=" + secret.substr(1) + " HTTP/1.1\r\n" + host).status == 401);
  CHECK(ask_raw(server, "GET /api/v1/info HTTP/1.1\r\n" + host).status == 401);
  CHECK(ask_raw(server, "GET /api/v1/events HTTP/1.1\r\n" + host).status == 401);

  auto login = ask_raw(server, "GET /?token=" + secret + " HTTP/1.1\r\n" + host);
  CHECK(login.status == 303);
  CHECK(has(login.head, "Location: /\r\n"));
  auto cookie = "flotilla_" + std::to_string(server.port) + "=" + secret;
  CHECK(has(login.head, "Set-Cookie: " + cookie + "; HttpOnly; SameSite=Strict; Path=/\r\n"));

  auto page = ask_raw(server, "GET / HTTP/1.1\r\nCookie: " + cookie + "\r\n" + host);
  CHECK(page.status == 200);
  CHECK(has(page.body, "Flotilla"));
}

TEST_CASE("Where the user's own processes are let in, others are not") {
  Server server({}, true);
  const auto host = "Host: localhost:" + std::to_string(server.port) + "\r\n";
  const auto once = host + "Connection: close\r\n\r\n";
  CHECK(ask_raw(server, "GET / HTTP/1.1\r\n" + once).status == 200);
  CHECK(ask_raw(server, "GET /api/v1/info HTTP/1.1\r\n" + once).status == 200);
  CHECK(ask_raw(server, "GET /api/v1/info HTTP/1.1\r\nOrigin: http://evil.example\r\n" + once).status == 403);
  CHECK(ask_raw(server, "GET / HTTP/1.1\r\nHost: evil.example:" + std::to_string(server.port) + "\r\nConnection: close\r\n\r\n").status ==
        421);
  {
    Client client(server.port);
    client.send("GET /api/v1/events HTTP/1.1\r\n" + host + "\r\n");
    CHECK(has(client.until("\r\n\r\n"), "200 OK"));
    CHECK(client.event().name == "snapshot");
  }
  if (getuid() != 0) {
    WARN("another user needs root");
    return;
  }
  const pid_t stranger = fork();
  if (stranger == 0) {  // plain calls: the threads of this process are not there
    constexpr uid_t nobody = 65534;
    if (setgid(nobody) != 0 || setuid(nobody) != 0) _exit(1);
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(server.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const char text[] = "GET /api/v1/info HTTP/1.1\r\nHost: localhost:";
    char number[16], reply[16] = {};
    const int digits = std::snprintf(number, sizeof number, "%u\r\n\r\n", server.port);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::write(fd, text, sizeof text - 1) < 0 ||
        ::write(fd, number, static_cast<std::size_t>(digits)) < 0 || ::recv(fd, reply, 12, MSG_WAITALL) != 12)
      _exit(2);
    _exit(std::strcmp(reply, "HTTP/1.1 401") == 0 ? 0 : 3);
  }
  REQUIRE(stranger > 0);
  int status = -1;
  REQUIRE(waitpid(stranger, &status, 0) == stranger);
  CHECK(status == 0);
}

TEST_CASE("Every answer forbids to be kept, framed, sniffed or extended") {
  Server server;
  for (auto target : {"/", "/api/v1/info", "/api/v1/nothing", "/api/v1/snapshot"}) {
    auto reply = ask(server, target);
    INFO(target << reply.head);
    CHECK(has(reply.head, "Content-Security-Policy: default-src 'none'; script-src 'self'"));
    CHECK(has(reply.head, "frame-ancestors 'none'"));
    CHECK(has(reply.head, "Cache-Control: no-store"));
    CHECK(has(reply.head, "X-Content-Type-Options: nosniff"));
    CHECK(has(reply.head, "Referrer-Policy: no-referrer"));
    CHECK_FALSE(has(reply.head, "Access-Control-Allow"));
    CHECK_FALSE(has(reply.body, secret));
  }
}

TEST_CASE("A rebound name gets nothing, over the wire") {
  Server server;
  auto reply = ask_raw(server, "GET /api/v1/snapshot HTTP/1.1\r\nHost: evil.example:" + std::to_string(server.port) +
                                   "\r\nConnection: close\r\nAuthorization: Bearer " + secret + "\r\n\r\n");
  CHECK(reply.status == 421);
  CHECK(json::parse(reply.body)["error"]["code"] == "PERMISSION_DENIED");
  CHECK_FALSE(has(reply.body, "laptop"));
}

TEST_CASE("Jobs and their output") {
  Server server;
  server.change(job_change(7, v1::JOB_FAILED, "exit code 3"));
  auto job = json::parse(ask(server, "/api/v1/jobs/7").body);
  CHECK(job["id"] == "7");
  CHECK(job["state"] == "JOB_FAILED");
  CHECK(job["exit"]["stderr_tail"] == "Segmentation fault");

  auto missing = ask(server, "/api/v1/jobs/8");
  CHECK(missing.status == 404);
  CHECK(json::parse(missing.body)["error"]["message"] == "there is no job 8");

  auto output = ask(server, "/api/v1/jobs/7/output?stream=1&tail=7");
  CHECK(output.status == 200);
  CHECK(output.body == "line 2\n");
  CHECK(has(output.head, "Content-Type: text/plain; charset=utf-8"));
  auto failed = ask(server, "/api/v1/jobs/7/output?stream=2");
  CHECK(failed.status == 503);
  CHECK(json::parse(failed.body)["error"]["code"] == "UNAVAILABLE");
  CHECK(json::parse(failed.body)["error"]["hint"] == "wait until it is back");
  CHECK(ask(server, "/api/v1/jobs/8/output").status == 404);
  CHECK(json::parse(ask(server, "/api/v1/info").body)["host"] == "laptop");
  CHECK(json::parse(ask(server, "/api/v2").body)["error"]["code"] == "NOT_FOUND");
  CHECK(ask(server, "/nothing.js").status == 404);
  CHECK(ask(server, "/api/v1/info", "", "POST").status == 405);
  CHECK(ask(server, "/api/v1/info", "", "HEAD").body.empty());
}

TEST_CASE("One connection answers many requests") {
  Server server;
  Client client(server.port);
  for (int i = 0; i < 3; ++i) {
    client.send(request(server, "/api/v1/info"));
    CHECK(has(client.until("\r\n\r\n"), "200 OK"));
    client.until("}\n");
  }
}

TEST_CASE("What is no request is refused and the connection closed") {
  Server server;
  CHECK(ask_raw(server, "hello\r\n\r\n").status == 400);
  CHECK(ask_raw(server, request(server, "/", "X-Long: " + std::string(9000, 'x') + "\r\n")).status == 431);
  CHECK(ask_raw(server, request(server, "/api/v1/info", "Content-Length: 5\r\n") + "hello").status == 413);
  // And the server lives.
  CHECK(ask(server, "/api/v1/info").status == 200);
}

TEST_CASE("The snapshot as one document, cut to the jobs that matter") {
  MonitorLimits limits;
  limits.snapshot_jobs = 1000;
  Server server(limits);
  server.on_thread([&] {
    for (std::uint64_t id = 1; id <= 5000; ++id) server.source.jobs[id] = job_change(id, id <= 10 ? v1::JOB_RUNNING : v1::JOB_FINISHED);
  });
  auto snapshot = json::parse(ask(server, "/api/v1/snapshot").body);
  CHECK(snapshot["info"]["host"] == "laptop");
  CHECK(snapshot["omitted_jobs"] == 4000);
  REQUIRE(snapshot["changes"].size() == 1001);
  CHECK(snapshot["changes"][0]["resource"]["spec"]["name"] == "local");
  CHECK(snapshot["changes"][1]["job"]["id"] == "1");      // running, old as it is
  CHECK(snapshot["changes"][11]["job"]["id"] == "4011");  // of those that ended, the newest
  CHECK(snapshot["changes"][1000]["job"]["id"] == "5000");
}

TEST_CASE("Events: the state, its end, then each change in order") {
  Server server;
  server.change(job_change(1, v1::JOB_RUNNING));
  Client client(server.port);
  client.send(request(server, "/api/v1/events"));
  CHECK(has(client.until("\r\n\r\n"), "Content-Type: text/event-stream"));
  std::string id;
  CHECK(read_snapshot(client, &id) == std::vector<std::string>{"1"});
  CHECK_FALSE(id.empty());

  server.change(job_change(1, v1::JOB_FINISHED));
  auto event = client.event();
  CHECK(event.name == "changes");
  REQUIRE(event.data.size() == 1);
  CHECK(event.data[0]["job"]["state"] == "JOB_FINISHED");
  CHECK(event.id != id);

  // A burst is one or few batches, in order, the last word on each thing.
  server.on_thread([&] {
    for (std::uint64_t job = 2; job <= 50; ++job) {
      server.monitor->changed(job_change(job, v1::JOB_RUNNING));
      server.monitor->changed(job_change(job, v1::JOB_FINISHED));
    }
  });
  std::vector<int> seen;
  while (seen.size() < 49)
    for (const auto& change : client.event().data) {
      CHECK(change["job"]["state"] == "JOB_FINISHED");
      seen.push_back(std::stoi(change["job"]["id"].get<std::string>()));
    }
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  CHECK(seen.front() == 2);
  CHECK(seen.back() == 50);
}

TEST_CASE("A browser that comes back is told what it missed, or starts afresh") {
  Server server;
  server.change(job_change(1, v1::JOB_RUNNING));
  std::string id;
  {
    Client client(server.port);
    client.send(request(server, "/api/v1/events"));
    client.until("\r\n\r\n");
    read_snapshot(client, &id);
  }
  server.change(job_change(2, v1::JOB_RUNNING));
  server.change(job_change(3, v1::JOB_RUNNING));
  {
    Client client(server.port);
    client.send(request(server, "/api/v1/events", "Last-Event-ID: " + id + "\r\n"));
    client.until("\r\n\r\n");
    CHECK(client.event().name == "resumed");
    auto missed = client.event();
    CHECK(missed.name == "changes");
    REQUIRE(missed.data.size() == 2);
    CHECK(missed.data[0]["job"]["id"] == "2");
    CHECK(missed.data[1]["job"]["id"] == "3");
  }
  // Another daemon's id, a future one, nonsense: all get the state.
  for (auto stale : {std::string("deadbeef.1"), id.substr(0, 9) + "999999", std::string("x"), id.substr(0, 9)}) {
    Client client(server.port);
    client.send(request(server, "/api/v1/events", "Last-Event-ID: " + stale + "\r\n"));
    client.until("\r\n\r\n");
    INFO(stale);
    CHECK(read_snapshot(client) == std::vector<std::string>{"1", "2", "3"});
  }
}

TEST_CASE("A snapshot's position is one from which a stream goes on") {
  Server server;
  server.change(job_change(1, v1::JOB_RUNNING));
  std::string id = json::parse(ask(server, "/api/v1/snapshot").body)["id"];
  server.change(job_change(2, v1::JOB_RUNNING));
  Client client(server.port);
  client.send(request(server, "/api/v1/events", "Last-Event-ID: " + id + "\r\n"));
  client.until("\r\n\r\n");
  CHECK(client.event().name == "resumed");
  CHECK(client.event().data[0]["job"]["id"] == "2");
}

TEST_CASE("Nothing is kept when nobody has watched for a while, and who comes back starts afresh") {
  MonitorLimits limits;
  limits.unwatched = 0ms;
  Server server(limits);
  bool wanted = true;
  server.on_thread([&] { wanted = server.monitor->wanted(); });
  CHECK_FALSE(wanted);
  server.change(job_change(1, v1::JOB_RUNNING));
  std::string id;
  {
    Client client(server.port);
    client.send(request(server, "/api/v1/events"));
    client.until("\r\n\r\n");
    CHECK(read_snapshot(client, &id) == std::vector<std::string>{"1"});
    server.on_thread([&] { wanted = server.monitor->wanted(); });
    CHECK(wanted);
  }
  // The server sees the end of the connection in its own time.
  auto deadline = std::chrono::steady_clock::now() + patience;
  while (wanted) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    server.on_thread([&] { wanted = server.monitor->wanted(); });
  }
  server.change(job_change(2, v1::JOB_RUNNING));
  Client client(server.port);
  client.send(request(server, "/api/v1/events", "Last-Event-ID: " + id + "\r\n"));
  client.until("\r\n\r\n");
  CHECK(read_snapshot(client) == std::vector<std::string>{"1", "2"});
}

TEST_CASE("A client that does not read is reset, costs nothing, and disturbs nobody") {
  MonitorLimits limits;
  limits.log_entries = 500;
  limits.flush = 1ms;
  Server server(limits);
  server.change(job_change(1, v1::JOB_RUNNING));
  Client slow(server.port, 4096), quick(server.port);
  for (auto* client : {&slow, &quick}) {
    client->send(request(server, "/api/v1/events"));
    client->until("\r\n\r\n");
    read_snapshot(*client);
  }
  // More than the sockets' buffers and the log hold, while the quick one reads along.
  std::uint64_t job = 2;
  for (int round = 0; round < 60; ++round) {
    server.on_thread([&] {
      for (int i = 0; i < 100; ++i, ++job) server.monitor->changed(job_change(job, v1::JOB_RUNNING, std::string(1000, 'x')));
    });
    std::string last;
    while (last != std::to_string(job - 1)) last = quick.event().data.back()["job"]["id"];
  }
  // The slow one reads at last: some old news, then the reset, then the end.
  Event event;
  do event = slow.event();
  while (event.name == "changes");
  CHECK(event.name == "reset");
  CHECK(slow.rest().empty());
  // It comes back and gets the state.
  Client again(server.port);
  again.send(request(server, "/api/v1/events"));
  again.until("\r\n\r\n");
  CHECK(read_snapshot(again) == std::vector<std::string>{"1"});
}

TEST_CASE("Heartbeats come") {
  MonitorLimits limits;
  limits.heartbeat = 50ms;
  Server server(limits);
  Client client(server.port);
  client.send(request(server, "/api/v1/events"));
  client.until("\r\n\r\n");
  read_snapshot(client);
  while (client.comments < 3)
    if (client.until("\n\n").starts_with(":")) ++client.comments;
}

TEST_CASE("A write that stalls for a heartbeat ends the stream") {
  MonitorLimits limits;
  limits.heartbeat = 100ms;
  limits.watchers = 1;
  Server server(limits);
  Client stuck(server.port, 4096);
  stuck.send(request(server, "/api/v1/events"));
  stuck.until("\r\n\r\n");
  read_snapshot(stuck);
  // It does not read any more: fill its way, then wait until it has been let go, which makes its place free.
  server.on_thread([&] {
    for (std::uint64_t job = 1; job <= 5000; ++job) server.monitor->changed(job_change(job, v1::JOB_RUNNING, std::string(1000, 'x')));
  });
  wait_for_place(server);
  auto text = stuck.rest();  // what was under way, then the end without a word
  CHECK_FALSE(has(text, "5000\""));
}

TEST_CASE("Connections and watchers are counted") {
  MonitorLimits limits;
  limits.connections = 4;
  limits.watchers = 2;
  Server server(limits);
  {
    std::vector<std::unique_ptr<Client>> watchers;
    for (int i = 0; i < 2; ++i) {
      watchers.push_back(std::make_unique<Client>(server.port));
      watchers.back()->send(request(server, "/api/v1/events"));
      watchers.back()->until("\r\n\r\n");
      read_snapshot(*watchers.back());
    }
    auto third = ask(server, "/api/v1/events");
    CHECK(third.status == 503);
    CHECK(json::parse(third.body)["error"]["code"] == "RESOURCE_EXHAUSTED");
  }
  // Their places are free again when they have gone.
  wait_for_place(server);
  std::vector<std::unique_ptr<Client>> idle;
  for (int i = 0; i < 4; ++i) idle.push_back(std::make_unique<Client>(server.port));
  Client fifth(server.port);
  CHECK(has(fifth.until("\r\n\r\n"), "503 Service Unavailable"));
}

TEST_CASE("A request that never ends is given up") {
  MonitorLimits limits;
  limits.request = 200ms;
  Server server(limits);
  Client client(server.port);
  client.send("GET / HTTP/1.1\r\nHost:");
  CHECK(client.rest().empty());
}

TEST_CASE("A port that is taken is named; the end closes everything") {
  Server server;
  FakeSource source;
  MonitorOptions options;
  options.port = server.port;
  Monitor second(server.io, source, options);
  auto started = second.start();
  REQUIRE_FALSE(started.has_value());
  CHECK(has(started.error().message, std::to_string(server.port)));
  CHECK(second.url().empty());
  // A port that was only wished for is given up for another.
  options.last_port = std::exchange(options.port, 0);
  std::uint16_t other = 0, same = 0;
  server.on_thread([&] {
    Monitor third(server.io, source, options);
    if (third.start()) other = third.port();
    third.end();
    options.last_port = other;
    Monitor fourth(server.io, source, options);
    if (fourth.start()) same = fourth.port();
  });
  CHECK(other != 0);
  CHECK(other != server.port);
  CHECK(same == other);

  Client client(server.port);
  client.send(request(server, "/api/v1/events"));
  client.until("\r\n\r\n");
  read_snapshot(client);
  server.on_thread([&] { server.monitor->end(); });
  CHECK(client.rest().empty());
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(server.port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  unique_fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  CHECK(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0);
}

TEST_CASE("Only loopback is listened on, and no started process inherits a socket") {
  Server server;
  Client client(server.port);
  client.send(request(server, "/api/v1/info"));
  client.until("}\n");
  sockaddr_in address{};
  int listening = 0;
  for (int fd = 3; fd < 256; ++fd) {
    socklen_t length = sizeof address;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 || address.sin_family != AF_INET) continue;
    CHECK((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    if (ntohs(address.sin_port) != server.port) continue;
    CHECK(address.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    ++listening;
  }
  CHECK(listening == 2);  // the listener and the accepted end
}
