#include "proto/base/text.hpp"

#include <catch2/catch.hpp>

#include "flotilla/v1/link.pb.h"

using namespace flotilla;

namespace {
const std::string latin = "caf\xe9 \xff";
const std::string replaced = "caf\xEF\xBF\xBD \xEF\xBF\xBD";
}  // namespace

TEST_CASE("what is UTF-8 and what is not") {
  for (const char* good : {"", "abc", "é", "€", "😀", "\x7f"}) CHECK(is_utf8(good));
  for (const char* bad : {"\xe9", "\x80", "\xc0\xaf", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xe2\x82", "ab\xff"}) CHECK_FALSE(is_utf8(bad));
}

TEST_CASE("each byte that belongs to no character is replaced, the rest stays") {
  CHECK(to_utf8("Grüße 😀") == "Grüße 😀");
  CHECK(to_utf8(latin) == replaced);
  CHECK(to_utf8("\xe2\x82") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(to_utf8("\xe9"
                "a") ==
        "\xEF\xBF\xBD"
        "a");
}

TEST_CASE("all text of a message is made UTF-8, so that it can be read again; bytes stay") {
  v1::Frame frame;
  frame.set_peer(latin);
  auto* hello = frame.mutable_hello();
  hello->set_host(latin);
  hello->set_instance(latin);
  hello->mutable_hub()->add_nodes()->set_host("one");
  hello->mutable_hub()->add_nodes()->set_host(latin);
  make_utf8(frame);
  v1::Frame again;
  REQUIRE(again.ParseFromString(frame.SerializeAsString()));
  CHECK(again.peer() == replaced);
  CHECK(again.hello().host() == replaced);
  CHECK(again.hello().instance() == latin);
  CHECK(again.hello().hub().nodes(0).host() == "one");
  CHECK(again.hello().hub().nodes(1).host() == replaced);

  v1::LaunchPilot order;
  order.add_setup("fine");
  order.add_setup(latin);
  make_utf8(order);
  CHECK(order.setup(1) == replaced);
}

TEST_CASE("a request's field that is not UTF-8 is named") {
  v1::ResourceSpec spec;
  spec.set_name("hpc");
  CHECK(check_text(spec));
  spec.add_setup("true");
  spec.add_setup(latin);
  const auto setup = check_text(spec);
  REQUIRE_FALSE(setup);
  CHECK(setup.error().code == Code::invalid_argument);
  CHECK(setup.error().message == "setup[1] is not UTF-8: 'caf\\xe9 \\xff'");
  spec.clear_setup();
  (*spec.mutable_env())["A"] = latin;
  const auto env = check_text(spec);
  REQUIRE_FALSE(env);
  CHECK(env.error().message.starts_with("env[0].value is not UTF-8"));
}
