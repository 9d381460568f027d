#include "client/amuse/jobs.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "client/amuse/core/home_line.hpp"
#include "client/amuse/core/names.hpp"
#include "client/amuse/core/runner_pieces.hpp"
#include "flotilla/message.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::amuse {
namespace fs = std::filesystem;
namespace {

constexpr auto look_again = std::chrono::milliseconds(250);  // whether the script is still there
constexpr auto last_patience = std::chrono::seconds(30);     // for what an ending job still sends

[[noreturn]] void fail_with(ErrorCode code, std::string message, std::string hint = {}) {
  FlotillaError::Details details;
  details.code = code;
  details.message = std::move(message);
  details.hint = std::move(hint);
  throw FlotillaError(details);
}

template <class Map>
auto& find(Map& map, int id, const char* what) {
  const auto it = map.find(id);
  if (it == map.end()) fail_with(ErrorCode::not_found, std::string("there is no ") + what + " job " + std::to_string(id));
  return it->second;
}

FolderFiles files_of(const std::string& folder, const char* what) {
  FolderFiles found{folder, {}};
  std::error_code problem;
  for (fs::recursive_directory_iterator it(folder, problem), end; !problem && it != end; it.increment(problem)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) found.files.push_back(fs::relative(it->path(), folder).string());
  }
  if (problem) fail_with(ErrorCode::not_found, std::string(what) + " " + folder + " cannot be read: " + problem.message());
  return found;
}

}  // namespace

// Writes a file under a name of its own first: under its true name it is whole.
class FollowedJob::Receiver final : public PieceSink {
 public:
  Receiver(const std::shared_ptr<Output>& out, fs::path folder) : out_(out), folder_(std::move(folder)) {}
  ~Receiver() override {
    if (file_) ::unlink(part().c_str());
  }
  void on_output(std::string_view bytes) override {
    if (out_) out_->write(bytes);
  }
  void on_value(std::string_view bytes) override {
    if (!value) value.emplace();
    value->append(bytes);
  }
  void on_file_begin(const std::string& path, unsigned mode) override {
    if (folder_.empty()) throw MessageError("the job sent a file that nobody asked for");
    path_ = folder_ / path;
    mode_ = mode;
    std::error_code problem;
    fs::create_directories(path_.parent_path(), problem);
    file_.reset(::open(part().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!file_) fail("cannot write");
  }
  void on_file_bytes(std::string_view bytes) override {
    while (!bytes.empty()) {
      const ssize_t count = ::write(file_.get(), bytes.data(), bytes.size());
      if (count < 0 && errno != EINTR) fail("cannot write");
      if (count > 0) bytes.remove_prefix(static_cast<std::size_t>(count));
    }
  }
  void on_file_end() override {
    if (::fchmod(file_.get(), static_cast<mode_t>(mode_)) != 0 || ::rename(part().c_str(), path_.c_str()) != 0) fail("cannot finish");
    file_.reset();
  }
  std::optional<std::string> value;

 private:
  std::string part() const { return path_.string() + ".part"; }
  [[noreturn]] void fail(const char* doing) const {
    throw MessageError(std::string(doing) + " " + path_.string() + ": " + std::strerror(errno));
  }
  const std::shared_ptr<Output>& out_;
  fs::path folder_, path_;
  unsigned mode_ = 0;
  unique_fd file_;
};

FollowedJob::FollowedJob(Job job, std::shared_ptr<Output> standard_output, std::shared_ptr<Output> standard_error, fs::path folder)
    : job_(std::move(job)), thread_([this, out = std::move(standard_output), err = std::move(standard_error), folder = std::move(folder)] {
        follow(out, err, folder);
      }) {}

FollowedJob::~FollowedJob() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, last_patience, [this] { return over_; });
  }
  stop_.request_stop();
  thread_.join();
}

void FollowedJob::follow(const std::shared_ptr<Output>& out, const std::shared_ptr<Output>& err, const fs::path& folder) {
  Receiver receiver(out, folder);
  RunnerPieces pieces(receiver);
  HomeLine home;
  std::string trouble;
  try {
    const auto take = [&](int stream, std::string_view bytes) {
      if (stream == 1) {
        try {
          pieces.take(bytes);
        } catch (const MessageError& error) {
          trouble = error.what();
        }
        return;
      }
      const auto rest = home.take(bytes);
      if (err && !rest.empty()) err->write(rest);
    };
    const auto exit = job_.follow(take, stop_.get_token());
    if (!exit.ok()) {
      const auto tail = without_home_line(exit.stderr_tail);
      trouble = exit.message + (tail.empty() ? "" : "\nlast lines of its stderr:\n" + tail);
    } else if (trouble.empty() && !pieces.whole()) {
      trouble = "the job ended before all that it had to send was here";
    }
  } catch (const std::exception& error) {
    trouble = error.what();
  }
  const std::lock_guard lock(mutex_);
  value_ = std::move(receiver.value);
  trouble_ = std::move(trouble);
  over_ = true;
  changed_.notify_all();
}

std::string FollowedJob::status() const {
  {
    const std::lock_guard lock(mutex_);
    if (over_) return trouble_.empty() ? "DONE" : "FAILED";
  }
  const auto state = job_.info().state;
  return has_ended(state) ? "RUNNING" : job_status(state);  // what it left is still coming
}

void FollowedJob::wait(const std::function<bool()>& given_up) const {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, look_again, [this] { return over_; }))
    if (given_up()) fail_with(ErrorCode::canceled, "the script has gone while a job was waited for");
}

void FollowedJob::cancel() { job_.cancel(); }

std::string FollowedJob::value() const {
  const std::lock_guard lock(mutex_);
  if (!value_) fail_with(ErrorCode::job_failed, trouble_.empty() ? "the job has no value" : trouble_);
  return *value_;
}

std::string FollowedJob::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

int Jobs::submit(const Daemon& daemon, const ScriptRow& row, const std::string& root, bool debug, Outputs& outputs) {
  std::vector<FolderFiles> folders{files_of(row.script_dir.empty() ? "." : row.script_dir, "script_dir")};
  if (!row.input_dir.empty()) folders.push_back(files_of(row.input_dir, "input_dir"));
  const auto spec = make_script_spec(row, folders, root, debug);
  auto out = outputs.open(row.stdout_file), err = outputs.open(row.stderr_file);
  scripts_[count_] = {row, std::make_unique<FollowedJob>(daemon.submit(spec), std::move(out), std::move(err), row.output_dir)};
  return count_++;
}

int Jobs::submit(const Daemon& daemon, const FunctionRow& row, const std::string& root, bool debug, Outputs& outputs) {
  const auto spec = make_function_spec(row, root, debug);
  auto out = outputs.open(row.stdout_file), err = outputs.open(row.stderr_file);
  functions_[count_] = {row, std::make_unique<FollowedJob>(daemon.submit(spec), std::move(out), std::move(err), fs::path())};
  return count_++;
}

const ScriptRow& Jobs::script(int id) const { return find(scripts_, id, "script").row; }
const FunctionRow& Jobs::function(int id) const { return find(functions_, id, "function").row; }
std::string Jobs::script_status(int id) const { return find(scripts_, id, "script").job->status(); }
std::string Jobs::function_status(int id) const { return find(functions_, id, "function").job->status(); }
std::string Jobs::function_value(int id, const GivenUp& given_up) const {
  const auto& job = *find(functions_, id, "function").job;
  job.wait(given_up);
  return job.value();
}

void Jobs::cancel_script(int id) {
  find(scripts_, id, "script").job->cancel();
  scripts_.erase(id);
}

void Jobs::cancel_function(int id) {
  find(functions_, id, "function").job->cancel();
  functions_.erase(id);
}

void Jobs::wait_for_scripts(const GivenUp& given_up) const {
  for (const auto& [id, entry] : scripts_) {
    entry.job->wait(given_up);
    if (const auto trouble = entry.job->trouble(); !trouble.empty())
      std::fprintf(stderr, "script job %d (%s) failed: %s\n", id, entry.row.script_name.c_str(), trouble.c_str());
  }
}

void Jobs::cancel_all() {
  const auto cancel = [](auto& jobs) {
    for (auto& [id, entry] : jobs) {
      try {
        entry.job->cancel();
      } catch (const std::exception& error) {
        std::fprintf(stderr, "job %d could not be ended: %s\n", id, error.what());
      }
    }
  };
  cancel(scripts_);
  cancel(functions_);
}

void Jobs::clear() {
  scripts_.clear();
  functions_.clear();
}

}  // namespace flotilla::amuse
