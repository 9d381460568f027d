#include "client/amuse/core/job_request.hpp"

#include <algorithm>
#include <set>

#include "client/amuse/core/worker_request.hpp"

namespace flotilla::amuse {
namespace {

[[noreturn]] void refuse(std::string message, std::string hint) {
  FlotillaError::Details details;
  details.code = ErrorCode::invalid_argument;
  details.message = std::move(message);
  details.hint = std::move(hint);
  throw InvalidArgumentError(details);
}

CommandSpec runner_spec(const std::string& mode, const std::string& label, const std::string& root, bool debug) {
  CommandSpec spec;
  // The same script finds AMUSE and its Python as for workers.
  spec.argv = {"/bin/sh", "./start-code", "folder", "job_runner.py", "", mode};
  spec.files.push_back({.path = {}, .name = "start-code", .content = worker_script(), .mode = 0700});
  spec.files.push_back({.path = {}, .name = "job_runner.py", .content = job_runner, .mode = 0600});
  spec.env["FLOTILLA_AMUSE_HERE"] = root;
  spec.label = label;
  spec.private_folder = true;
  spec.kill_grace = Duration(1000);
  spec.debug = debug;
  return spec;
}

}  // namespace

std::vector<std::string> split_words(const std::string& line) {
  std::vector<std::string> words;
  std::string word;
  bool in_word = false;
  char quote = 0;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quote) {
      if (c == quote) quote = 0;
      else if (c == '\\' && quote == '"' && i + 1 < line.size() && (line[i + 1] == '"' || line[i + 1] == '\\')) word += line[++i];
      else word += c;
    } else if (c == '\'' || c == '"') {
      quote = c;
      in_word = true;
    } else if (c == '\\' && i + 1 < line.size()) {
      word += line[++i];
      in_word = true;
    } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      if (in_word) words.push_back(std::move(word));
      word.clear();
      in_word = false;
    } else {
      word += c;
      in_word = true;
    }
  }
  if (quote)
    refuse("the arguments of a script job have a quote that is not closed: " + line, "put a \\ before a quote that is meant as it is");
  if (in_word) words.push_back(std::move(word));
  return words;
}

std::string place_in_job(const std::string& folder) {
  std::vector<std::string_view> parts;
  bool outside = folder.starts_with('/');
  for (std::string_view rest = folder; !rest.empty();) {
    const auto end = std::min(rest.find('/'), rest.size());
    const auto part = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (part.empty() || part == ".") continue;
    if (part != "..") {
      parts.push_back(part);
    } else if (parts.empty()) {
      outside = true;
    } else {
      parts.pop_back();
    }
  }
  std::string place;
  for (const auto part : parts) place = outside || place.empty() ? std::string(part) : place + "/" + std::string(part);
  return place;
}

CommandSpec make_script_spec(const ScriptRow& row, const std::vector<FolderFiles>& folders, const std::string& root, bool debug) {
  if (row.script_name.empty()) refuse("a script job has no script_name", "name the script in script_dir");
  auto spec = runner_spec("script", row.label, root, debug);
  spec.name = row.script_name.substr(row.script_name.find_last_of('/') + 1);
  const auto inside = [](const std::string& folder, const std::string& file) {
    const auto place = place_in_job(folder);
    return place.empty() ? file : place + "/" + file;
  };
  const auto script = inside(row.script_dir, place_in_job(row.script_name));
  std::set<std::string> names;
  for (const auto& file : spec.files) names.insert(file.name);
  for (const auto& [folder, files] : folders)
    for (const auto& file : files)
      if (auto name = inside(folder, file); names.insert(name).second)
        spec.files.push_back({.path = folder + "/" + file, .name = std::move(name), .content = {}, .mode = 0});
  if (!names.contains(script))
    refuse("there is no script " + row.script_name + " in " + (row.script_dir.empty() ? "script_dir, which is empty" : row.script_dir),
           "script_dir is a folder on this machine, and script_name a path below it");
  spec.argv.push_back(script);
  spec.argv.push_back(row.output_dir.empty() ? "" : place_in_job(row.output_dir));
  if (!row.output_dir.empty() && spec.argv.back().empty())
    refuse("output_dir is " + row.output_dir + ", which is the whole folder of the job", "name a folder below it");
  for (auto& word : split_words(row.arguments)) spec.argv.push_back(std::move(word));
  return spec;
}

CommandSpec make_function_spec(const FunctionRow& row, const std::string& root, bool debug) {
  auto spec = runner_spec("function", row.label, root, debug);
  spec.name = "function";
  spec.files.push_back({.path = {}, .name = "function", .content = row.function, .mode = 0600});
  spec.files.push_back({.path = {}, .name = "arguments", .content = row.arguments, .mode = 0600});
  spec.files.push_back({.path = {}, .name = "kwarguments", .content = row.kwarguments, .mode = 0600});
  return spec;
}

}  // namespace flotilla::amuse
