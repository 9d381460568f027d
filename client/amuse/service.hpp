// What a script's control connection asks for, done: resources, pilots, and the port at which its workers are asked for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/amuse/bundle.hpp"
#include "client/amuse/core/names.hpp"
#include "client/amuse/core/worker_request.hpp"
#include "client/amuse/jobs.hpp"
#include "client/amuse/outputs.hpp"
#include "client/amuse/private_daemon.hpp"
#include "flotilla/client.hpp"
#include "proto/base/unique_fd.hpp"

namespace flotilla::amuse {

// Fixed by commit().
struct Parameters {
  bool debug = false;
  bool start_hubs = true;  // there is always one where it is needed
  int web_port = 0;
  int worker_startup_s = 60;
  int worker_queue_s = 60;
  std::optional<std::string> attach;  // to the daemon of this state directory, or ("") the user's own, which runs already
};

struct WorkerRow {
  std::string executable, label, status;
  int processes = 1, threads = 0;
};

// Whether the other end of a connection has closed it.
bool has_gone(int connection);

// All methods but those of the worker port's threads are called by the thread of the control connection. What goes wrong is a
// std::exception with a sentence.
class Service {
 public:
  explicit Service(std::string program) : program_(std::move(program)) {}
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  ~Service();

  Parameters parameters;
  bool committed() const { return daemon_ || attached_; }
  void commit();                             // starts or reaches the daemon, and starts the worker port
  int worker_port() const { return port_; }  // -1 before commit()
  // The worker port again, as a unix socket: there the worker's own socket is handed over, and nothing is between the script and it.
  // Empty before commit(), or when there is none.
  const std::string& worker_socket() const { return socket_path_; }
  int web_port() const;
  std::string web_link() const;  // with what the page wants to know who asks

  int new_resource(const ResourceRow& row);
  const ResourceRow& resource(int id) const;
  void delete_resource(int id);
  int new_pilot(const PilotRow& row);
  const PilotRow& pilot(int id) const;
  std::string pilot_status(int id) const;
  void delete_pilot(int id);
  // Until all run; an error as soon as one has ended, or `control`, the script's connection, has. There is no other limit: a pilot may
  // be in a queue for days.
  void wait_for_pilots(int control) const;

  WorkerRow worker(int id) const;
  std::vector<int> worker_ids() const;

  template <class Row>  // ScriptRow or FunctionRow
  int submit(const Row& row) {
    return jobs_.submit(daemon(), row, root_, parameters.debug, outputs_);
  }
  Jobs& jobs() { return jobs_; }

  void end_all();
  // `text` with the commands that it names made such that they reach this script's daemon.
  std::string own_words(std::string text) const;

 private:
  struct Served {           // a worker's connection, from its acceptance to its end
    int id = 0;             // 0 = no worker has been asked for
    std::uint64_t job = 0;  // 0 = it has not started
    WorkerRow row;
    std::thread thread;
    int fd = -1;  // while it is this connection's to close
    bool over = false;
  };

  void check_committed() const;
  Daemon daemon() const;
  // PrivateDaemon::call; a daemon that is not the script's own is asked once.
  template <class Act>
  auto call(Act act) const {
    check_committed();
    return attached_ ? act(std::as_const(*attached_)) : daemon_->call(act);
  }
  Worker start(const WorkerSpec& spec, int client);
  bool may_be_bundled(const std::string& label) const;
  void listen();
  void listen_locally();
  void accept_all();
  void serve(Served& served, unique_fd client, bool local);
  void serve_worker(Served& served, const unique_fd& client, bool local);
  void serve_relayed(Served& served, const unique_fd& client, Worker& worker);
  void serve_handed_over(Served& served, const unique_fd& client, Worker& worker);
  void forget(Served& served);
  void set_status(Served& served, const char* status);
  void reap(bool all);
  void end_own();

  std::string program_;
  std::unique_ptr<PrivateDaemon> daemon_;
  std::unique_ptr<Daemon> attached_;  // instead: the user's, which has more than this script's
  std::map<int, ResourceRow> resources_;
  std::map<int, PilotRow> pilots_;
  std::map<int, std::uint64_t> pilot_numbers_;
  int resource_count_ = 0, pilot_count_ = 0;

  int port_ = -1;
  std::string socket_path_;
  unique_fd listener_, local_listener_, ending_;  // `ending_` is readable when all connections are to end
  std::thread acceptor_;
  std::stop_source over_;          // requested when the daemon has ended
  mutable std::mutex mutex_;       // what follows
  std::string root_;               // of AMUSE here; set by the control connection's thread alone
  std::set<std::string> bundled_;  // labels of pilots to which codes are sent with all that they need
  std::list<Served> served_;
  int worker_count_ = 0;
  Outputs outputs_;
  Bundles bundles_;
  Jobs jobs_;
};

}  // namespace flotilla::amuse
