#include <fcntl.h>
#include <spawn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "client/cli/command.hpp"
#include "client/cli/core/suggest.hpp"
#include "proto/base/paths.hpp"
#include "proto/base/version.hpp"

namespace flotilla::cli {
namespace {

// A page for the browser to open that leads to `url`: other users see a program's arguments, and the link holds the token.
Result<std::filesystem::path> redirect_page(const std::string& url) {
  std::string quoted;
  for (const char c : url) quoted += c == '&' ? "&amp;" : c == '"' ? "&quot;" : c == '<' ? "&lt;" : std::string(1, c);
  const auto path = runtime_dir() / "web.html";
  const auto written = write_file(
      path, "<!doctype html><meta charset=\"utf-8\"><title>Flotilla</title>\n<meta http-equiv=\"refresh\" content=\"0; url=" + quoted +
                "\">\n<a href=\"" + quoted + "\">Flotilla</a>\n");
  if (!written) return fail(written.error());
  return path;
}

// Starts the desktop's browser, when there is a desktop. Not waited for.
bool open_browser(const std::string& url) {
  const char* display = std::getenv("DISPLAY");
  const char* wayland = std::getenv("WAYLAND_DISPLAY");
  const char* browser = std::getenv("BROWSER");
  if (!(display && *display) && !(wayland && *wayland) && !(browser && *browser)) return false;
  const auto page = redirect_page(url);
  if (!page) return false;
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  for (const int fd : {0, 1, 2}) posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  std::string program = "xdg-open", argument = page->native();
  char* arguments[] = {program.data(), argument.data(), nullptr};
  pid_t pid = 0;
  const int problem = posix_spawnp(&pid, program.c_str(), &actions, &attributes, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  return problem == 0;
}

struct LogOptions {
  std::string of = "daemon";
  bool follow = false;
  std::uint64_t tail = 0;
};

}  // namespace

void add_other_commands(Context& context, CLI::App* root) {
  const auto logged = std::make_shared<LogOptions>();
  auto* logs = context.add(
      root, "logs",
      {"show the log of the daemon, a hub or a pilot",
       "Shows the end of a log file, wherever it lies: of the daemon, of a resource's hub (by the resource's name), or of a pilot (by its "
       "id). The place of the file is told on stderr. 'debug' on a resource or pilot makes its log say more.",
       {{"Follow the daemon's", "flotilla logs daemon -f"},
        {"A hub's", "flotilla logs hpc"},
        {"More of a pilot's", "flotilla logs 3 --tail 1M"}}},
      [logged]() -> Result<int> {
        auto client = DaemonClient::connect(StartDaemon::yes);
        if (!client) return fail(client.error());
        v1::ReadLogsRequest request;
        request.set_of(logged->of);
        request.set_follow(logged->follow);
        request.set_tail_bytes(logged->tail);
        std::string place;
        const Status ended = (*client)->read_logs(request, [&](const v1::LogChunk& chunk) {
          if (!chunk.path().empty()) {
            const std::string where = (chunk.host().empty() ? "" : chunk.host() + ":") + chunk.path();
            if (where != place) note("==> " + printable(where) + " <==");
            place = where;
          }
          print(chunk.data());
          return true;
        });
        if (!ended) return fail(ended.error());
        return exit_code::ok;
      });
  context.complete(logs->add_option("WHAT", logged->of, "'daemon', a resource's name, or a pilot's id (default: daemon)")->type_name(""),
                   Complete::log);
  logs->add_flag("-f,--follow", logged->follow, "go on as it grows");
  add_size(logs, "--tail", logged->tail, "start at most this far before the end (default 64k)");

  const auto no_open = std::make_shared<bool>(false);
  auto* web = context.add(root, "web",
                          {"print and open the link to the web page",
                           "The daemon serves a page that shows resources, pilots and jobs live, on this machine only. The link holds a "
                           "secret token: do not pass it on.",
                           {{"From another machine, over ssh", "ssh -L PORT:127.0.0.1:PORT me@here    # PORT as in the link"}}},
                          [no_open]() -> Result<int> {
                            auto client = DaemonClient::connect(StartDaemon::yes);
                            if (!client) return fail(client.error());
                            constexpr DaemonClient::Limit limit{10'000};
                            const auto info = (*client)->get_info(limit);
                            if (!info) return fail(info.error());
                            if (info->web_url().empty())
                              return fail(Code::failed_precondition, "the daemon serves no web page: " + info->web_problem(),
                                          "the configuration is " + info->config_file() + "; after a change: flotilla daemon restart");
                            print_line(info->web_url());
                            if (!*no_open && isatty(STDOUT_FILENO)) open_browser(info->web_url());
                            return exit_code::ok;
                          });
  web->add_flag("--no-open", *no_open, "only print it");

  const auto shell = std::make_shared<std::string>();
  auto* completion = context.add(root, "completion",
                                 {"print the tab completion for a shell",
                                  "Completes commands, options, and the names and ids of resources, pilots and jobs.",
                                  {{"bash: in ~/.bashrc", "source <(flotilla completion bash)"},
                                   {"zsh: in ~/.zshrc, after compinit", "source <(flotilla completion zsh)"},
                                   {"fish", "flotilla completion fish > ~/.config/fish/completions/flotilla.fish"}}},
                                 [shell]() -> Result<int> {
                                   print(completion_script(*shell));
                                   return exit_code::ok;
                                 });
  context.complete(
      completion->add_option("SHELL", *shell, "which")->required()->type_name("")->check(CLI::IsMember({"bash", "zsh", "fish"})),
      Complete::choices);

  auto* version = context.add(root, "version",
                              {"print the version", "Prints the build of this program. The daemon's is in 'flotilla daemon status'.", {}},
                              [&context]() -> Result<int> {
                                print_line(context.json ? "{\n  \"build\": " + json_string(build_version()) +
                                                              ",\n  \"protocol\": " + std::to_string(protocol_version) + "\n}"
                                                        : std::string("flotilla ") + build_version());
                                return exit_code::ok;
                              });
  context.add_json(version);

  const auto asked = std::make_shared<std::vector<std::string>>();
  auto* help = context.add(root, "help",
                           {"show the page of a command or a topic",
                            "Without an argument: the list of commands and topics.",
                            {{"A command's page", "flotilla help pilot start"}, {"A topic", "flotilla help exit-codes"}}},
                           [&context, root, asked]() -> Result<int> {
                             if (asked->size() == 1)
                               if (const std::string text = topic_text(asked->front()); !text.empty()) {
                                 print(text);
                                 return exit_code::ok;
                               }
                             const CLI::App* app = root;
                             for (const auto& word : *asked) {
                               const CLI::App* next = subcommand_of(app, word);
                               if (!next) {
                                 std::vector<std::string> known;
                                 for (const CLI::App* sub : app->get_subcommands([](const CLI::App*) { return true; }))
                                   known.push_back(sub->get_name());
                                 if (app == root)
                                   for (const auto& [name, summary] : topics()) known.push_back(name);
                                 const auto meant = nearest(word, known);
                                 return fail(Code::invalid_argument, "there is no page '" + printable(word) + "'",
                                             meant ? "did you mean '" + *meant + "'?" : "'flotilla help' lists commands and topics");
                               }
                               app = next;
                             }
                             print(help_text(context, app));
                             return exit_code::ok;
                           });
  context.complete(help->add_option("PAGE", *asked, "a command or a topic")->type_name(""), Complete::topic);
}

}  // namespace flotilla::cli
