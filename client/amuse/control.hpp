// The control connection: an AMUSE worker whose functions are those that AMUSE's distributed code has always had.
#pragma once

namespace flotilla::amuse {

// `argv`: the program's name, port, host, true|false. `program`: flotilla. Returns when the script has stopped it or is gone;
// by then nothing is left. The exit code.
int run_control(int argc, char** argv, const char* program);

}  // namespace flotilla::amuse
