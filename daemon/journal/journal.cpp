#include "daemon/journal/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "proto/base/log.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/random.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::daemon {
namespace {

constexpr int format_version = 1;
constexpr auto sync_delay = std::chrono::milliseconds(10);  // what a machine that loses power may lose
constexpr std::size_t events_per_row = 4096;                // bounds one row; a busy daemon writes a group as one row

struct Database {
  sqlite3* handle = nullptr;
  ~Database() { sqlite3_close(handle); }
};

struct Statement {
  sqlite3_stmt* handle = nullptr;
  ~Statement() { sqlite3_finalize(handle); }
};

// Follows each commit with an fsync of the WAL, at most one in 10 ms, away from the daemon's thread.
class Syncer {
 public:
  explicit Syncer(std::string wal) : wal_(std::move(wal)), thread_([this] { run(); }) {}
  ~Syncer() {
    {
      std::lock_guard lock(mutex_);
      over_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  void wanted() {
    {
      std::lock_guard lock(mutex_);
      if (std::exchange(wanted_, true)) return;
    }
    wake_.notify_one();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ || over_; });
      if (over_ && !wanted_) return;
      if (!over_) wake_.wait_for(lock, sync_delay, [this] { return over_; });
      wanted_ = false;
      lock.unlock();
      // No lock of SQLite's is on the WAL file itself: opening and closing it here breaks none.
      if (unique_fd fd(open(wal_.c_str(), O_RDONLY | O_CLOEXEC)); fd && fdatasync(fd.get()) != 0)
        spdlog::error("the journal cannot be brought to disk: {}", errno_error(Code::resource_exhausted, "fdatasync").message);
      lock.lock();
    }
  }

  std::string wal_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool wanted_ = false, over_ = false;
  std::thread thread_;
};

class SqliteJournal final : public Journal {
 public:
  Status open(const std::filesystem::path& dir, Durability durability) {
    if (auto status = make_private_dir(dir); !status) return status;
    lock_.reset(::open((dir / "journal.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock_) return fail(errno_error(Code::permission_denied, "open " + (dir / "journal.lock").string()));
    if (flock(lock_.get(), LOCK_EX | LOCK_NB) != 0)
      return fail(Code::already_exists, "another daemon uses " + dir.string(), "flotilla daemon status shows it");
    const std::string file = (dir / "journal.db").string();
    if (sqlite3_open_v2(file.c_str(), &database_.handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr) !=
        SQLITE_OK)
      return failed("open " + file);
    for (const char* sql :
         {"PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL",
          durability == Durability::disk ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=4000",
          "CREATE TABLE IF NOT EXISTS settings(name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
          // One row holds the events of one commit, each with its length in front.
          "CREATE TABLE IF NOT EXISTS events(id INTEGER PRIMARY KEY, batch BLOB NOT NULL)"})
      if (auto status = run(sql); !status) return status;
    const std::string version = get("format");
    if (version.empty()) {
      if (auto status = put("format", std::to_string(format_version)); !status) return status;
    } else if (std::atoi(version.c_str()) > format_version) {
      return fail(Code::version_mismatch,
                  fmt::format("{} has format {}, this program knows {}: a newer flotilla wrote it", file, version, format_version),
                  "use that version, or another state directory (FLOTILLA_STATE_DIR)");
    }
    instance_ = get("instance");
    if (instance_.size() != 16) {
      instance_ = random_bytes(16);
      if (auto status = put("instance", instance_); !status) return status;
    }
    if (sqlite3_prepare_v3(database_.handle, "INSERT INTO events(batch) VALUES(?)", -1, SQLITE_PREPARE_PERSISTENT, &insert_.handle,
                           nullptr) != SQLITE_OK)
      return failed("prepare");
    if (durability == Durability::process) syncer_ = std::make_unique<Syncer>(file + "-wal");
    return {};
  }

  const std::string& instance() const override { return instance_; }

  Status replay(const std::function<void(const v1::Event&)>& each) override {
    Statement select;
    if (sqlite3_prepare_v2(database_.handle, "SELECT id, batch FROM events ORDER BY id", -1, &select.handle, nullptr) != SQLITE_OK)
      return failed("read the journal");
    v1::Event event;
    int step;
    while ((step = sqlite3_step(select.handle)) == SQLITE_ROW) {
      const auto* data = static_cast<const char*>(sqlite3_column_blob(select.handle, 1));
      std::size_t left = static_cast<std::size_t>(sqlite3_column_bytes(select.handle, 1));
      while (left) {
        std::uint32_t size = 0;
        if (left >= 4) std::memcpy(&size, data, 4);
        if (left < 4 || size > left - 4 || !event.ParseFromArray(data + 4, static_cast<int>(size)))
          return fail(Code::internal, fmt::format("the journal is damaged at row {}", sqlite3_column_int64(select.handle, 0)),
                      "restore it from a copy, or move it away to begin anew");
        each(event);
        data += 4 + size;
        left -= 4 + size;
      }
    }
    if (step != SQLITE_DONE) return failed("read the journal");
    return {};
  }

  Status append(const std::vector<v1::Event>& events) override {
    if (events.empty()) return {};
    const bool many = events.size() > events_per_row;
    if (many)
      if (auto status = run("BEGIN IMMEDIATE"); !status) return status;
    for (std::size_t from = 0; from < events.size(); from += events_per_row) {
      batch_.clear();
      for (std::size_t i = from; i < std::min(events.size(), from + events_per_row); ++i) {
        const auto size = static_cast<std::uint32_t>(events[i].ByteSizeLong());
        batch_.append(reinterpret_cast<const char*>(&size), 4);
        events[i].AppendToString(&batch_);
      }
      sqlite3_bind_blob(insert_.handle, 1, batch_.data(), static_cast<int>(batch_.size()), SQLITE_STATIC);
      const int step = sqlite3_step(insert_.handle);
      sqlite3_reset(insert_.handle);
      if (step != SQLITE_DONE) {
        auto status = failed("write the journal");
        if (many) (void)run("ROLLBACK");
        return status;
      }
    }
    if (many)
      if (auto status = run("COMMIT"); !status) {
        (void)run("ROLLBACK");
        return status;
      }
    if (syncer_) syncer_->wanted();
    return {};
  }

  std::string get(const std::string& name) override {
    Statement select;
    sqlite3_prepare_v2(database_.handle, "SELECT value FROM settings WHERE name=?", -1, &select.handle, nullptr);
    sqlite3_bind_text(select.handle, 1, name.data(), static_cast<int>(name.size()), SQLITE_STATIC);
    if (sqlite3_step(select.handle) != SQLITE_ROW) return {};
    return {static_cast<const char*>(sqlite3_column_blob(select.handle, 0)),
            static_cast<std::size_t>(sqlite3_column_bytes(select.handle, 0))};
  }
  Status put(const std::string& name, const std::string& value) override {
    Statement insert;
    sqlite3_prepare_v2(database_.handle, "INSERT OR REPLACE INTO settings VALUES(?,?)", -1, &insert.handle, nullptr);
    sqlite3_bind_text(insert.handle, 1, name.data(), static_cast<int>(name.size()), SQLITE_STATIC);
    sqlite3_bind_blob(insert.handle, 2, value.data(), static_cast<int>(value.size()), SQLITE_STATIC);
    if (sqlite3_step(insert.handle) != SQLITE_DONE) return failed("write the journal");
    if (syncer_) syncer_->wanted();
    return {};
  }

 private:
  Status run(const char* sql) {
    if (sqlite3_exec(database_.handle, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return failed("write the journal");
    return {};
  }
  Status failed(const std::string& doing) {
    const int code = sqlite3_errcode(database_.handle);
    const bool space = code == SQLITE_FULL || code == SQLITE_IOERR;
    return fail(space ? Code::resource_exhausted : Code::internal, fmt::format("cannot {}: {}", doing, sqlite3_errmsg(database_.handle)),
                space ? "make room on its disk; nothing more is accepted until then" : "", space ? Retry::yes : Retry::no);
  }

  unique_fd lock_;
  Database database_;
  Statement insert_;
  std::string instance_;
  std::string batch_;
  std::unique_ptr<Syncer> syncer_;
};

}  // namespace

Result<std::unique_ptr<Journal>> Journal::open(const std::filesystem::path& dir, Durability durability) {
  auto journal = std::make_unique<SqliteJournal>();
  if (auto status = journal->open(dir, durability); !status) return fail(status.error());
  return journal;
}

}  // namespace flotilla::daemon
