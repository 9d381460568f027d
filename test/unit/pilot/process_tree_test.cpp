#include "pilot/process/process_tree.hpp"

#include <fcntl.h>
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>

#include "pilot/process/spawn.hpp"
#include "pilot/worker/socket_owner.hpp"
#include "proto/base/socket_diag.hpp"
#include "proto/base/unique_fd.hpp"

using namespace flotilla;
using namespace flotilla::pilot;
using namespace std::chrono_literals;

TEST_CASE("a tree is everything below its roots, once") {
  std::vector<ProcessEntry> all(6);
  const pid_t parents[] = {0, 1, 2, 2, 3, 1};
  for (int i = 0; i < 6; ++i) {
    all[i].pid = i + 1;
    all[i].parent = parents[i];
  }
  auto tree = tree_below(all, {2});
  CHECK(tree.front() == 2);
  CHECK(std::find(tree.begin(), tree.end(), 3) < std::find(tree.begin(), tree.end(), 5));  // parents before children
  std::sort(tree.begin(), tree.end());
  CHECK(tree == std::vector<pid_t>{2, 3, 4, 5});
  CHECK(tree_below(all, {5, 3, 5}) == std::vector<pid_t>{5, 3});
  CHECK(tree_below(all, {}).empty());
}

TEST_CASE("processes are seen with their parent, group and environment") {
  Environment environment({"MARK=of this test", "PATH=/bin:/usr/bin"});
  SpawnRequest request;
  request.argv = {"sh", "-c", "echo up; read end"};
  request.environment = &environment;
  request.folder = "/tmp";
  unique_fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  int in[2], out[2];
  REQUIRE((pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0));
  unique_fd in_read(in[0]), in_write(in[1]), out_read(out[0]), out_write(out[1]);
  request.stdin_fd = in_read.get();
  request.stdout_fd = out_write.get();
  request.stderr_fd = null.get();
  auto pid = spawn(request, "here");
  REQUIRE(pid.has_value());
  char line[3];
  REQUIRE(read(out_read.get(), line, sizeof line) == 3);  // right after the start the kernel may not show its environment yet
  const auto all = list_processes();
  const auto it = std::find_if(all.begin(), all.end(), [&](const auto& entry) { return entry.pid == *pid; });
  REQUIRE(it != all.end());
  CHECK(it->parent == getpid());
  CHECK(it->group == *pid);
  CHECK(has_environment(*pid, {"MARK=of this test"}));
  CHECK_FALSE(has_environment(*pid, {"MARK=of this"}));
  CHECK_FALSE(has_environment(*pid, {"MARK=of this test", "X=1"}));
  Children children;
  const auto& list = children.list();
  CHECK(std::find(list.begin(), list.end(), *pid) != list.end());
  kill(*pid, SIGKILL);
  CHECK(waitpid(*pid, nullptr, 0) == *pid);
}

TEST_CASE("what does not die is looked at ever more seldom, and told of once") {
  DeathWait wait;
  std::chrono::milliseconds before(0), whole(0);
  int told = 0;
  for (int look = 0; look < 100; ++look) {
    const auto next = wait.next();
    CHECK(next >= before);
    before = next;
    whole += next;
    told += wait.first_long();
    if (told == 0) CHECK(whole < 10s);
  }
  CHECK(before == 1s);
  CHECK(told == 1);
}

TEST_CASE("whose a loopback connection is") {
  unique_fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in own{}, peer{};
  own.sin_family = AF_INET;
  own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof own;
  REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&own), size) == 0);
  REQUIRE(listen(listener.get(), 1) == 0);
  REQUIRE(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&own), &size) == 0);
  REQUIRE(connect(client.get(), reinterpret_cast<sockaddr*>(&own), sizeof own) == 0);
  REQUIRE(getsockname(client.get(), reinterpret_cast<sockaddr*>(&peer), &size) == 0);
  const auto end = find_tcp_end(peer, own);
  REQUIRE(end);
  CHECK(end->uid == getuid());
  CHECK(holder_of(end->inode, {1, getpid()}) == getpid());
  CHECK(holder_of(end->inode, {}) == 0);
  const unique_fd accepted(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  CHECK(peer_end(accepted.get()) == end);
  peer.sin_port = htons(static_cast<std::uint16_t>(ntohs(peer.sin_port) ^ 1));
  CHECK_FALSE(find_tcp_end(peer, own) == end);
}

TEST_CASE("a line of /proc/net/tcp") {
  sockaddr_in local{}, remote{};
  local.sin_addr.s_addr = remote.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  local.sin_port = htons(0x9C40);
  remote.sin_port = htons(0x1F90);
  const std::string line =
      "   3: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 424242 1 0000000000000000 20 4 30 10 -1";
  CHECK(parse_tcp_line(line, local, remote) == TcpEnd{424242, 1000});
  CHECK_FALSE(parse_tcp_line(line, remote, local));
  CHECK_FALSE(parse_tcp_line("  sl  local_address rem_address   st", local, remote));
}
