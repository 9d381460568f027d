#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "daemon/transport/core/bootstrap.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
namespace fs = std::filesystem;

namespace {

struct Folder {
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "fl-boot-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()));
    path = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  fs::path path;
};

void put(const fs::path& file, const std::string& text, fs::perms mode = fs::perms::owner_all) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text;
  fs::permissions(file, mode);
}

// Runs the script by this machine's /bin/sh as the far side would: all on stdin. Only for conversations without an upload.
std::string run_script(const Folder& folder, const std::string& script, const std::string& path_prefix = {}) {
  const auto in = folder.path / "script", out = folder.path / "answer";
  std::ofstream(in) << script;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, in.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const std::string home = "HOME=" + (folder.path / "home").string();
  const std::string path = "PATH=" + (path_prefix.empty() ? "" : path_prefix + ":") + "/usr/bin:/bin";
  char* argv[] = {const_cast<char*>("sh"), nullptr};
  char* env[] = {const_cast<char*>(home.c_str()), const_cast<char*>(path.c_str()), nullptr};
  pid_t pid = 0;
  REQUIRE(posix_spawn(&pid, "/bin/sh", &actions, nullptr, argv, env) == 0);
  posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  std::ostringstream text;
  text << std::ifstream(out).rdbuf();
  return text.str();
}

// The same, spoken with.
class Shell {
 public:
  Shell(const Folder& folder, const std::string& path_prefix) {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fd_ = pair[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pair[1], 0);
    posix_spawn_file_actions_adddup2(&actions, pair[1], 1);
    const std::string home = "HOME=" + (folder.path / "home").string(), path = "PATH=" + path_prefix + ":/usr/bin:/bin";
    char* argv[] = {const_cast<char*>("sh"), nullptr};
    char* env[] = {const_cast<char*>(home.c_str()), const_cast<char*>(path.c_str()), nullptr};
    REQUIRE(posix_spawn(&pid_, "/bin/sh", &actions, nullptr, argv, env) == 0);
    posix_spawn_file_actions_destroy(&actions);
    close(pair[1]);
  }
  ~Shell() {
    close(fd_);
    waitpid(pid_, nullptr, 0);
  }
  void write(const std::string& text) const {
    for (std::size_t done = 0; done < text.size();) {
      const auto count = send(fd_, text.data() + done, text.size() - done, MSG_NOSIGNAL);
      REQUIRE(count > 0);
      done += static_cast<std::size_t>(count);
    }
  }
  std::optional<std::string> read_line() const {
    std::string line;
    for (char byte; recv(fd_, &byte, 1, 0) == 1; line += byte)
      if (byte == '\n') return line;
    return std::nullopt;
  }

 private:
  int fd_ = -1;
  pid_t pid_ = 0;
};

BootstrapAnswer parse(const std::string& nonce, const std::string& text) {
  BootstrapAnswer answer;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) parse_bootstrap_line(answer, nonce, line);
  return answer;
}

BootstrapRequest request_for(const Folder& folder) {
  BootstrapRequest request;
  request.agent = {"x86_64", std::string(64, 'a'), 14'000'000, 900'000};
  request.nonce = "flotilla-0123456789abcdef";
  request.scratch_dir = (folder.path / "scratch").string();
  request.instance = std::string(32, 'b');
  return request;
}

// The machine where the test runs may be another one.
std::string fake_uname(const Folder& folder, const std::string& machine) {
  put(folder.path / "bin" / "uname", "#!/bin/sh\ncase $1 in -m) echo " + machine + ";; -s) echo Linux;; -n) echo node7;; esac\n");
  return (folder.path / "bin").string();
}

const char* const fake_agent =
    "#!/bin/sh\ncase $1 in verify) echo 'intact 0.1.0+abc'; exit 0;; connect) echo \"connected $*\"; cat;; esac\n";

}  // namespace

TEST_CASE("quotes hold whatever is put between them") {
  CHECK(sh_quote("a b") == "'a b'");
  CHECK(sh_quote("it's") == "'it'\\''s'");
}

TEST_CASE("an agent that is there is found in the first place and becomes the connector") {
  Folder folder;
  auto request = request_for(folder);
  const auto agent = folder.path / "scratch" / "flotilla" / ("flotilla-agent-" + request.agent.sha256);
  put(agent, fake_agent);
  const auto text = run_script(folder, build_bootstrap_script(request), fake_uname(folder, "x86_64"));
  const auto answer = parse(request.nonce, text);
  CHECK(answer.greeted);
  CHECK(answer.system == "Linux");
  CHECK(answer.machine == "x86_64");
  CHECK(answer.node == "node7");
  CHECK(answer.uid == static_cast<std::int64_t>(getuid()));
  CHECK(std::llabs(answer.time_s - std::time(nullptr)) < 60);
  CHECK(answer.ended);
  CHECK(answer.agent == agent.string());
  CHECK(answer.agent_build == "0.1.0+abc");
  REQUIRE_FALSE(answer.places.empty());
  CHECK(answer.places[0].directory == (folder.path / "scratch" / "flotilla").string());
  CHECK(answer.places[0].free_kib > 0);
  CHECK_FALSE(answer.ready_for_unpacker);
  CHECK_THAT(text, Catch::Contains("connected connect --instance " + request.instance));
}

TEST_CASE("an agent in a later place is taken rather than sent again") {
  Folder folder;
  auto request = request_for(folder);
  const auto agent = folder.path / "home" / ".cache" / "flotilla" / ("flotilla-agent-" + request.agent.sha256);
  put(agent, fake_agent);
  const auto answer = parse(request.nonce, run_script(folder, build_bootstrap_script(request), fake_uname(folder, "amd64")));
  CHECK(answer.agent == agent.string());
  CHECK(answer.places.size() == 2);
  CHECK_FALSE(fs::exists(folder.path / "scratch" / "flotilla"));  // it was made to be tried only
}

TEST_CASE("a damaged agent is removed and the place asks for another") {
  Folder folder;
  auto request = request_for(folder);
  const auto agent = folder.path / "scratch" / "flotilla" / ("flotilla-agent-" + request.agent.sha256);
  put(agent, "#!/bin/sh\nexit 3\n");
  request.agent.unpacker_size = 0;
  const auto answer = parse(request.nonce, run_script(folder, build_bootstrap_script(request), fake_uname(folder, "x86_64")));
  CHECK(answer.damaged);
  CHECK_FALSE(fs::exists(agent));
  REQUIRE_FALSE(answer.refused.empty());
  CHECK(answer.refused[0].directory == (folder.path / "scratch" / "flotilla").string());  // nothing was sent to it
  CHECK(answer.agent.empty());
}

TEST_CASE("places that cannot be used are named with their reason, and the next is tried") {
  Folder folder;
  auto request = request_for(folder);
  put(folder.path / "scratch", "a file is in the way");
  request.agent.unpacker_size = 0;
  const auto answer = parse(request.nonce, run_script(folder, build_bootstrap_script(request), fake_uname(folder, "x86_64")));
  REQUIRE_FALSE(answer.refused.empty());
  CHECK(answer.refused[0].directory == (folder.path / "scratch" / "flotilla").string());
  CHECK_FALSE(answer.refused[0].reason.empty());
  REQUIRE(answer.refused.size() >= 2);
  CHECK(answer.refused[1].directory == (folder.path / "home" / ".cache" / "flotilla").string());
}

TEST_CASE("a place that does not take the agent is followed by the next, whatever was under way") {
  Folder folder;
  auto request = request_for(folder);
  // The pretended unpacker fails in the first place without having read all; the rest must not be taken for the second one's.
  const std::string unpack =
      "#!/bin/sh\ncase $1 in */scratch/*) head -c 3 >/dev/null; echo no room; exit 1;; esac\nhead -c \"$2\" > \"$1\"\nchmod 700 \"$1\"\n";
  request.agent.unpacker_size = unpack.size();
  const std::string agent = fake_agent;
  const auto upload = std::to_string(agent.size()) + "\n" + unpack + agent;
  std::string binary(100'000, '\0');
  for (std::size_t i = 0; i < binary.size(); ++i) binary[i] = static_cast<char>(i * 7919 >> 3);
  Shell shell(folder, fake_uname(folder, "x86_64"));
  shell.write(build_bootstrap_script(request));
  BootstrapAnswer answer;
  const auto until = [&](auto&& done) {
    while (!done()) {
      const auto line = shell.read_line();
      REQUIRE(line);
      parse_bootstrap_line(answer, request.nonce, *line);
    }
  };
  until([&] { return answer.ready_for_unpacker; });
  CHECK(answer.upload_to == (folder.path / "scratch" / "flotilla").string());
  shell.write(upload + binary + "\n" + binary);
  until([&] { return !answer.failure.empty(); });
  CHECK(answer.failure == "no room");
  CHECK_FALSE(answer.ready_for_unpacker);
  shell.write(build_next_place_line(request.nonce));
  until([&] { return answer.ready_for_unpacker || answer.ended; });
  CHECK(answer.upload_to == (folder.path / "home" / ".cache" / "flotilla").string());
  CHECK(answer.failure.empty());
  shell.write(upload);
  until([&] { return answer.ended; });
  CHECK(answer.agent == (folder.path / "home" / ".cache" / "flotilla" / ("flotilla-agent-" + request.agent.sha256)).string());
  REQUIRE(answer.refused.size() == 1);
  CHECK(answer.refused[0].directory == (folder.path / "scratch" / "flotilla").string());
  CHECK(answer.refused[0].reason == "no room");
  CHECK(shell.read_line() == "connected connect --instance " + request.instance);
}

TEST_CASE("a scratch directory may begin with ~ and have blanks and quotes") {
  Folder folder;
  auto request = request_for(folder);
  request.scratch_dir = "~/my 'data'";
  const auto agent = folder.path / "home" / "my 'data'" / "flotilla" / ("flotilla-agent-" + request.agent.sha256);
  put(agent, fake_agent);
  const auto answer = parse(request.nonce, run_script(folder, build_bootstrap_script(request), fake_uname(folder, "x86_64")));
  CHECK(answer.agent == agent.string());
}

TEST_CASE("what a user writes is never run by the shell") {
  Folder folder;
  auto request = request_for(folder);
  const auto trap = folder.path / "trapped";
  request.scratch_dir = (folder.path / "x").string() + "';touch " + trap.string() + ";'$(touch " + trap.string() + ")@NONCE@";
  request.agent.unpacker_size = 0;
  run_script(folder, build_bootstrap_script(request), fake_uname(folder, "x86_64"));
  CHECK_FALSE(fs::exists(trap));
}

TEST_CASE("another processor is refused by name, and nothing is written there") {
  Folder folder;
  auto request = request_for(folder);
  const auto answer = parse(request.nonce, run_script(folder, build_bootstrap_script(request), fake_uname(folder, "riscv64")));
  CHECK(answer.ended);
  CHECK(answer.places.empty());
  CHECK_FALSE(fs::exists(folder.path / "scratch"));
  const auto checked = check_machine(answer, request.agent, "board");
  REQUIRE_FALSE(checked);
  CHECK(checked.error().code == Code::unsupported);
  CHECK_THAT(checked.error().message, Catch::Contains("riscv64"));
  CHECK_THAT(checked.error().message, Catch::Contains("x86_64"));
  CHECK_THAT(checked.error().message, Catch::Contains("board"));
}

TEST_CASE("a talkative login does no harm") {
  BootstrapAnswer answer;
  const std::string nonce = "flotilla-0011";
  for (const char* line : {"Welcome to HPC1!", "", "flotilla-9999 agent /evil intact x"})
    CHECK_FALSE(parse_bootstrap_line(answer, nonce, line));
  // A message without a newline before ours.
  CHECK(parse_bootstrap_line(answer, nonce, "no newline hereflotilla-0011 hello"));
  CHECK(answer.greeted);
  CHECK(answer.agent.empty());
  CHECK(answer.noise == std::vector<std::string>{"Welcome to HPC1!", "flotilla-9999 agent /evil intact x"});
}

TEST_CASE("answers that were recorded elsewhere are understood") {
  // BusyBox 1.35 on Alpine, as uid 1000, with /tmp mounted noexec.
  const auto answer =
      parse("flotilla-77",
            "flotilla-77 hello\nflotilla-77 system Linux\nflotilla-77 machine x86_64\nflotilla-77 node alp\nflotilla-77 uid 1000\n"
            "flotilla-77 home /home/a\nflotilla-77 time 1700000000\n"
            "flotilla-77 refused /home/a/.cache/flotilla : mkdir: can't create directory '/home/a/.cache': Disk quota exceeded\n"
            "flotilla-77 refused /tmp/flotilla-1000 : nothing can be run there, mounted noexec? sh: /tmp/flotilla-1000/.try.7: Permission "
            "denied\n"
            "flotilla-77 place 65536 /dev/shm/flotilla-1000\nflotilla-77 upload /dev/shm/flotilla-1000\nflotilla-77 unpack\n"
            "flotilla-77 failed cannot write: no space is left on the device\nflotilla-77 end\n");
  CHECK(answer.uid == 1000);
  CHECK(answer.refused.size() == 3);
  CHECK_THAT(answer.refused[0].reason, Catch::Contains("quota"));
  CHECK(answer.places.at(0).free_kib == 65536);
  CHECK_FALSE(answer.ready_for_unpacker);
  CHECK(answer.ready_for_agent);
  CHECK(answer.failure == "cannot write: no space is left on the device");
  const auto error = no_place_error(answer, "alp");
  CHECK(error.faults.size() == 3);
  CHECK(check_machine(answer, {"x86_64", "", 0, 0}, "alp"));
}

TEST_CASE("a scratch_dir that cannot be written is an error, one where nothing can be run is not") {
  const auto answer =
      parse("flotilla-77",
            "flotilla-77 home /home/a\n"
            "flotilla-77 refused /home/a/runs/flotilla : cat: write error: No space left on device\n"
            "flotilla-77 refused /data/flotilla : nothing can be run there, mounted noexec? /data/flotilla/.try.7: Permission denied\n"
            "flotilla-77 place 65536 /tmp/flotilla-1000\nflotilla-77 end\n");
  for (const std::string usable : {"", "/data", "/tmp", "~", "/home/a/runs2"}) CHECK(check_scratch(answer, usable, "alp"));
  for (const std::string full : {"~/runs", "runs", "/home/a/runs"}) {
    const auto error = check_scratch(answer, full, "alp");
    REQUIRE_FALSE(error);
    CHECK_THAT(error.error().message, Catch::Contains("alp") && Catch::Contains("/home/a/runs/flotilla: cat: write error: No space left"));
    CHECK_THAT(error.error().hint, Catch::Contains("scratch_dir"));
  }
}

TEST_CASE("an agent knows what it is for by its ELF header") {
  std::string head(
      "\x7f"
      "ELF\x02\x01\x01",
      7);
  head.resize(20, '\0');
  head[18] = 62;
  CHECK(machine_of_elf(head) == "x86_64");
  head[18] = static_cast<char>(183);
  CHECK(machine_of_elf(head) == "aarch64");
  CHECK(machine_of_elf("#!/bin/sh, a script of some length") == "");
  CHECK(machine_of_elf("") == "");
  CHECK(normal_machine("amd64") == "x86_64");
  CHECK(normal_machine("arm64") == "aarch64");
}
