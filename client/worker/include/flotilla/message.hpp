// The AMUSE message format, for both sides of a channel: 44 bytes of header, then one block for each type.
// Header only, nothing but the standard library and POSIX sockets.
#pragma once

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <new>
#include <poll.h>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <sys/uio.h>
#include <system_error>
#include <utility>
#include <vector>

namespace flotilla {

// What came is not a message, or not the expected one: the stream cannot be used any further unless told otherwise.
struct MessageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The other side is gone.
struct ChannelClosed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A unit of one argument as AMUSE encodes it: a factor, the number of the unit system (1 = SI in AMUSE's list), and the powers
// of the system's base units. All zero = no unit.
struct Unit {
  double factor = 0;
  double system = 0;
  double powers[7] = {};
};
static_assert(sizeof(Unit) == 9 * sizeof(double));

namespace wire {

enum Type : unsigned { int32_type, int64_type, float32_type, float64_type, bool_type, string_type, type_count };
inline constexpr const char* type_names[type_count] = {"int32", "int64", "float32", "float64", "bool", "string"};
// Strings are counted here by their length words.
inline constexpr std::size_t type_sizes[type_count] = {4, 8, 4, 8, 1, 4};

inline constexpr std::size_t header_size = 44;
inline constexpr std::int32_t stop_id = 0;  // the call that ends a worker

// The longest message that is taken: more is a stream out of step, or must be split into several calls.
inline constexpr std::uint64_t default_max_bytes = std::uint64_t{16} << 30;

struct Header {
  bool big_endian = false;  // the sender's order
  bool error = false;
  std::int32_t call_id = 0;
  std::int32_t function_id = 0;
  std::int32_t call_count = 1;
  std::int32_t counts[type_count] = {};  // items in all
  std::int32_t units = 0;                // doubles
};

inline constexpr bool native_big_endian = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;

constexpr std::uint32_t crc32(std::string_view text) {
  std::uint32_t crc = 0xFFFFFFFFu;
  for (char c : text) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? 0xEDB88320u : 0u);
  }
  return ~crc;
}
static_assert(crc32("amuse") == 0xC0CC9367u);

// abs(signed32(crc32(name)))
constexpr std::int32_t function_id(std::string_view name) {
  std::uint32_t crc = crc32(name);
  return static_cast<std::int32_t>((crc & 0x80000000u) ? 0u - crc : crc);
}

inline void swap_bytes(void* data, std::size_t count, std::size_t size) {
  auto* bytes = static_cast<unsigned char*>(data);
  if (size == 4) {
    for (std::size_t i = 0; i < count; ++i, bytes += 4) {
      std::uint32_t v;
      std::memcpy(&v, bytes, 4);
      v = __builtin_bswap32(v);
      std::memcpy(bytes, &v, 4);
    }
  } else if (size == 8) {
    for (std::size_t i = 0; i < count; ++i, bytes += 8) {
      std::uint64_t v;
      std::memcpy(&v, bytes, 8);
      v = __builtin_bswap64(v);
      std::memcpy(bytes, &v, 8);
    }
  }
}

inline void format_header(const Header& header, unsigned char (&out)[header_size]) {
  std::int32_t words[11] = {0, header.call_id, header.function_id, header.call_count};
  for (unsigned t = 0; t < type_count; ++t) words[4 + t] = header.counts[t];
  words[10] = header.units;
  if (header.big_endian != native_big_endian) swap_bytes(words, 11, 4);
  std::memcpy(out, words, header_size);
  out[0] = header.big_endian;
  out[1] = header.error;
  out[2] = header.units != 0;
  out[3] = 0;
}

inline Header parse_header(const unsigned char (&in)[header_size]) {
  if (in[0] > 1 || in[1] > 1)
    throw MessageError("the channel is out of step: a message cannot begin with the bytes " + std::to_string(in[0]) + ", " +
                       std::to_string(in[1]));
  std::int32_t words[11];
  std::memcpy(words, in, header_size);
  Header header;
  header.big_endian = in[0];
  header.error = in[1];
  if (header.big_endian != native_big_endian) swap_bytes(words, 11, 4);
  header.call_id = words[1];
  header.function_id = words[2];
  header.call_count = words[3];
  if (header.call_count < 0) throw MessageError("the channel is out of step: a message says " + std::to_string(words[3]) + " rows");
  for (unsigned t = 0; t < type_count; ++t) {
    header.counts[t] = words[4 + t];
    if (words[4 + t] < 0)
      throw MessageError(std::string("the channel is out of step: a message says ") + std::to_string(words[4 + t]) + " items of " +
                         type_names[t]);
  }
  header.units = words[10];
  if (header.units < 0) throw MessageError("the channel is out of step: a message says " + std::to_string(words[10]) + " units");
  return header;
}

// Bytes after the header, without the text of strings, which is known only when their lengths are.
inline std::uint64_t body_bytes(const Header& header) {
  std::uint64_t bytes = std::uint64_t(header.units) * 8;
  for (unsigned t = 0; t < type_count; ++t) bytes += std::uint64_t(header.counts[t]) * type_sizes[t];
  return bytes;
}

inline void check_size(std::uint64_t bytes, std::uint64_t max_bytes) {
  if (bytes > max_bytes)
    throw MessageError("a message of " + std::to_string(bytes) + " bytes is longer than the " + std::to_string(max_bytes) +
                       " that are taken; split the call, or raise max_message_bytes");
}

// A count as it goes into a header.
inline std::int32_t header_count(std::uint64_t items, const char* what) {
  if (items > INT32_MAX)
    throw MessageError("a message cannot hold " + std::to_string(items) + " items of " + what +
                       " (2147483647 at most); split the call into several");
  return static_cast<std::int32_t>(items);
}

// An array that is not initialised and keeps its memory: large messages would spend their time in page faults.
template <class T>
class Block {
 public:
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_.get()[i]; }
  const T& operator[](std::size_t i) const { return data_.get()[i]; }

  // Contents are lost.
  void resize(std::size_t count) {
    if (count > capacity_) {
      data_.reset();
      capacity_ = 0;
      data_.reset(static_cast<T*>(std::malloc(count * sizeof(T))));
      if (!data_) {
        size_ = 0;
        throw MessageError("no memory for a message's " + std::to_string(count * sizeof(T)) + " bytes");
      }
      capacity_ = count;
    }
    size_ = count;
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

// One message as it was received. The blocks are in the receiver's byte order, type by type.
struct Message {
  Header header;
  Block<std::int32_t> int32s;
  Block<std::int64_t> int64s;
  Block<float> float32s;
  Block<double> float64s;
  Block<bool> bools;
  std::vector<std::string_view> strings;  // into text
  Block<std::int32_t> lengths;
  Block<char> text;
  Block<double> units;
};

inline void normalise_bools(void* data, std::size_t count) {
  auto* bytes = static_cast<unsigned char*>(data);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = bytes[i] != 0;
}

// The length of the text block: every string and its NUL.
inline std::uint64_t text_bytes(const std::int32_t* lengths, std::size_t count, std::uint64_t max_bytes) {
  std::uint64_t bytes = count;
  for (std::size_t i = 0; i < count; ++i) {
    if (lengths[i] < 0) throw MessageError("the channel is out of step: a string of " + std::to_string(lengths[i]) + " bytes");
    bytes += static_cast<std::uint64_t>(lengths[i]);
  }
  check_size(bytes, max_bytes);
  return bytes;
}

// Calls take(index, text) for each string.
template <class Take>
void split_text(const std::int32_t* lengths, std::size_t count, const char* text, Take&& take) {
  for (std::size_t i = 0; i < count; ++i) {
    auto length = static_cast<std::size_t>(lengths[i]);
    if (text[length] != '\0') throw MessageError("the channel is out of step: a string does not end where its length says");
    take(i, std::string_view(text, length));
    text += length + 1;
  }
}

// Reads the body that belongs to message.header. Source: void read(iovec*, int count), all bytes or an exception.
template <class Source>
void receive_body(Source& source, Message& message, std::uint64_t max_bytes) {
  const Header& header = message.header;
  check_size(body_bytes(header), max_bytes);
  message.int32s.resize(header.counts[int32_type]);
  message.int64s.resize(header.counts[int64_type]);
  message.float32s.resize(header.counts[float32_type]);
  message.float64s.resize(header.counts[float64_type]);
  message.bools.resize(header.counts[bool_type]);
  message.lengths.resize(header.counts[string_type]);
  message.units.resize(header.units);
  iovec parts[7];
  int used = 0;
  auto add = [&](auto& block) {
    if (block.size() > 0) parts[used++] = {block.data(), block.size() * sizeof(*block.data())};
  };
  add(message.int32s);
  add(message.int64s);
  add(message.float32s);
  add(message.float64s);
  add(message.bools);
  add(message.lengths);
  bool has_strings = message.lengths.size() > 0;
  if (!has_strings) add(message.units);
  if (used > 0) source.read(parts, used);
  bool swap = header.big_endian != native_big_endian;
  if (swap) {
    swap_bytes(message.int32s.data(), message.int32s.size(), 4);
    swap_bytes(message.int64s.data(), message.int64s.size(), 8);
    swap_bytes(message.float32s.data(), message.float32s.size(), 4);
    swap_bytes(message.float64s.data(), message.float64s.size(), 8);
    swap_bytes(message.lengths.data(), message.lengths.size(), 4);
  }
  normalise_bools(message.bools.data(), message.bools.size());
  message.strings.clear();
  if (has_strings) {
    message.text.resize(text_bytes(message.lengths.data(), message.lengths.size(), max_bytes));
    used = 0;
    add(message.text);
    add(message.units);
    source.read(parts, used);
    split_text(message.lengths.data(), message.lengths.size(), message.text.data(),
               [&](std::size_t, std::string_view text) { message.strings.push_back(text); });
  }
  if (swap) swap_bytes(message.units.data(), message.units.size(), 8);
}

// False: the peer closed between two messages. Source also has bool read_header(unsigned char (&)[44]).
template <class Source>
bool receive(Source& source, Message& message, std::uint64_t max_bytes = default_max_bytes) {
  unsigned char raw[header_size];
  if (!source.read_header(raw)) return false;
  message.header = parse_header(raw);
  receive_body(source, message, max_bytes);
  return true;
}

// Strings as they travel.
struct PackedStrings {
  std::vector<std::int32_t> lengths;
  std::string text;

  void clear() {
    lengths.clear();
    text.clear();
  }
  void add(std::string_view string) {
    if (string.size() > INT32_MAX) throw MessageError("a string of " + std::to_string(string.size()) + " bytes is too long for a message");
    lengths.push_back(static_cast<std::int32_t>(string.size()));
    text.append(string);
    text.push_back('\0');
  }
};

// A connected stream socket, which it does not own. Short messages are taken with one read.
class FdStream {
 public:
  explicit FdStream(int fd) : fd_(fd) {
    int one = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);  // fails on a unix socket, which needs none
    int flags = fcntl(fd_, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK)) fcntl(fd_, F_SETFL, flags & ~O_NONBLOCK);
  }

  int fd() const { return fd_; }
  bool has_input() const { return end_ > begin_; }
  std::uint64_t bytes_read() const { return bytes_read_; }
  std::uint64_t bytes_written() const { return bytes_written_; }

  bool read_header(unsigned char (&out)[header_size]) {
    if (begin_ == end_) begin_ = end_ = 0;
    while (end_ - begin_ < header_size) {
      if (begin_ > 0) {
        std::memmove(buffer_, buffer_ + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
      }
      ssize_t n = ::recv(fd_, buffer_ + end_, sizeof buffer_ - end_, 0);
      if (n > 0) {
        end_ += static_cast<std::size_t>(n);
        bytes_read_ += static_cast<std::uint64_t>(n);
      } else if (n == 0) {
        if (end_ == begin_) return false;
        throw ChannelClosed("the channel ended in the middle of a message");
      } else {
        wait_or_throw(POLLIN, "read from");
      }
    }
    std::memcpy(out, buffer_ + begin_, header_size);
    begin_ += header_size;
    return true;
  }

  void read(iovec* parts, int count) {
    while (count > 0 && begin_ < end_) {
      std::size_t n = std::min(parts->iov_len, end_ - begin_);
      if (n > 0) std::memcpy(parts->iov_base, buffer_ + begin_, n);
      begin_ += n;
      advance(parts, count, n);
    }
    while (skip_empty(parts, count)) {
      msghdr message{};
      message.msg_iov = parts;
      message.msg_iovlen = static_cast<std::size_t>(std::min(count, IOV_MAX));
      ssize_t n = ::recvmsg(fd_, &message, 0);
      if (n > 0) {
        bytes_read_ += static_cast<std::uint64_t>(n);
        advance(parts, count, static_cast<std::size_t>(n));
      } else if (n == 0) {
        throw ChannelClosed("the channel ended in the middle of a message");
      } else {
        wait_or_throw(POLLIN, "read from");
      }
    }
  }

  // One system call unless the socket's buffer is full.
  void write(iovec* parts, int count) {
    while (skip_empty(parts, count)) {
      msghdr message{};
      message.msg_iov = parts;
      message.msg_iovlen = static_cast<std::size_t>(std::min(count, IOV_MAX));
      ssize_t n = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
      if (n >= 0) {
        bytes_written_ += static_cast<std::uint64_t>(n);
        advance(parts, count, static_cast<std::size_t>(n));
      } else {
        wait_or_throw(POLLOUT, "write to");
      }
    }
  }

 private:
  static bool skip_empty(iovec*& parts, int& count) {
    while (count > 0 && parts->iov_len == 0) ++parts, --count;
    return count > 0;
  }
  static void advance(iovec*& parts, int& count, std::size_t n) {
    while (count > 0 && n >= parts->iov_len) {
      n -= parts->iov_len;
      ++parts, --count;
    }
    if (count > 0 && n > 0) {
      parts->iov_base = static_cast<char*>(parts->iov_base) + n;
      parts->iov_len -= n;
    }
  }
  void wait_or_throw(short events, const char* doing) {
    int error = errno;
    if (error == EINTR) return;
    if (error == EAGAIN || error == EWOULDBLOCK) {
      pollfd waiting{fd_, events, 0};
      ::poll(&waiting, 1, -1);
      return;
    }
    if (error == EPIPE || error == ECONNRESET)
      throw ChannelClosed(std::string("cannot ") + doing + " the channel: " + std::strerror(error));
    throw std::system_error(error, std::generic_category(), std::string("cannot ") + doing + " the channel");
  }

  int fd_;
  std::size_t begin_ = 0, end_ = 0;  // of what is in buffer_
  std::uint64_t bytes_read_ = 0, bytes_written_ = 0;
  unsigned char buffer_[4096];  // most calls fit; a longer body is read to where it belongs
};

}  // namespace wire
}  // namespace flotilla
