// The parts that the two programs are put together from. Each takes argv after the sub-command's name
// (argv[0] is that name) and returns the exit code.
#pragma once

namespace flotilla {

// flotilla
int cli_main(int argc, char** argv);       // client/cli
int daemon_main(int argc, char** argv);    // daemon: `flotilla daemon run`

// flotilla-agent
int hub_main(int argc, char** argv);       // hub: the long-lived hub
int connect_main(int argc, char** argv);   // hub: what ssh starts; joins stdin/stdout to the hub, starting it if needed
int dial_main(int argc, char** argv);      // hub: joins stdin/stdout to HOST PORT (gateways)
int pilot_main(int argc, char** argv);     // pilot: guard and pilot

}  // namespace flotilla
