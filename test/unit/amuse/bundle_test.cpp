#include <catch2/catch.hpp>

#include "client/amuse/core/bundle_list.hpp"

using namespace flotilla::amuse;

TEST_CASE("what a program needs is read from ldd") {
  const auto needs = parse_ldd(
      "\tlinux-vdso.so.1 (0x00007ff73cc29000)\n"
      "\tlibmpi.so.40 => /lib/x86_64-linux-gnu/libmpi.so.40 (0x00007ff73ca91000)\n"
      "\tlibodd name.so => /opt/my libs (0x1)/libodd name.so (0x00007ff73c800000)\n"
      "\tlibgone.so.3 => not found\n"
      "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007ff73c53e000)\n"
      "\t/lib64/ld-linux-x86-64.so.2 (0x00007ff73cc2b000)\n");
  CHECK(needs.libraries == std::map<std::string, std::string>{{"libmpi.so.40", "/lib/x86_64-linux-gnu/libmpi.so.40"},
                                                              {"libodd name.so", "/opt/my libs (0x1)/libodd name.so"},
                                                              {"libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"}});
  CHECK(needs.missing == std::vector<std::string>{"libgone.so.3"});
  CHECK(needs.loader == "/lib64/ld-linux-x86-64.so.2");
  CHECK(parse_ldd("\tstatically linked\n").libraries.empty());
  CHECK(parse_ldd("\t/lib64/ld-linux-x86-64.so.2 => /nix/ld.so (0x1)\n").loader == "/nix/ld.so");
}

TEST_CASE("only plugins that need no more than the program go with it") {
  const auto program = parse_ldd("\tlibopen-pal.so.40 => /l/libopen-pal.so.40 (0x1)\n\tlibc.so.6 => /l/libc.so.6 (0x1)\n");
  const auto plugins = parse_ldd_of_many(
      "/p/one.so:\n\tlinux-vdso.so.1 (0x1)\n\tlibopen-pal.so.40 => /l/libopen-pal.so.40 (0x1)\n\tlibpthread.so.0 => /l/libpthread.so.0 "
      "(0x1)\n"
      "/p/two.so:\n\tlibucp.so.0 => /l/libucp.so.0 (0x1)\n"
      "/p/three.so:\n\tlibopen-pal.so.40 => not found\n"
      "/p/four.so:\n\tstatically linked\n");
  REQUIRE(plugins.size() == 4);
  CHECK(runs_within(plugins.at("/p/one.so"), program));
  CHECK_FALSE(runs_within(plugins.at("/p/two.so"), program));
  CHECK_FALSE(runs_within(plugins.at("/p/three.so"), program));
  CHECK(runs_within(plugins.at("/p/four.so"), program));
}
