// Bytes of anybody as messages: to a worker, and as the reply to a call.
#include <flotilla/code.hpp>
#include <flotilla/worker.hpp>

using namespace flotilla;

namespace {

constexpr std::uint64_t limit = 1 << 20;

struct MemorySource {
  const std::uint8_t* data;
  std::size_t left;
  bool read_header(unsigned char (&out)[wire::header_size]) {
    if (left == 0) return false;
    iovec part{out, sizeof out};
    read(&part, 1);
    return true;
  }
  void read(iovec* parts, int count) {
    for (int i = 0; i < count; ++i) {
      if (left < parts[i].iov_len) throw ChannelClosed("short");
      if (parts[i].iov_len) std::memcpy(parts[i].iov_base, data, parts[i].iov_len);
      data += parts[i].iov_len;
      left -= parts[i].iov_len;
    }
  }
};

WorkerProgram& program() {
  static WorkerProgram* made = [] {
    auto* p = new WorkerProgram;
    p->set_max_message_bytes(limit);
    p->function("rows", 1, [](double x, std::string_view text, bool flag, std::int64_t& out, std::string& same) {
      out = static_cast<std::int64_t>(text.size()) + flag;
      same = text;
      return x > 0 ? 0 : -1;
    });
    p->function("whole", 2, [](std::span<const float> in, std::span<double> out, InOut<std::span<std::int32_t>> both) {
      for (std::size_t i = 0; i < in.size(); ++i) out[i] = static_cast<double>(in[i]), both[i] = 0;
      return 0;
    });
    p->function("set_working_directory", [](std::string_view) { return 0; });
    return p;
  }();
  return *made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1 || size > 32 * 1024) return 0;  // fits a socket's buffer
  bool as_reply = data[0] & 1;
  ++data, --size;
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return 0;
  ::send(pair[1], data, size, MSG_NOSIGNAL);
  ::shutdown(pair[1], SHUT_WR);
  if (as_reply) {
    RemoteCode code(pair[0], {.max_message_bytes = limit});
    try {
      std::vector<double> into_this(3);
      code.call<std::vector<std::string>, std::vector<float>>(FunctionName("f", 7), rows(3), into(into_this));
      code.call<bool>(no_result_code("g"), 1);
    } catch (const std::runtime_error&) {
      // what a program sees
    }
  } else {
    MemorySource source{data, size};
    wire::Message message;
    bool whole = true;
    std::uint64_t rows = 0, messages = 0;
    try {
      while (wire::receive(source, message, limit)) rows += static_cast<std::uint64_t>(message.header.call_count), ++messages;
      if (rows > 1000 || messages > 20) whole = false;  // nobody reads the replies: they must fit the socket's buffer
    } catch (const std::runtime_error&) {
      whole = false;
    }
    if (whole) program().serve(pair[0]);
  }
  ::close(pair[0]);
  ::close(pair[1]);
  return 0;
}
