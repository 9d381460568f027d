#include "pilot/setup.hpp"

#include <catch2/catch.hpp>

using namespace flotilla;
using namespace flotilla::pilot;

TEST_CASE("setup lines become a script that names the line that fails, whatever it holds") {
  const std::string script = build_setup_script({"echo 'a'", "false"}, "/agent");
  CHECK(script.find("eval 'echo '\\''a'\\''' ") == 0);
  CHECK(script.find("setup line 2 failed: false") != std::string::npos);
  CHECK(script.find("exec '/agent' pilot --print-environment\n") != std::string::npos);
}
