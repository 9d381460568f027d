// Descriptions of jobs and resources from TOML files; all faults are told at once, each with its line.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "flotilla/v1/types.pb.h"
#include "proto/base/result.hpp"

namespace flotilla::cli {

// A job, and what is to be uploaded before it is submitted.
struct JobDescription {
  v1::JobSpec spec;
  std::vector<std::pair<std::string, std::string>> files;  // name in the job's folder, path here
  std::string stdin_file;                                  // path here, "" = none
};

// Either keys at the top, or several [[job]] / [[resource]] tables. `source` names the text in messages.
Result<std::vector<JobDescription>> parse_jobs(const std::string& text, const std::string& source);
Result<std::vector<v1::ResourceSpec>> parse_resources(const std::string& text, const std::string& source);

// What `help from-file` lists: key, type, meaning.
struct KeyHelp {
  const char* key;
  const char* type;
  const char* meaning;
};
const std::vector<KeyHelp>& job_keys();
const std::vector<KeyHelp>& resource_keys();

// "NAME=PATH" or "PATH" (its last part is the name). The name stays inside the job's folder.
Result<std::pair<std::string, std::string>> parse_input_file(const std::string& text);

}  // namespace flotilla::cli
