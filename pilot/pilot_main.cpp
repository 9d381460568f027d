#include "proto/base/programs.hpp"

namespace flotilla {
int pilot_main(int, char**) { return 2; }
}  // namespace flotilla
