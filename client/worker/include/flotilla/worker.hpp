// For people who write codes: declare functions, the rest is done here.
//
//   #include <flotilla/worker.hpp>
//   int main(int argc, char** argv) {
//     flotilla::WorkerProgram program;
//     program.function("get_mass", [&](int index, double& mass) { ...; return 0; });           // once for each row
//     program.function("get_masses", [&](std::span<const int> index, std::span<double> mass) { ...; return 0; });  // once
//     return program.run(argc, argv);
//   }
//
// A parameter's type says what it is: a value is an input, a reference an output, InOut<T> both; the same with
// std::span<const T>, std::span<T>, InOut<std::span<T>> for a function that takes all rows at once. T: std::int32_t, std::int64_t,
// float, double, bool, strings (std::string_view in, std::string out). flotilla::Call& is the call itself (rows, units) and does not
// travel. An int that is returned is AMUSE's result code (0 = well, negative = failed); an exception becomes an error
// reply with its text. An output span is not cleared before: fill all of it.
//
// The program is started as `program [its own arguments] PORT HOST true|false`, as AMUSE does; `true` = under MPI, for which it is
// compiled with FLOTILLA_WORKER_MPI: rank 0 has the channel, all ranks run every function with the same inputs, rank 0's outputs count.
#pragma once

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <netdb.h>
#include <span>
#include <tuple>
#include <type_traits>
#include <unistd.h>

#include "flotilla/message.hpp"

#ifdef FLOTILLA_WORKER_MPI
#include <mpi.h>
#endif

namespace flotilla {

// Travels both ways: *x is what came and what goes back.
template <class T>
struct InOut {
  T* value;
  T& operator*() const { return *value; }
  T* operator->() const { return value; }
};
template <class T>
struct InOut<std::span<T>> {
  std::span<T> values;
  std::span<T> operator*() const { return values; }
  T& operator[](std::size_t i) const { return values[i]; }
};

// One call while it runs.
class Call {
 public:
  std::size_t rows() const { return static_cast<std::size_t>(request_.header.call_count); }
  // As the caller sent them, one for each argument with a unit in AMUSE's order; usually none.
  std::span<const Unit> units() const { return {reinterpret_cast<const Unit*>(request_.units.data()), request_.units.size() / 9}; }
  void set_reply_units(std::vector<Unit> units) { reply_units_ = std::move(units); }

 private:
  friend class WorkerProgram;
  template <class P>
  friend struct Parameter;
  template <class T>
  friend struct Kind;
  wire::Message request_;
  wire::Block<std::int32_t> int32s_;
  wire::Block<std::int64_t> int64s_;
  wire::Block<float> float32s_;
  wire::Block<double> float64s_;
  wire::Block<bool> bools_;
  std::vector<std::string> strings_;
  std::vector<Unit> reply_units_;
};

// Where a type's items lie in a call.
template <class T>
struct Kind {
  static constexpr bool known = false;
};
#define FLOTILLA_KIND(T, WIRE, BLOCK)                               \
  template <>                                                       \
  struct Kind<T> {                                                  \
    static constexpr bool known = true;                             \
    static constexpr wire::Type type = wire::WIRE;                  \
    using Stored = T;                                               \
    static T* in(Call& call) { return call.request_.BLOCK.data(); } \
    static T* out(Call& call) { return call.BLOCK##_.data(); }      \
  };
FLOTILLA_KIND(std::int32_t, int32_type, int32s)
FLOTILLA_KIND(std::int64_t, int64_type, int64s)
FLOTILLA_KIND(float, float32_type, float32s)
FLOTILLA_KIND(double, float64_type, float64s)
FLOTILLA_KIND(bool, bool_type, bools)
#undef FLOTILLA_KIND
template <>
struct Kind<std::string_view> {
  static constexpr bool known = true;
  static constexpr wire::Type type = wire::string_type;
  static std::string_view* in(Call& call) { return call.request_.strings.data(); }
};
template <>
struct Kind<std::string> {
  static constexpr bool known = true;
  static constexpr wire::Type type = wire::string_type;
  static std::string_view* in(Call& call) { return call.request_.strings.data(); }
  static std::string* out(Call& call) { return call.strings_.data(); }
};

// What a parameter of a declared function is. `In`/`out` are the argument's place among those of its type; fetched before
// the function runs, stored after it.
template <class P>
struct Parameter {
  using T = std::remove_cvref_t<P>;
  static_assert(Kind<T>::known,
                "a parameter must be int32_t, int64_t, float, double, bool, a string, a span of these, InOut<> of these, or Call&");
  static_assert(!std::is_rvalue_reference_v<P>);
  static constexpr bool is_output = std::is_lvalue_reference_v<P> && !std::is_const_v<std::remove_reference_t<P>>;
  static constexpr bool travels = true, in = !is_output, out = is_output, array = false;
  static constexpr wire::Type type = Kind<T>::type;
  T value{};
  void fetch(Call& call, std::size_t first, std::size_t, std::size_t row) {
    if constexpr (in) value = T(Kind<T>::in(call)[first * call.rows() + row]);
  }
  P get() { return static_cast<P>(value); }
  void store(Call& call, std::size_t first, std::size_t row) {
    if constexpr (out) Kind<T>::out(call)[first * call.rows() + row] = std::move(value);
  }
};
template <class T>
struct Parameter<T*> {  // AMUSE's C codes write outputs as pointers
  static_assert(Kind<T>::known && !std::is_const_v<T>, "a pointer is an output of a known type");
  static constexpr bool travels = true, in = false, out = true, array = false;
  static constexpr wire::Type type = Kind<T>::type;
  T value{};
  void fetch(Call&, std::size_t, std::size_t, std::size_t) {}
  T* get() { return &value; }
  void store(Call& call, std::size_t first, std::size_t row) { Kind<T>::out(call)[first * call.rows() + row] = std::move(value); }
};
template <class T>
struct Parameter<InOut<T>> {
  static_assert(Kind<T>::known);
  static constexpr bool travels = true, in = true, out = true, array = false;
  static constexpr wire::Type type = Kind<T>::type;
  T value{};
  void fetch(Call& call, std::size_t first, std::size_t, std::size_t row) { value = T(Kind<T>::in(call)[first * call.rows() + row]); }
  InOut<T> get() { return {&value}; }
  void store(Call& call, std::size_t first, std::size_t row) { Kind<T>::out(call)[first * call.rows() + row] = std::move(value); }
};
template <class T>
struct Parameter<std::span<const T>> {
  static_assert(Kind<T>::known && !std::is_same_v<T, std::string>, "strings come in as std::span<const std::string_view>");
  static constexpr bool travels = true, in = true, out = false, array = true;
  static constexpr wire::Type type = Kind<T>::type;
  std::span<const T> value;
  void fetch(Call& call, std::size_t first, std::size_t, std::size_t) { value = {Kind<T>::in(call) + first * call.rows(), call.rows()}; }
  std::span<const T> get() { return value; }
  void store(Call&, std::size_t, std::size_t) {}
};
template <class T>
requires(!std::is_const_v<T>) struct Parameter<std::span<T>> {
  static_assert(Kind<T>::known && !std::is_same_v<T, std::string_view>, "strings go out as std::span<std::string>");
  static constexpr bool travels = true, in = false, out = true, array = true;
  static constexpr wire::Type type = Kind<T>::type;
  std::span<T> value;
  void fetch(Call& call, std::size_t, std::size_t first, std::size_t) { value = {Kind<T>::out(call) + first * call.rows(), call.rows()}; }
  std::span<T> get() { return value; }
  void store(Call&, std::size_t, std::size_t) {}
};
template <class T>
struct Parameter<InOut<std::span<T>>> {
  static_assert(Kind<T>::known && !std::is_same_v<T, std::string_view>);
  static constexpr bool travels = true, in = true, out = true, array = true;
  static constexpr wire::Type type = Kind<T>::type;
  std::span<T> value;
  void fetch(Call& call, std::size_t first_in, std::size_t first_out, std::size_t) {
    value = {Kind<T>::out(call) + first_out * call.rows(), call.rows()};
    std::copy_n(Kind<T>::in(call) + first_in * call.rows(), call.rows(), value.begin());
  }
  InOut<std::span<T>> get() { return {value}; }
  void store(Call&, std::size_t, std::size_t) {}
};
template <>
struct Parameter<Call&> {
  static constexpr bool travels = false, in = false, out = false, array = false;
  static constexpr wire::Type type = wire::int32_type;
  Call* value = nullptr;
  void fetch(Call& call, std::size_t, std::size_t, std::size_t) { value = &call; }
  Call& get() { return *value; }
  void store(Call&, std::size_t, std::size_t) {}
};

class WorkerProgram {
 public:
  // What is not declared is answered with an error; the functions that AMUSE calls on every code are there from the start
  // and may be declared again.
  WorkerProgram() {
    function("initialize_code", [] { return 0; });
    function("cleanup_code", [] { return 0; });
    function("commit_parameters", [] { return 0; });
    function("recommit_parameters", [] { return 0; });
    function("set_working_directory", [](const std::string& directory) { return ::chdir(directory.c_str()) == 0 ? 0 : -1; });
    function("get_working_directory", [](std::string& directory) {
      char* name = ::getcwd(nullptr, 0);
      if (!name) return -1;
      directory = name;
      std::free(name);
      return 0;
    });
    // Seconds of 1e-6: how long the other MPI ranks sleep between two looks for a call. 0 = they wait in MPI, at full load.
    function("internal__get_message_polling_interval", [this](std::int32_t& interval) {
      interval = polling_interval_us_;
      return 0;
    });
    function("internal__set_message_polling_interval", [this](std::int32_t interval) {
      if (interval < 0) return -1;
      polling_interval_us_ = interval;
      return 0;
    });
    // Codes that talk to one another over MPI ports: not offered, and said so.
    for (const char* name : {"internal__open_port", "internal__accept_on_port", "internal__connect_to_port",
                             "internal__activate_communicator", "internal__become_code"})
      refuse(name, "this worker has no MPI ports");
    function("flotilla_describe", [this](std::string& functions) {
      for (auto& [id, entry] : functions_)
        if (!entry.signature.empty()) functions += entry.name + ": " + entry.signature + "\n";
      return 0;
    });
    builtin_ = false;
  }
  WorkerProgram(const WorkerProgram&) = delete;
  WorkerProgram& operator=(const WorkerProgram&) = delete;

  template <class F>
  WorkerProgram& function(std::string_view name, F&& f) {
    return function(name, wire::function_id(name), std::forward<F>(f));
  }
  // With an id set by hand.
  template <class F>
  WorkerProgram& function(std::string_view name, std::int32_t id, F&& f) {
    declare(name, id, std::function{std::forward<F>(f)});
    return *this;
  }

  void set_max_message_bytes(std::uint64_t bytes) { max_message_bytes_ = bytes; }

  // The program's own arguments: those before PORT HOST FLAG.
  std::span<char* const> arguments() const { return arguments_; }
  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  // The connected socket, for a function that takes long and wants to see its caller go: POLLRDHUP. Rank 0's, while calls are served; else -1.
  int channel() const { return channel_; }

  // Returns the exit code: 0 when told to stop and when the caller closed the channel.
  int run(int argc, char** argv) {
    if (argc < 4) {
      std::fprintf(
          stderr,
          "%s is a worker: it is started as '%s PORT HOST true|false' by a pilot or by AMUSE's sockets channel, and connects there.\n"
          "(Being spawned by MPI, without arguments, is not offered.)\n",
          argv[0], argv[0]);
      return 64;
    }
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a line that is printed is seen while the worker runs
    arguments_ = {argv + 1, static_cast<std::size_t>(argc - 4)};
    std::string_view port = argv[argc - 3], host = argv[argc - 2], flag = argv[argc - 1];
    if (flag != "true" && flag != "false") {
      std::fprintf(stderr, "%s: the last argument says whether MPI is used, 'true' or 'false', not '%s'\n", argv[0], argv[argc - 1]);
      return 64;
    }
    bool mpi = flag == "true";
#ifdef FLOTILLA_WORKER_MPI
    if (mpi) {
      int provided = 0;
      MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
      MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
      MPI_Comm_size(MPI_COMM_WORLD, &ranks_);
      mpi_ = true;
    }
#endif
    int code = 1;
    try {
      int fd = -1;
      if (rank_ == 0) fd = connect_to(std::string(port), std::string(host));
      code = serve(fd);
      if (fd >= 0) ::close(fd);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
#ifdef FLOTILLA_WORKER_MPI
      if (mpi_) MPI_Abort(MPI_COMM_WORLD, 1);
#endif
    }
#ifdef FLOTILLA_WORKER_MPI
    if (mpi_) MPI_Finalize();
#else
    (void)mpi;  // built without: the flag only says how the program was launched
#endif
    return code;
  }

  // Answers calls on a connected socket until told to stop (0) or the peer closes (0); a stream that is out of step is
  // answered with an error and ends it (1). Ranks other than 0 give -1.
  int serve(int fd) {
    std::unique_ptr<wire::FdStream> stream;
    if (rank_ == 0) stream = std::make_unique<wire::FdStream>(fd);
    channel_ = rank_ == 0 ? fd : -1;
    Call call;
    while (true) {
      Next next = receive(stream.get(), call);
      if (next == Next::closed) return 0;
      if (next == Next::broken) return 1;
      wire::Header reply{wire::native_big_endian, false, call.request_.header.call_id, call.request_.header.function_id,
                         call.request_.header.call_count};
      bool stop = reply.function_id == wire::stop_id;
      std::string error;
      const Entry* entry = nullptr;
      call.reply_units_.clear();
      if (!stop) {
        auto found = functions_.find(reply.function_id);
        if (found == functions_.end()) {
          error = "unknown function id " + std::to_string(reply.function_id);
        } else {
          entry = &found->second;
          error = execute(*entry, call);
        }
      }
      error = agree_on(std::move(error));
      if (rank_ == 0) {
        try {
          send_reply(*stream, reply, stop || !error.empty() ? nullptr : entry, call, error);
        } catch (const ChannelClosed&) {
          tell_others(Next::closed);
          return 0;
        }
      }
      if (stop) return 0;
    }
  }

 private:
  enum class Next : int { call, closed, broken };

  struct Entry {
    std::string name;
    std::string signature;
    bool builtin = false;
    std::array<std::uint32_t, wire::type_count> in{}, out{};  // items of each type for one row
    std::function<void(Call&)> invoke;
  };

  template <class R, class... P>
  void declare(std::string_view name, std::int32_t id, std::function<R(P...)> f) {
    using Result = std::remove_cvref_t<R>;
    static_assert(std::is_void_v<R> || Kind<Result>::known, "a function returns nothing or one of the types that travel");
    constexpr bool array = (false || ... || Parameter<P>::array);
    static_assert(((!array || Parameter<P>::array || !Parameter<P>::travels) && ...), "either all parameters are spans, or none");
    Entry entry;
    entry.name = name;
    entry.builtin = builtin_;
    constexpr std::size_t n = sizeof...(P);
    std::array<std::uint32_t, n> first_in{}, first_out{};
    std::string inputs, outputs;
    if constexpr (!std::is_void_v<R>) {
      ++entry.out[Kind<Result>::type];
      if (!std::is_same_v<Result, std::int32_t>) outputs = std::string("result ") + wire::type_names[Kind<Result>::type];
    } else {
      outputs = "result none";
    }
    [[maybe_unused]] auto add = [](std::string& list, const char* type) {
      if (!list.empty()) list += ", ";
      list += type;
    };
    [[maybe_unused]] std::size_t i = 0;
    (
        [&] {
          if (Parameter<P>::travels) {
            const char* type = wire::type_names[Parameter<P>::type];
            if (Parameter<P>::in) first_in[i] = entry.in[Parameter<P>::type]++, add(inputs, type);
            if (Parameter<P>::out) first_out[i] = entry.out[Parameter<P>::type]++, add(outputs, type);
          }
          ++i;
        }(),
        ...);
    entry.signature = inputs + (inputs.empty() ? "->" : " ->") + (outputs.empty() ? "" : " " + outputs);
    entry.invoke = [f = std::move(f), first_in, first_out](Call& call) {
      std::size_t rows = call.rows();
      auto once = [&]<std::size_t... I>(std::index_sequence<I...>, std::size_t row, std::size_t copies) {
        std::tuple<Parameter<P>...> parameters;
        (std::get<I>(parameters).fetch(call, first_in[I], first_out[I], row), ...);
        if constexpr (std::is_void_v<R>) {
          (void)copies;
          f(std::get<I>(parameters).get()...);
        } else {
          R result = f(std::get<I>(parameters).get()...);
          std::fill_n(Kind<Result>::out(call) + row, copies, result);  // a result is the first of its type
        }
        (std::get<I>(parameters).store(call, first_out[I], row), ...);
      };
      if constexpr (array) {
        once(std::index_sequence_for<P...>{}, 0, rows);
      } else {
        for (std::size_t row = 0; row < rows; ++row) once(std::index_sequence_for<P...>{}, row, 1);
      }
    };
    insert(id, std::move(entry));
  }

  void refuse(std::string_view name, std::string why) {
    Entry entry;
    entry.name = name;
    entry.builtin = true;
    entry.invoke = [why = std::move(why)](Call&) { throw std::runtime_error(why); };
    insert(wire::function_id(name), std::move(entry));
  }

  void insert(std::int32_t id, Entry entry) {
    auto found = functions_.find(id);
    if (id == wire::stop_id) throw std::invalid_argument(entry.name + ": function id 0 ends the worker");
    if (found != functions_.end() && !found->second.builtin)
      throw std::invalid_argument("functions " + found->second.name + " and " + entry.name + " have the same id " + std::to_string(id) +
                                  "; give one of them an id by hand");
    functions_[id] = std::move(entry);
  }

  // The error's text, empty when the function ran.
  std::string execute(const Entry& entry, Call& call) {
    try {
      std::uint64_t rows = call.rows(), reply_bytes = 0;
      bool refused = entry.signature.empty();
      for (unsigned t = 0; t < wire::type_count && !refused; ++t) {
        if (static_cast<std::uint64_t>(call.request_.header.counts[t]) != entry.in[t] * rows)
          return entry.name + " takes " + std::to_string(entry.in[t] * rows) + " items of " + wire::type_names[t] + " for " +
                 std::to_string(rows) + " rows, the call has " + std::to_string(call.request_.header.counts[t]) + " (" + entry.name + ": " +
                 entry.signature + ")";
        wire::header_count(entry.out[t] * rows, wire::type_names[t]);
        reply_bytes += entry.out[t] * rows * wire::type_sizes[t];
      }
      wire::check_size(reply_bytes, max_message_bytes_);
      call.int32s_.resize(entry.out[wire::int32_type] * rows);
      call.int64s_.resize(entry.out[wire::int64_type] * rows);
      call.float32s_.resize(entry.out[wire::float32_type] * rows);
      call.float64s_.resize(entry.out[wire::float64_type] * rows);
      call.bools_.resize(entry.out[wire::bool_type] * rows);
      call.strings_.assign(entry.out[wire::string_type] * rows, {});
      entry.invoke(call);
      return {};
    } catch (const std::exception& error) {
      return entry.name + ": " + (*error.what() ? error.what() : "failed");
    } catch (...) {
      return entry.name + ": failed with an exception that is no std::exception";
    }
  }

  void send_reply(wire::FdStream& stream, wire::Header reply, const Entry* entry, Call& call, const std::string& error) {
    packed_.clear();
    iovec parts[9];
    int used = 1;
    auto add = [&](const void* data, std::size_t bytes) {
      if (bytes > 0) parts[used++] = {const_cast<void*>(data), bytes};
    };
    if (!error.empty()) {
      reply.error = true;
      packed_.add(error);
      reply.counts[wire::string_type] = 1;
    } else if (entry) {
      std::uint64_t rows = call.rows();
      for (unsigned t = 0; t < wire::type_count; ++t) reply.counts[t] = static_cast<std::int32_t>(entry->out[t] * rows);
      reply.units = wire::header_count(call.reply_units_.size() * 9, "units");
      add(call.int32s_.data(), call.int32s_.size() * 4);
      add(call.int64s_.data(), call.int64s_.size() * 8);
      add(call.float32s_.data(), call.float32s_.size() * 4);
      add(call.float64s_.data(), call.float64s_.size() * 8);
      add(call.bools_.data(), call.bools_.size());
      for (auto& string : call.strings_) packed_.add(string);
    }
    add(packed_.lengths.data(), packed_.lengths.size() * 4);
    add(packed_.text.data(), packed_.text.size());
    if (error.empty()) add(call.reply_units_.data(), call.reply_units_.size() * sizeof(Unit));
    unsigned char raw[wire::header_size];
    wire::format_header(reply, raw);
    parts[0] = {raw, sizeof raw};
    stream.write(parts, used);
  }

  // Takes the next call; with MPI rank 0 hands it on.
  Next receive(wire::FdStream* stream, Call& call) {
    Next next = Next::call;
    if (rank_ == 0) {
      try {
        if (!wire::receive(*stream, call.request_, max_message_bytes_)) next = Next::closed;
      } catch (const ChannelClosed&) {
        next = Next::closed;
      } catch (const MessageError& error) {
        std::fprintf(stderr, "worker: %s\n", error.what());
        wire::Header reply{wire::native_big_endian, false, call.request_.header.call_id, call.request_.header.function_id,
                           call.request_.header.call_count};
        try {
          send_reply(*stream, reply, nullptr, call, error.what());
        } catch (const std::exception&) {
          // the caller is gone too: nobody to tell
        }
        next = Next::broken;
      }
    }
    return share(next, call);
  }

#ifdef FLOTILLA_WORKER_MPI
  struct Shared {
    int next;
    wire::Header header;
    std::uint64_t text;
  };

  static void broadcast(void* data, std::size_t bytes) {
    constexpr std::size_t step = std::size_t{1} << 30;  // MPI counts are ints
    for (std::size_t at = 0; at < bytes; at += step)
      MPI_Bcast(static_cast<char*>(data) + at, static_cast<int>(std::min(step, bytes - at)), MPI_BYTE, 0, MPI_COMM_WORLD);
  }

  Next share(Next next, Call& call) {
    if (!mpi_ || ranks_ == 1) return next;
    auto& m = call.request_;
    Shared shared{static_cast<int>(next), m.header, m.strings.empty() ? 0 : m.text.size()};
    if (polling_interval_us_ > 0) {
      MPI_Request request;
      MPI_Ibcast(&shared, sizeof shared, MPI_BYTE, 0, MPI_COMM_WORLD, &request);
      for (int done = 0; true;) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done) break;
        ::usleep(static_cast<useconds_t>(polling_interval_us_));
      }
    } else {
      MPI_Bcast(&shared, sizeof shared, MPI_BYTE, 0, MPI_COMM_WORLD);
    }
    next = static_cast<Next>(shared.next);
    if (next != Next::call) return next;
    if (rank_ != 0) {
      m.header = shared.header;
      m.int32s.resize(m.header.counts[wire::int32_type]);
      m.int64s.resize(m.header.counts[wire::int64_type]);
      m.float32s.resize(m.header.counts[wire::float32_type]);
      m.float64s.resize(m.header.counts[wire::float64_type]);
      m.bools.resize(m.header.counts[wire::bool_type]);
      m.lengths.resize(m.header.counts[wire::string_type]);
      m.text.resize(shared.text);
      m.units.resize(m.header.units);
    }
    broadcast(m.int32s.data(), m.int32s.size() * 4);
    broadcast(m.int64s.data(), m.int64s.size() * 8);
    broadcast(m.float32s.data(), m.float32s.size() * 4);
    broadcast(m.float64s.data(), m.float64s.size() * 8);
    broadcast(m.bools.data(), m.bools.size());
    broadcast(m.lengths.data(), m.lengths.size() * 4);
    broadcast(m.text.data(), shared.text);
    broadcast(m.units.data(), m.units.size() * 8);
    if (rank_ != 0) {
      m.strings.clear();
      wire::split_text(m.lengths.data(), m.lengths.size(), m.text.data(),
                       [&](std::size_t, std::string_view text) { m.strings.push_back(text); });
    }
    return next;
  }

  void tell_others(Next next) {
    Call nothing;
    share(next, nothing);
  }

  // The error of the lowest rank that has one.
  std::string agree_on(std::string error) {
    if (!mpi_ || ranks_ == 1) return error;
    int mine = error.empty() ? ranks_ : rank_, failed = ranks_;
    MPI_Allreduce(&mine, &failed, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (failed == ranks_ || failed == 0) return error;
    int length = static_cast<int>(error.size());
    MPI_Bcast(&length, 1, MPI_INT, failed, MPI_COMM_WORLD);
    error.resize(static_cast<std::size_t>(length));
    MPI_Bcast(error.data(), length, MPI_CHAR, failed, MPI_COMM_WORLD);
    return "rank " + std::to_string(failed) + ": " + error;
  }
#else
  Next share(Next next, Call&) { return next; }
  void tell_others(Next) {}
  std::string agree_on(std::string error) { return error; }
#endif

  static int connect_to(const std::string& port, const std::string& host) {
    int number = 0;
    try {
      std::size_t used = 0;
      number = std::stoi(port, &used);
      if (used != port.size()) number = 0;
    } catch (const std::exception&) {
      number = 0;
    }
    if (number < 1 || number > 65535) throw std::runtime_error("'" + port + "' is no port number");
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(number));
    // Without the resolver where it is not needed: a static program may have none.
    if (host == "localhost") {
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
#ifdef FLOTILLA_WORKER_NO_RESOLVER
      throw std::runtime_error("this worker takes addresses only, and '" + host + "' is a name");
#else
      addrinfo hints{}, *found = nullptr;
      hints.ai_family = AF_INET;
      hints.ai_socktype = SOCK_STREAM;
      if (int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0)
        throw std::runtime_error("cannot find host '" + host + "': " + gai_strerror(error));
      address.sin_addr = reinterpret_cast<sockaddr_in*>(found->ai_addr)->sin_addr;
      freeaddrinfo(found);
#endif
    }
    int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) throw std::system_error(errno, std::generic_category(), "cannot make a socket");
    int error = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
    if (error == EINTR) {  // it goes on by itself
      pollfd waiting{fd, POLLOUT, 0};
      while (::poll(&waiting, 1, -1) < 0 && errno == EINTR) {}
      socklen_t size = sizeof error;
      getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error != 0) {
      ::close(fd);
      throw std::system_error(error, std::generic_category(), "cannot connect to " + host + ":" + port);
    }
    return fd;
  }

  std::map<std::int32_t, Entry> functions_;
  wire::PackedStrings packed_;
  std::span<char* const> arguments_;
  std::uint64_t max_message_bytes_ = wire::default_max_bytes;
  std::int32_t polling_interval_us_ = 0;
  int rank_ = 0, ranks_ = 1;
  int channel_ = -1;
  bool mpi_ = false;
  bool builtin_ = true;
};

}  // namespace flotilla
