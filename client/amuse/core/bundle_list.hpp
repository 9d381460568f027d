// What a code needs beside itself to run on a machine that has nothing of it: read from what ldd says. Pure.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace flotilla::amuse {

// Of one program or library: the names that it asks for and where they are here.
struct Needs {
  std::map<std::string, std::string> libraries;  // name to path
  std::vector<std::string> missing;
  std::string loader;  // path; empty for what is linked statically
};

// Of `ldd FILE`.
Needs parse_ldd(std::string_view text);
// Of `ldd FILE FILE...`: a line "FILE:" before each.
std::map<std::string, Needs> parse_ldd_of_many(std::string_view text);

// Whether a plugin can be loaded where only the libraries of `program` are: what it needs beyond them belongs to glibc.
bool runs_within(const Needs& plugin, const Needs& program);
// A part of glibc, whose loader and libraries go together.
bool is_of_glibc(std::string_view library);

}  // namespace flotilla::amuse
