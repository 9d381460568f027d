// Small services of the agent's binary for the transport, on both sides of an ssh connection.
#pragma once

namespace flotilla {

int verify_main(int argc, char** argv);   // SHA256: is this very file what it should be?
int pass_fd_main(int argc, char** argv);  // SOCKET: fetches a descriptor there and passes it on over stdout (ssh's ProxyUseFdpass)
int ask_main(int argc, char** argv);      // SOCKET TEXT: asks there, prints the answer (ssh's SSH_ASKPASS)

}  // namespace flotilla
