// The calling side: a code worker over its connected socket.
//
//   flotilla::RemoteCode gravity(worker);                                 // a flotilla::Worker, or the descriptor of any connected stream socket
//   double energy = gravity.call<double>("get_total_energy");            // outputs as template arguments, inputs as arguments
//   auto [x, y] = gravity.call<double, double>("get_position_2d", 7);    // several: a tuple
//   gravity.call("set_mass", ids, masses);                               // vectors, arrays, spans: one message, no copies
//   gravity.call("get_mass", ids, flotilla::into(masses));               // a reply straight into memory that is there
//   auto step = gravity.async<>("evolve_model", 10.0);                   // sent now; step.get() waits for the reply
//
// Inputs are std::int32_t, std::int64_t, float, double, bool, strings, or contiguous ranges of them, all of the same length; scalars
// beside ranges are repeated. Outputs are in the function's order: first the template arguments, then into(...).
// As in AMUSE, a function's int32 result code is expected first: negative throws CodeError, others are in last_result().
// A worker's refusal throws CallError, the end of the channel ChannelClosed, a reply that does not fit MessageError.
// One thread at a time for each RemoteCode; several codes compute at once by async and wait_any.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <concepts>
#include <exception>
#include <functional>
#include <initializer_list>
#include <optional>
#include <ranges>
#include <span>
#include <tuple>
#include <type_traits>
#include <unistd.h>

#include "flotilla/message.hpp"

namespace flotilla {

// The worker answered with an error: its text.
struct CallError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The function ran and returned a negative result code.
struct CodeError : std::runtime_error {
  CodeError(const std::string& function, std::int32_t result, std::size_t row)
      : std::runtime_error("function " + function + " returned " + std::to_string(result) + " (row " + std::to_string(row) + ")"),
        result(result), row(row) {}
  std::int32_t result;
  std::size_t row;
};

// A function's name; with an id set by hand, or without AMUSE's result code, where it has none.
struct FunctionName {
  template <class T>
  requires std::is_convertible_v<T, std::string_view> FunctionName(const T& name) : name(name), id(wire::function_id(this->name)) {}
  FunctionName(std::string_view name, std::int32_t id, bool result_code = true) : name(name), id(id), result_code(result_code) {}
  std::string_view name;
  std::int32_t id;
  bool result_code = true;
};
inline FunctionName no_result_code(std::string_view name) { return {name, wire::function_id(name), false}; }

template <class T>
struct Into {
  std::span<T> values;
};
// An output that goes to memory of the caller: a range (one item for each row) or a variable.
template <std::ranges::contiguous_range R>
requires std::ranges::sized_range<R> &&(!std::is_same_v<std::remove_cvref_t<R>, std::string>)auto into(R&& range) {
  return Into<std::ranges::range_value_t<R>>{{std::ranges::data(range), std::ranges::size(range)}};
}
template <class T>
requires std::is_arithmetic_v<T> || std::is_same_v<T, std::string> Into<T> into(T& variable) { return {{&variable, 1}}; }

// How many rows, for a call whose inputs do not tell.
struct Rows {
  std::size_t count;
};
inline Rows rows(std::size_t count) { return {count}; }

// Units of the arguments, as AMUSE encodes them.
struct WithUnits {
  std::span<const Unit> units;
};
inline WithUnits with_units(std::span<const Unit> units) { return {units}; }

struct CodeOptions {
  bool own_fd = false;                                        // close it in the end
  std::uint64_t max_message_bytes = wire::default_max_bytes;  // of replies
  std::uint64_t* counters = nullptr;                          // [3] calls, bytes to the worker, bytes from it; kept up to date
  std::function<std::string()> explain;                       // why the channel ended, asked when it has
};

namespace detail {

template <class T>
struct WireType {
  static constexpr bool known = false;
};
template <>
struct WireType<bool> {
  static constexpr bool known = true;
  static constexpr wire::Type type = wire::bool_type;
};
template <class T>
requires(std::is_integral_v<T>&& std::is_signed_v<T> && !std::is_same_v<T, char> && (sizeof(T) == 4 || sizeof(T) == 8)) struct WireType<T> {
  static constexpr bool known = true;
  static constexpr wire::Type type = sizeof(T) == 4 ? wire::int32_type : wire::int64_type;
};
template <>
struct WireType<float> {
  static constexpr bool known = true;
  static constexpr wire::Type type = wire::float32_type;
};
template <>
struct WireType<double> {
  static constexpr bool known = true;
  static constexpr wire::Type type = wire::float64_type;
};
template <class T>
requires std::is_convertible_v<const T&, std::string_view>
struct WireType<T> {
  static constexpr bool known = true;
  static constexpr wire::Type type = wire::string_type;
};

// One input of a call that is being made.
struct InputRef {
  wire::Type type = wire::type_count;  // type_count: does not travel
  const void* data = nullptr;
  std::size_t rows = 0;
  bool scalar = true;
  void (*pack)(const InputRef&, wire::PackedStrings&, std::size_t row) = nullptr;
};

// One output: where its rows go. prepare makes room once the number of rows is known.
struct OutputRef {
  wire::Type type = wire::type_count;
  void* data = nullptr;
  std::size_t rows = 0;  // of an Into
  void* container = nullptr;
  void* (*prepare)(void* container, std::size_t rows) = nullptr;
};

template <class T>
void pack_one(const InputRef& input, wire::PackedStrings& packed, std::size_t row) {
  packed.add(std::string_view(static_cast<const T*>(input.data)[input.scalar ? 0 : row]));
}

template <class T>
InputRef input_of(const T& value) {
  InputRef input;
  if constexpr (WireType<T>::known) {
    input.type = WireType<T>::type;
    input.data = &value;
    if constexpr (WireType<T>::type == wire::string_type) {
      if constexpr (std::is_array_v<T>) {
        input.data = value;
        input.pack = [](const InputRef& it, wire::PackedStrings& packed, std::size_t) {
          packed.add(std::string_view(static_cast<const char*>(it.data)));
        };
      } else {
        input.pack = pack_one<T>;
      }
    }
  } else if constexpr (std::ranges::contiguous_range<const T> && std::ranges::sized_range<const T>) {
    using Item = std::remove_cv_t<std::ranges::range_value_t<const T>>;
    static_assert(WireType<Item>::known, "an input range holds int32_t, int64_t, float, double, bool or strings");
    input.type = WireType<Item>::type;
    input.data = std::ranges::data(value);
    input.rows = std::ranges::size(value);
    input.scalar = false;
    if constexpr (WireType<Item>::type == wire::string_type) input.pack = pack_one<Item>;
  } else {
    static_assert(WireType<T>::known, "an input is int32_t, int64_t, float, double, bool, a string or a contiguous range of one of these");
  }
  return input;
}
template <class T>
InputRef input_of(const Into<T>&) {
  return {};
}
inline InputRef input_of(const Rows&) { return {}; }
inline InputRef input_of(const WithUnits&) { return {}; }

template <class T>
OutputRef output_of(const T&) {
  return {};
}
template <class T>
OutputRef output_of(const Into<T>& into) {
  static_assert(WireType<T>::known && (!WireType<T>::known || WireType<T>::type != wire::string_type || std::is_same_v<T, std::string>));
  return {WireType<T>::type, into.values.data(), into.values.size(), nullptr, nullptr};
}

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};

template <class T>
OutputRef result_of(T& value) {
  if constexpr (IsVector<T>::value) {
    using Item = typename T::value_type;
    static_assert(!std::is_same_v<Item, bool>, "std::vector<bool> has no memory to read into: use into(std::span<bool>)");
    static_assert(WireType<Item>::known);
    return {WireType<Item>::type, nullptr, 0, &value, [](void* container, std::size_t count) -> void* {
              auto& vector = *static_cast<T*>(container);
              vector.resize(count);
              return vector.data();
            }};
  } else {
    static_assert(WireType<T>::known && !std::is_same_v<T, std::string_view>,
                  "an output is int32_t, int64_t, float, double, bool, std::string or a std::vector of one of these");
    return {WireType<T>::type, &value, 1, nullptr, nullptr};
  }
}

// A call that was sent and not answered yet.
struct PendingState {
  std::string function;
  std::int32_t function_id = 0;
  std::int32_t call_id = 0;
  std::size_t rows = 1;
  bool result_code = true;
  std::span<OutputRef> outputs;
  bool done = false;
  std::int32_t result = 0;
  std::vector<Unit> units;
  std::exception_ptr error;
};

template <class... Outs>
struct TypedState : PendingState {
  std::tuple<Outs...> values{};
  std::vector<OutputRef> refs;
};

template <class... Outs>
auto unpack(std::tuple<Outs...>& values) {
  if constexpr (sizeof...(Outs) == 1) {
    return std::move(std::get<0>(values));
  } else if constexpr (sizeof...(Outs) > 1) {
    return std::move(values);
  }
}

class Connection {
 public:
  Connection(int fd, CodeOptions options) : stream_(fd), options_(std::move(options)) {}
  Connection(const Connection&) = delete;
  ~Connection() {
    if (options_.own_fd) ::close(stream_.fd());
  }

  int fd() const { return stream_.fd(); }
  bool broken() const { return broken_; }

  void send(PendingState& state, std::span<const InputRef> inputs, std::span<const Unit> units) {
    finish_pending();
    if (broken_) throw ChannelClosed("function " + state.function + " cannot be called: the channel " + broken_why_);
    wire::Header header{wire::native_big_endian};
    header.call_id = state.call_id = next_call_id_ = next_call_id_ % 1000 + 1;
    header.function_id = state.function_id;
    header.call_count = wire::header_count(state.rows, "rows");
    header.units = wire::header_count(units.size() * 9, "units");
    std::size_t of_type[wire::type_count] = {};
    for (auto& input : inputs)
      if (input.type != wire::type_count) ++of_type[input.type];
    for (unsigned t = 0; t < wire::type_count; ++t)
      header.counts[t] = wire::header_count(of_type[t] * std::uint64_t{state.rows}, wire::type_names[t]);

    parts_.clear();
    repeated_.clear();
    packed_.clear();
    unsigned char raw[wire::header_size];
    wire::format_header(header, raw);
    parts_.push_back({raw, sizeof raw});
    for (unsigned t = 0; t < wire::string_type; ++t)
      for (auto& input : inputs)
        if (input.type == t) add_numbers(input, state.rows);
    for (auto& input : inputs)
      if (input.type == wire::string_type)
        for (std::size_t row = 0; row < state.rows; ++row) input.pack(input, packed_, row);
    add(packed_.lengths.data(), packed_.lengths.size() * 4);
    add(packed_.text.data(), packed_.text.size());
    add(units.data(), units.size_bytes());
    guard(state.function, [&] { stream_.write(parts_.data(), static_cast<int>(parts_.size())); });
  }

  // Reads the reply; what goes wrong is in state.error.
  void receive(PendingState& state) {
    try {
      guard(state.function, [&] { read_reply(state); });
    } catch (...) {
      state.error = std::current_exception();
    }
    state.done = true;
    if (options_.counters) {
      auto put = [&](int i, std::uint64_t value) { std::atomic_ref(options_.counters[i]).store(value, std::memory_order_relaxed); };
      put(0, ++calls_);
      put(1, stream_.bytes_written());
      put(2, stream_.bytes_read());
    }
  }

  void set_pending(std::shared_ptr<PendingState> state) { pending_ = std::move(state); }
  void finish_pending() {
    if (auto state = std::exchange(pending_, nullptr); state && !state->done) receive(*state);
  }
  void finish(const std::shared_ptr<PendingState>& state) {
    if (!state->done) finish_pending();  // there is one at most
  }

  // True when the first bytes of the reply (or the end) are there.
  bool wait_input(int timeout_ms) {
    if (stream_.has_input()) return true;
    pollfd waiting{fd(), POLLIN, 0};
    return ::poll(&waiting, 1, timeout_ms) > 0;
  }

  std::int32_t last_result = 0;
  std::vector<Unit> last_units;

 private:
  template <class Do>
  void guard(const std::string& function, Do&& act) {
    try {
      act();
    } catch (const CallError&) {
      throw;
    } catch (const CodeError&) {
      throw;
    } catch (const ChannelClosed& error) {
      std::string why = options_.explain ? options_.explain() : std::string();
      broken_ = true;
      broken_why_ = "has ended" + (why.empty() ? std::string() : ": " + why);
      throw ChannelClosed("function " + function + ": " + error.what() + (why.empty() ? "" : ": " + why));
    } catch (const MessageError&) {
      if (!in_step_) {
        broken_ = true;
        broken_why_ = "is out of step";
      }
      throw;
    } catch (const std::exception&) {
      broken_ = true;
      broken_why_ = "failed";
      throw;
    }
  }

  void add(const void* data, std::size_t bytes) {
    if (bytes > 0) parts_.push_back({const_cast<void*>(data), bytes});
  }

  void add_numbers(const InputRef& input, std::size_t rows) {
    std::size_t size = wire::type_sizes[input.type];
    if (!input.scalar || rows == 1) {
      add(input.data, rows * size);
      return;
    }
    auto memory = std::make_unique<unsigned char[]>(rows * size);
    for (std::size_t row = 0; row < rows; ++row) std::memcpy(memory.get() + row * size, input.data, size);
    add(memory.get(), rows * size);
    repeated_.push_back(std::move(memory));
  }

  void read_reply(PendingState& state) {
    in_step_ = false;
    unsigned char raw[wire::header_size];
    if (!stream_.read_header(raw)) throw ChannelClosed("the worker's channel ended before its reply");
    wire::Header header = wire::parse_header(raw);
    wire::check_size(wire::body_bytes(header), options_.max_message_bytes);
    if (header.error) {
      wire::Message message;
      message.header = header;
      wire::receive_body(stream_, message, options_.max_message_bytes);
      in_step_ = matches(header, state);
      std::string text = message.strings.empty() ? "the worker refused the call without a reason" : std::string(message.strings[0]);
      if (!in_step_) throw MessageError("function " + state.function + ": " + text + " - code probably died, sorry.");
      throw CallError("function " + state.function + ": " + text);
    }
    if (!matches(header, state))
      throw MessageError("function " + state.function + ": the reply belongs to another call (function id " +
                         std::to_string(header.function_id) + ", call " + std::to_string(header.call_id) + " instead of " +
                         std::to_string(state.call_id) + ") - code probably died, sorry.");
    std::size_t expected[wire::type_count] = {};
    if (state.result_code) expected[wire::int32_type] += state.rows;
    for (auto& output : state.outputs)
      if (output.type != wire::type_count) expected[output.type] += state.rows;
    std::string mismatch;
    for (unsigned t = 0; t < wire::type_count; ++t)
      if (expected[t] != static_cast<std::size_t>(header.counts[t]))
        mismatch += std::string(mismatch.empty() ? "" : ", ") + std::to_string(header.counts[t]) + " items of " + wire::type_names[t] +
                    " instead of " + std::to_string(expected[t]);
    if (!mismatch.empty()) {
      wire::Message message;
      message.header = header;
      wire::receive_body(stream_, message, options_.max_message_bytes);
      in_step_ = true;
      throw MessageError("function " + state.function + ": the reply has " + mismatch +
                         (state.result_code ? " (the result code among them)" : "") +
                         "; compare the outputs with the worker's declaration");
    }

    for (auto& output : state.outputs)
      if (output.prepare) output.data = output.prepare(output.container, state.rows);
    result_codes_.resize(state.result_code ? state.rows : 0);
    parts_.clear();
    add(result_codes_.data(), result_codes_.size() * 4);
    for (unsigned t = 0; t < wire::string_type; ++t)
      for (auto& output : state.outputs)
        if (output.type == t) add(output.data, state.rows * wire::type_sizes[t]);
    lengths_.resize(static_cast<std::size_t>(header.counts[wire::string_type]));
    add(lengths_.data(), lengths_.size() * 4);
    std::vector<Unit> units(static_cast<std::size_t>((header.units + 8) / 9));
    bool has_strings = lengths_.size() > 0;
    if (!has_strings) add(units.data(), static_cast<std::size_t>(header.units) * 8);
    stream_.read(parts_.data(), static_cast<int>(parts_.size()));
    bool swap = header.big_endian != wire::native_big_endian;
    if (swap) {
      wire::swap_bytes(result_codes_.data(), result_codes_.size(), 4);
      wire::swap_bytes(lengths_.data(), lengths_.size(), 4);
    }
    for (auto& output : state.outputs) {
      if (swap && output.type < wire::bool_type) wire::swap_bytes(output.data, state.rows, wire::type_sizes[output.type]);
      if (output.type == wire::bool_type) wire::normalise_bools(output.data, state.rows);
    }
    if (has_strings) {
      text_.resize(wire::text_bytes(lengths_.data(), lengths_.size(), options_.max_message_bytes));
      parts_.clear();
      add(text_.data(), text_.size());
      add(units.data(), static_cast<std::size_t>(header.units) * 8);
      stream_.read(parts_.data(), static_cast<int>(parts_.size()));
      std::vector<std::string*> targets;
      for (auto& output : state.outputs)
        if (output.type == wire::string_type)
          for (std::size_t row = 0; row < state.rows; ++row) targets.push_back(static_cast<std::string*>(output.data) + row);
      wire::split_text(lengths_.data(), lengths_.size(), text_.data(), [&](std::size_t i, std::string_view text) { *targets[i] = text; });
    }
    if (swap) wire::swap_bytes(units.data(), static_cast<std::size_t>(header.units), 8);
    in_step_ = true;
    last_units = state.units = std::move(units);
    last_result = state.result = state.result_code && state.rows > 0 ? result_codes_[0] : 0;
    for (std::size_t row = 0; row < result_codes_.size(); ++row)
      if (result_codes_[row] < 0) {
        last_result = result_codes_[row];
        throw CodeError(state.function, result_codes_[row], row);
      }
  }

  static bool matches(const wire::Header& header, const PendingState& state) {
    return header.call_id == state.call_id && header.function_id == state.function_id &&
           static_cast<std::size_t>(header.call_count) == state.rows;
  }

  wire::FdStream stream_;
  CodeOptions options_;
  std::shared_ptr<PendingState> pending_;
  std::vector<iovec> parts_;
  std::vector<std::unique_ptr<unsigned char[]>> repeated_;
  wire::PackedStrings packed_;
  wire::Block<std::int32_t> result_codes_, lengths_;
  wire::Block<char> text_;
  std::uint64_t calls_ = 0;
  std::int32_t next_call_id_ = 0;
  bool broken_ = false;
  bool in_step_ = true;
  std::string broken_why_;
};

}  // namespace detail

// A call under way. Dropping it is allowed: the reply is then read before the next call.
class PendingCall {
 public:
  // The reply has begun to come in (get() does not wait long), or the channel ended.
  bool ready() const { return wait_for(std::chrono::milliseconds(0)); }
  bool wait_for(std::chrono::milliseconds timeout) const {
    return state_->done || connection_->wait_input(static_cast<int>(std::min<std::chrono::milliseconds::rep>(timeout.count(), INT_MAX)));
  }
  void wait() const { connection_->finish(state_); }
  int fd() const { return connection_->fd(); }  // for an event loop: readable = ready

 protected:
  PendingCall(std::shared_ptr<detail::Connection> connection, std::shared_ptr<detail::PendingState> state)
      : connection_(std::move(connection)), state_(std::move(state)) {}
  void finish() const {
    connection_->finish(state_);
    if (state_->error) std::rethrow_exception(state_->error);
  }
  std::shared_ptr<detail::Connection> connection_;
  std::shared_ptr<detail::PendingState> state_;
};

template <class... Outs>
class Pending : public PendingCall {
 public:
  // The outputs, as RemoteCode::call returns them. Once.
  auto get() {
    finish();
    return detail::unpack(static_cast<detail::TypedState<Outs...>&>(*state_).values);
  }

 private:
  friend class RemoteCode;
  using PendingCall::PendingCall;
};

// Waits until one of the calls is ready; its index, or none when the time is over (negative = no limit).
inline std::optional<std::size_t> wait_any(std::span<const PendingCall* const> calls,
                                           std::chrono::milliseconds timeout = std::chrono::milliseconds(-1)) {
  for (std::size_t i = 0; i < calls.size(); ++i)
    if (calls[i]->ready()) return i;
  std::vector<pollfd> waiting;
  for (auto* call : calls) waiting.push_back({call->fd(), POLLIN, 0});
  auto until = std::chrono::steady_clock::now() + timeout;
  while (true) {
    int left = -1;
    if (timeout.count() >= 0)
      left = static_cast<int>(std::clamp<std::chrono::milliseconds::rep>(
          std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count(), 0, INT_MAX));
    int n = ::poll(waiting.data(), waiting.size(), left);
    if (n == 0) return std::nullopt;
    for (std::size_t i = 0; n > 0 && i < waiting.size(); ++i)
      if (waiting[i].revents) return i;
    if (n < 0 && errno != EINTR) throw std::system_error(errno, std::generic_category(), "cannot wait for calls");
  }
}
inline std::optional<std::size_t> wait_any(std::initializer_list<const PendingCall*> calls,
                                           std::chrono::milliseconds timeout = std::chrono::milliseconds(-1)) {
  return wait_any(std::span(calls.begin(), calls.size()), timeout);
}

class RemoteCode {
 public:
  explicit RemoteCode(int fd, CodeOptions options = {}) : connection_(std::make_shared<detail::Connection>(fd, std::move(options))) {}
  // Of a flotilla::Worker, which must stay where it is as long as this is used: calls are counted, and errors say why it ended.
  template <class Worker>
  requires requires(Worker& worker) {
    { worker.fd() } -> std::convertible_to<int>;
    { worker.template code_options<CodeOptions>() } -> std::convertible_to<CodeOptions>;
  }
  explicit RemoteCode(Worker& worker) : RemoteCode(worker.fd(), worker.template code_options<CodeOptions>()) {}

  template <class... Outs, class... Arguments>
  auto call(const FunctionName& function, const Arguments&... arguments) {
    detail::TypedState<Outs...> state;
    start(state, function, arguments...);
    connection_->receive(state);
    if (state.error) std::rethrow_exception(state.error);
    return detail::unpack(state.values);
  }

  // Inputs are sent before it returns and may change then; into(...) memory stays the call's until the reply was taken.
  // A second call on the same code first waits for the reply of the first.
  template <class... Outs, class... Arguments>
  [[nodiscard]] Pending<Outs...> async(const FunctionName& function, const Arguments&... arguments) {
    auto state = std::make_shared<detail::TypedState<Outs...>>();
    start(*state, function, arguments...);
    connection_->set_pending(state);
    return Pending<Outs...>(connection_, state);
  }

  // Ends the worker: it answers and exits.
  void stop() { call(FunctionName("_stop_worker", wire::stop_id, false)); }

  std::int32_t last_result() const { return connection_->last_result; }  // result code of the last call (its first row)
  std::span<const Unit> last_units() const { return connection_->last_units; }
  int fd() const { return connection_->fd(); }
  bool usable() const { return !connection_->broken(); }

 private:
  template <class... Outs, class... Arguments>
  void start(detail::TypedState<Outs...>& state, const FunctionName& function, const Arguments&... arguments) {
    state.function = function.name;
    state.function_id = function.id;
    state.result_code = function.result_code;
    std::array<detail::InputRef, sizeof...(Arguments)> inputs{detail::input_of(arguments)...};
    std::array<detail::OutputRef, sizeof...(Arguments)> intos{detail::output_of(arguments)...};
    std::span<const Unit> units;
    std::optional<std::size_t> count;
    auto agree = [&](std::size_t these) {
      if (count && *count != these)
        throw std::invalid_argument("function " + state.function + " is called with ranges of " + std::to_string(*count) + " and of " +
                                    std::to_string(these) + " items");
      count = these;
    };
    [[maybe_unused]] auto take = [&](const auto& argument) {
      using T = std::remove_cvref_t<decltype(argument)>;
      if constexpr (std::is_same_v<T, Rows>) agree(argument.count);
      if constexpr (std::is_same_v<T, WithUnits>) units = argument.units;
    };
    (take(arguments), ...);
    for (auto& input : inputs)
      if (!input.scalar) agree(input.rows);
    for (auto& output : intos)
      if (output.type != wire::type_count) agree(output.rows);
    state.rows = count.value_or(1);
    state.refs.reserve(sizeof...(Outs) + sizeof...(Arguments));
    std::apply([&](auto&... value) { (state.refs.push_back(detail::result_of(value)), ...); }, state.values);
    for (auto& output : state.refs)
      if (!output.prepare && state.rows != 1)
        throw std::invalid_argument("function " + state.function + " is called for " + std::to_string(state.rows) +
                                    " rows: its outputs must be std::vector or into(range)");
    for (auto& output : intos)
      if (output.type != wire::type_count) state.refs.push_back(output);
    state.outputs = state.refs;
    connection_->send(state, inputs, units);
  }

  std::shared_ptr<detail::Connection> connection_;
};

}  // namespace flotilla
