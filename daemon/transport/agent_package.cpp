#include "daemon/transport/agent_package.hpp"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <atomic>
#include <csignal>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"

extern "C" const char flotilla_unpacker_begin[], flotilla_unpacker_end[];
asm(".pushsection .rodata\n"
    ".global flotilla_unpacker_begin, flotilla_unpacker_end\n"
    "flotilla_unpacker_begin: .incbin \"" FLOTILLA_UNPACKER
    "\"\n"
    "flotilla_unpacker_end: .byte 0\n"
    ".popsection\n");

namespace flotilla::daemon {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t largest_agent = 256u << 20;  // a debug build has some 100 MiB
constexpr int quick_level = 3;                     // 60 ms for 14 MB
constexpr int thorough_level = 19;                 // 15 % less to send, takes seconds
constexpr std::size_t piece_bytes = 128u << 10;    // between two looks at whether to stop

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};

// Empty when told to stop, or without memory.
std::string pack(std::string_view data, int level, const std::atomic<bool>& stop) {
  std::unique_ptr<ZSTD_CCtx, FreeContext> context(ZSTD_createCCtx());
  if (!context) return {};
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  ZSTD_CCtx_setPledgedSrcSize(context.get(), data.size());
  std::string out(ZSTD_compressBound(data.size()), '\0');
  ZSTD_outBuffer output{out.data(), out.size(), 0};
  for (std::size_t at = 0; at < data.size() && !stop;) {
    const auto count = std::min(piece_bytes, data.size() - at);
    ZSTD_inBuffer input{data.data() + at, count, 0};
    const bool last = at + count == data.size();
    std::size_t left = 1;
    while (!stop && (last ? left != 0 : input.pos < input.size)) {
      left = ZSTD_compressStream2(context.get(), &output, &input, last ? ZSTD_e_end : ZSTD_e_continue);
      if (ZSTD_isError(left)) return {};
    }
    at += count;
  }
  if (stop) return {};
  out.resize(output.pos);
  return out;
}

// One thread, for one file at a time.
class Packer {
 public:
  ~Packer() { end(); }
  void start(std::string data, fs::path target) {
    std::lock_guard lock(mutex_);
    if (running_.exchange(true)) return;
    if (thread_.joinable()) thread_.join();
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this, data = std::move(data), target = std::move(target)] {
      setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 19);
      const auto packed = pack(data, thorough_level, stop_);
      if (!packed.empty())
        if (auto written = write_file(target, packed); !written) spdlog::warn("cannot keep the packed agent: {}", written.error().text());
      running_ = false;
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  void finish() {
    std::lock_guard lock(mutex_);
    if (thread_.joinable()) thread_.join();
  }
  void end() {
    stop_ = true;
    finish();
  }

 private:
  std::mutex mutex_;
  std::thread thread_;
  std::atomic<bool> running_{false}, stop_{false};
};

Packer& packer() {
  static Packer one;
  return one;
}

// The content of a file packed earlier, if it is what the description says.
bool is_packed_from(const std::string& packed, const AgentDescription& description) {
  if (ZSTD_getFrameContentSize(packed.data(), packed.size()) != description.size) return false;
  std::string data(description.size, '\0');
  const auto size = ZSTD_decompress(data.data(), data.size(), packed.data(), packed.size());
  return !ZSTD_isError(size) && size == data.size() && to_hex(sha256(data)) == description.sha256;
}

}  // namespace

std::string_view unpacker() { return {flotilla_unpacker_begin, static_cast<std::size_t>(flotilla_unpacker_end - flotilla_unpacker_begin)}; }

Result<AgentDescription> describe_agent(const fs::path& agent) {
  static std::mutex mutex;
  static std::map<std::tuple<std::string, ino_t, off_t, std::int64_t>, AgentDescription> known;
  struct stat info {};
  if (stat(agent.c_str(), &info) != 0) return fail(errno_error(Code::failed_precondition, "find the agent " + agent.string()));
  const auto key = std::make_tuple(agent.string(), info.st_ino, info.st_size,
                                   static_cast<std::int64_t>(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec);
  std::lock_guard lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  auto data = read_file(agent, largest_agent);
  if (!data) return fail(data.error());
  AgentDescription description;
  description.machine = machine_of_elf(*data);
  if (description.machine.empty())
    return fail(Code::failed_precondition, agent.string() + " is no program for a processor that is known here", "install Flotilla again");
  description.sha256 = to_hex(sha256(*data));
  description.size = data->size();
  description.unpacker_size = unpacker().size();
  known.clear();  // one agent is in use; an earlier build of it is not wanted again
  known.emplace(key, description);
  return description;
}

Result<std::string> packed_agent(const fs::path& agent, const AgentDescription& description, const fs::path& cache_dir) {
  const auto cached = cache_dir / ("flotilla-agent-" + description.sha256 + ".zst");
  for (const auto& file : {cached, fs::path(agent.string() + ".zst")}) {
    std::error_code ignored;
    if (!fs::exists(file, ignored)) continue;
    if (auto packed = read_file(file, largest_agent); packed && is_packed_from(*packed, description)) return packed;
    if (file == cached) fs::remove(file, ignored);
  }
  auto data = read_file(agent, largest_agent);
  if (!data) return fail(data.error());
  if (to_hex(sha256(*data)) != description.sha256)
    return fail(Code::failed_precondition, agent.string() + " has just been replaced", "try again", Retry::yes);
  static const std::atomic<bool> go_on{false};
  auto packed = pack(*data, quick_level, go_on);
  if (packed.empty()) return fail(Code::resource_exhausted, "cannot compress " + agent.string() + ": no memory");
  if (auto made = make_private_dir(cache_dir); made) {
    std::error_code ignored;
    for (const auto& old : fs::directory_iterator(cache_dir, ignored))
      if (old.path().filename().string().starts_with("flotilla-agent-") && old.path() != cached) fs::remove(old.path(), ignored);
    packer().start(std::move(*data), cached);
  }
  return packed;
}

void finish_packing() { packer().finish(); }

}  // namespace flotilla::daemon
