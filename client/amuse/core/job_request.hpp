// What a script asks for when it submits a script or a function, and what Flotilla is asked for then. Pure but for the folders' content,
// which comes as lists.
#pragma once

#include <string>
#include <vector>

#include "flotilla/client.hpp"

namespace flotilla::amuse {

struct ScriptRow {
  std::string script_dir, script_name;
  std::string arguments;              // split as a shell does: quotes keep blanks
  std::string input_dir, output_dir;  // empty = none
  std::string stdout_file, stderr_file;
  std::string label;  // empty = any pilot
};
struct FunctionRow {
  std::string function, arguments, kwarguments;
  std::string stdout_file, stderr_file;
  std::string label = "default";
};

// A folder of the script's machine and what lies in it, with paths relative to it.
struct FolderFiles {
  std::string folder;
  std::vector<std::string> files;
};

// The words of a command line; InvalidArgumentError for a quote that is not closed.
std::vector<std::string> split_words(const std::string& line);

// Where a path of the script's machine lies in the job's folder: a relative one at the same place, any other by its last name; "" is the job's
// folder itself.
std::string place_in_job(const std::string& folder);

CommandSpec make_script_spec(const ScriptRow& row, const std::vector<FolderFiles>& folders, const std::string& root, bool debug);
CommandSpec make_function_spec(const FunctionRow& row, const std::string& root, bool debug);

extern const char job_runner[];  // job_runner.py

}  // namespace flotilla::amuse
