// The parts that the two programs are put together from. Each takes argv after the sub-command's name
// (argv[0] is that name) and returns the exit code.
#pragma once

namespace flotilla {

// flotilla
int cli_main(int argc, char** argv);  // client/cli
// daemon: `flotilla daemon run [--ready-fd N]`. With --ready-fd (how `flotilla daemon start` runs it, in a session of its
// own, stdin /dev/null) it writes "ready\n" to that descriptor and closes it as soon as its socket takes connections;
// when it cannot start it writes the reason there instead and returns a code that is not 0.
int daemon_main(int argc, char** argv);

// flotilla-agent
int hub_main(int argc, char** argv);      // hub: the long-lived hub
int connect_main(int argc, char** argv);  // hub: what ssh starts; joins stdin/stdout to the hub, starting it if needed
int dial_main(int argc, char** argv);     // hub: joins stdin/stdout to HOST PORT (gateways)
int pilot_main(int argc, char** argv);    // pilot: guard and pilot

}  // namespace flotilla
