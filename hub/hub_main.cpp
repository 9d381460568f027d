#include <cstdio>

#include "proto/base/programs.hpp"
#include "proto/link/link.hpp"

namespace flotilla {
int hub_main(int, char**) {
  boost::asio::io_context io;
  link::Server server(io, {}, link::keepalive_cluster);
  server.listen_tls("127.0.0.1:0", {});
  io.run();
  return 2;
}
int connect_main(int, char**) { return 2; }
int dial_main(int, char**) { return 2; }
}  // namespace flotilla
