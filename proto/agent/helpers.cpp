#include "proto/agent/helpers.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/base/version.hpp"

namespace flotilla {
namespace {

constexpr std::size_t largest_agent = 256u << 20;

unique_fd connect_to(const char* path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (std::strlen(path) >= sizeof address.sun_path) return {};
  std::strcpy(address.sun_path, path);
  unique_fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    std::fprintf(stderr, "flotilla-agent: cannot connect to %s: %s\n", path, std::strerror(errno));
    return {};
  }
  return fd;
}

bool write_all(int fd, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const auto count = write(fd, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<std::size_t>(count);
  }
  return true;
}

}  // namespace

int verify_main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: flotilla-agent verify SHA256\n");
    return 2;
  }
  auto self = read_file("/proc/self/exe", largest_agent);
  if (!self) {
    std::fprintf(stderr, "%s\n", self.error().text().c_str());
    return 2;
  }
  const auto digest = to_hex(sha256(*self));
  if (digest != argv[1]) {
    std::printf("damaged %s\n", digest.c_str());
    return 3;
  }
  std::printf("intact %s\n", build_version());
  return 0;
}

int pass_fd_main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: flotilla-agent pass-fd SOCKET\n");
    return 2;
  }
  const auto from = connect_to(argv[1]);
  if (!from) return 1;
  char byte = 0;
  iovec piece{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(from.get(), &message, MSG_CMSG_CLOEXEC) != 1) {
    std::fprintf(stderr, "flotilla-agent: no connection came from %s\n", argv[1]);
    return 1;
  }
  const auto* header = CMSG_FIRSTHDR(&message);
  if (!header || header->cmsg_type != SCM_RIGHTS) return 1;
  // The same message goes on as it came.
  message.msg_controllen = CMSG_SPACE(sizeof(int));
  return sendmsg(STDOUT_FILENO, &message, 0) == 1 ? 0 : 1;
}

int ask_main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: flotilla-agent ask SOCKET TEXT\n");
    return 2;
  }
  const auto fd = connect_to(argv[1]);
  if (!fd) return 1;
  const char* kind = std::getenv("SSH_ASKPASS_PROMPT");
  if (!write_all(fd.get(), std::string(kind ? kind : "") + "\n" + argv[2])) return 1;
  shutdown(fd.get(), SHUT_WR);
  std::string answer;
  char buffer[512];
  for (;;) {
    const auto count = read(fd.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    answer.append(buffer, static_cast<std::size_t>(count));
  }
  // "y" and the answer, or nothing: refused.
  if (answer.empty() || answer[0] != 'y') return 1;
  return write_all(STDOUT_FILENO, answer.substr(1) + "\n") ? 0 : 1;
}

}  // namespace flotilla
