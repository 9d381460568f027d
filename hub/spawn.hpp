// Starting other programs: posix_spawn (the hub may be large and has threads), every descriptor closed but the three given,
// signals as a program expects them. The children are the caller's to reap.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::hub {

enum class Session { new_group, new_session };

struct Spawn {
  std::string program;  // a path, or a name that is looked up in PATH
  std::vector<std::string> argv;
  std::map<std::string, std::string> env;  // added to our own
  int in = -1, out = -1, err = -1;         // -1 = /dev/null
  Session session = Session::new_group;
};
struct Child {
  int pid = 0;
  unique_fd pidfd;
};
Result<Child> spawn(const Spawn& what);

struct Pipe {
  unique_fd read, write;
};
Result<Pipe> make_pipe();

// Of any process of this user; an error where it is gone.
Result<unique_fd> open_pidfd(int pid);

struct ExitStatus {
  int code = 0;  // -1 with a signal
  int signal = 0;
};
// The child must have ended (its pidfd is readable).
ExitStatus reap(const Child& child);

}  // namespace flotilla::hub
