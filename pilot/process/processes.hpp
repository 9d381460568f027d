// The processes of all attempts: reaped here, and what they leave behind is ended here. On the io thread, which is the
// process's main thread: it alone starts processes.
#pragma once

#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <functional>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "pilot/core/attempt_table.hpp"
#include "pilot/process/process_tree.hpp"
#include "proto/base/clock.hpp"

namespace flotilla::pilot {

using Timer = boost::asio::basic_waitable_timer<BootClock>;

class Processes {
 public:
  struct Events {
    std::function<void(ProcessEnd)> on_exit;  // the started process has been reaped
    std::function<void()> on_gone;            // after it: nothing of the attempt is left
  };

  // SIGCHLD must be blocked in every thread. Orphans that are there already are the pilot's own.
  explicit Processes(boost::asio::io_context& io);

  // `started`: a moment before it was started.
  void add(Attempt attempt, pid_t pid, Moment started, Events events);
  // To the process group and to every descendant that left it. Returns how many got it.
  int signal(Attempt attempt, int number);
  // Its process and everything below it, and orphans of it.
  std::vector<pid_t> members(Attempt attempt);
  bool alive(Attempt attempt) const;
  void stop();  // no event runs after this

 private:
  struct Tracked {
    pid_t pid = 0;  // also its group
    Moment started{};
    bool exited = false;
    bool group_gone = false;  // from then on the number may be another's
    Events events;
  };
  struct Orphan {
    std::optional<Attempt> owner;
    Moment started{};
    int unclear_looks = 0;  // so often its environment was not to be seen yet; 0 = what stands here is so
  };

  void wait_for_signal();
  void reap();
  void check_leaving();
  bool end_leftovers(Attempt attempt, Tracked& tracked);
  void look_at_orphans();
  bool may_be_of(const Tracked& tracked, const Orphan& orphan) const;

  boost::asio::io_context& io_;
  boost::asio::posix::stream_descriptor signals_;
  Timer retry_;
  Children children_;
  Moment begun_{};
  bool childless_ = false;  // as the last reaping saw it
  bool stopped_ = false;
  std::map<Attempt, Tracked> tracked_;
  std::unordered_map<pid_t, Attempt> by_pid_;  // those that are not reaped
  std::unordered_map<pid_t, Orphan> orphans_;  // children that nobody started here
  std::vector<Attempt> leaving_;
};

}  // namespace flotilla::pilot
