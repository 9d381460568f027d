#include <catch2/catch.hpp>
#include <flotilla/message.hpp>

#include <fstream>
#include <sstream>
#include <thread>

using namespace flotilla;

namespace {

// Bytes that are there already; running out is the end of the channel.
struct MemorySource {
  std::string bytes;
  std::size_t at = 0;
  bool read_header(unsigned char (&out)[wire::header_size]) {
    if (at == bytes.size()) return false;
    iovec part{out, sizeof out};
    read(&part, 1);
    return true;
  }
  void read(iovec* parts, int count) {
    for (int i = 0; i < count; ++i) {
      if (bytes.size() - at < parts[i].iov_len) throw ChannelClosed("short");
      std::memcpy(parts[i].iov_base, bytes.data() + at, parts[i].iov_len);
      at += parts[i].iov_len;
    }
  }
};

struct Vector {
  std::string name, bytes, order;
  int call = 0, function = 0, rows = 0, error = 0;
  std::vector<std::int32_t> int32s;
  std::vector<std::int64_t> int64s;
  std::vector<float> float32s;
  std::vector<double> float64s;
  std::vector<int> bools;
  std::vector<std::string> strings;
  std::vector<double> units;
};

template <class T>
void append(std::istream& in, std::vector<T>& to) {
  T value;
  while (in >> value) to.push_back(value);
}

std::vector<Vector> read_vectors() {
  std::ifstream file(AMUSE_MESSAGES);
  std::vector<Vector> all;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string key;
    words >> key;
    if (key == "message") {
      words >> all.emplace_back().name;
      continue;
    }
    if (all.empty() || key.empty() || key[0] == '#') continue;
    auto& now = all.back();
    if (key == "bytes") {
      std::string hex;
      while (words >> hex && hex[0] != '#') now.bytes.push_back(static_cast<char>(std::stoi(hex, nullptr, 16)));
    } else if (key == "is") {
      std::string item;
      while (words >> item) {
        auto cut = item.find('=');
        std::string name = item.substr(0, cut), value = item.substr(cut + 1);
        if (name == "call") now.call = std::stoi(value);
        if (name == "function") now.function = std::stoi(value);
        if (name == "rows") now.rows = std::stoi(value);
        if (name == "error") now.error = std::stoi(value);
        if (name == "order") now.order = value;
      }
    } else if (key == "int32") append(words, now.int32s);
    else if (key == "int64") append(words, now.int64s);
    else if (key == "float32") append(words, now.float32s);
    else if (key == "float64") append(words, now.float64s);
    else if (key == "bool") append(words, now.bools);
    else if (key == "unit") append(words, now.units);
    else if (key == "string") now.strings.push_back(line.size() > 7 ? line.substr(7) : "");
  }
  return all;
}

template <class T, class U>
bool same(const wire::Block<T>& block, const std::vector<U>& values) {
  if (block.size() != values.size()) return false;
  for (std::size_t i = 0; i < values.size(); ++i)
    if (static_cast<U>(block[i]) != values[i]) return false;
  return true;
}

}  // namespace

TEST_CASE("messages as recorded are read to their values") {
  auto vectors = read_vectors();
  REQUIRE(vectors.size() >= 12);
  for (auto& vector : vectors) {
    INFO(vector.name);
    MemorySource source{vector.bytes};
    wire::Message message;
    REQUIRE(wire::receive(source, message));
    CHECK(source.at == vector.bytes.size());
    CHECK(message.header.call_id == vector.call);
    CHECK(message.header.function_id == vector.function);
    CHECK(message.header.call_count == vector.rows);
    CHECK(message.header.error == (vector.error != 0));
    CHECK(message.header.big_endian == (vector.order == "big"));
    CHECK(same(message.int32s, vector.int32s));
    CHECK(same(message.int64s, vector.int64s));
    CHECK(same(message.float32s, vector.float32s));
    CHECK(same(message.float64s, vector.float64s));
    CHECK(same(message.bools, vector.bools));
    CHECK(std::vector<std::string>(message.strings.begin(), message.strings.end()) == vector.strings);
    CHECK(same(message.units, vector.units));
    unsigned char raw[wire::header_size];
    wire::format_header(message.header, raw);
    CHECK(std::string(reinterpret_cast<char*>(raw), sizeof raw) == vector.bytes.substr(0, wire::header_size));
    CHECK_FALSE(wire::receive(source, message));

    for (std::size_t cut = 1; cut < vector.bytes.size(); ++cut) {
      MemorySource shorter{vector.bytes.substr(0, cut)};
      CHECK_THROWS_AS(wire::receive(shorter, message), ChannelClosed);
    }
  }
}

TEST_CASE("function ids are AMUSE's") {
  STATIC_REQUIRE(wire::function_id("initialize_code") == 1768994498);
  STATIC_REQUIRE(wire::function_id("commit_parameters") == 2069478464);
  STATIC_REQUIRE(wire::function_id("recommit_parameters") == 1744145122);
  STATIC_REQUIRE(wire::function_id("get_worker_port") == 773643964);
}

TEST_CASE("what is no message is refused with a reason") {
  auto vectors = read_vectors();
  auto find = [&](const char* name) {
    for (auto& vector : vectors)
      if (vector.name == name) return vector.bytes;
    throw std::runtime_error(name);
  };
  wire::Message message;
  auto refused = [&](std::string bytes, std::uint64_t limit, const char* why) {
    MemorySource source{std::move(bytes)};
    CHECK_THROWS_WITH(wire::receive(source, message, limit), Catch::Contains(why));
  };
  auto set_word = [](std::string bytes, int word, std::int32_t value) {
    std::memcpy(bytes.data() + 4 * word, &value, 4);
    return bytes;
  };
  auto all = find("all_types");
  refused("GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", 1 << 20, "cannot begin with the bytes 71, 69");
  refused(set_word(all, 3, -1), 1 << 20, "says -1 rows");
  refused(set_word(all, 7, -5), 1 << 20, "says -5 items of float64");
  refused(set_word(all, 10, -9), 1 << 20, "says -9 units");
  refused(set_word(all, 7, 1 << 20), 1 << 20, "split the call");
  auto text = find("strings_not_ascii");
  auto length_at = static_cast<int>(wire::header_size) / 4;
  refused(set_word(text, length_at, -2), 1 << 20, "a string of -2 bytes");
  refused(set_word(text, length_at, 6), 1 << 20, "does not end where its length says");
  refused(set_word(text, length_at, 1 << 30), 1 << 20, "longer than the 1048576");
  CHECK_THROWS_WITH(wire::header_count(std::uint64_t{1} << 31, "float64"), Catch::Contains("2147483648 items of float64"));
}

TEST_CASE("a message comes whole in whatever pieces, and from a socket that does not block") {
  auto vectors = read_vectors();
  int pair[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
  std::string all;
  for (auto& vector : vectors) all += vector.bytes;
  std::thread writer([&] {
    std::size_t at = 0, step = 1;
    while (at < all.size()) {
      ssize_t n = ::send(pair[1], all.data() + at, std::min(step, all.size() - at), MSG_NOSIGNAL);
      if (n > 0) at += static_cast<std::size_t>(n);
      step = step % 61 + 1;
    }
    ::close(pair[1]);
  });
  wire::FdStream stream(pair[0]);
  wire::Message message;
  for (auto& vector : vectors) {
    INFO(vector.name);
    REQUIRE(wire::receive(stream, message));
    CHECK(message.header.function_id == vector.function);
    CHECK(same(message.float64s, vector.float64s));
    CHECK(std::vector<std::string>(message.strings.begin(), message.strings.end()) == vector.strings);
  }
  CHECK_FALSE(wire::receive(stream, message));
  writer.join();
  CHECK(stream.bytes_read() == all.size());
  ::close(pair[0]);
}
