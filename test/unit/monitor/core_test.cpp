// Who is let in, and what a watcher is told: no sockets.
#include <google/protobuf/message.h>

#include <catch2/catch.hpp>
#include <set>

#include "daemon/monitor/core/change_log.hpp"
#include "daemon/monitor/core/route.hpp"
#include "daemon/monitor/json.hpp"
#include "daemon/monitor/page.hpp"

using namespace flotilla;
using namespace flotilla::monitor;

namespace {

const Access access_{8080, "0123456789abcdef"};

RequestView let_in(std::string_view target) {
  RequestView request;
  request.method = "GET";
  request.target = target;
  request.host = "127.0.0.1:8080";
  request.authorization = "Bearer 0123456789abcdef";
  return request;
}

v1::Change job(std::uint64_t id, v1::JobState state = v1::JOB_RUNNING) {
  v1::Change change;
  change.mutable_job()->set_id(id);
  change.mutable_job()->set_state(state);
  return change;
}

std::vector<std::uint64_t> ids(const std::vector<const v1::Change*>& changes) {
  std::vector<std::uint64_t> out;
  for (const auto* change : changes) out.push_back(change->job().id());
  return out;
}

// Every field set to something, so that a field that slim() forgets is seen.
void fill(google::protobuf::Message& message, int depth = 0) {
  const auto* reflection = message.GetReflection();
  const auto* type = message.GetDescriptor();
  using Field = google::protobuf::FieldDescriptor;
  for (int i = 0; i < type->field_count(); ++i) {
    const auto* field = type->field(i);
    if (field->is_map()) {
      auto* entry = reflection->AddMessage(&message, field);
      fill(*entry, depth + 1);
      continue;
    }
    bool many = field->is_repeated();
    switch (field->cpp_type()) {
#define SET(kind, value)                                                                                \
  many ? reflection->Add##kind(&message, field, value) : reflection->Set##kind(&message, field, value); \
  break
      case Field::CPPTYPE_INT32: SET(Int32, 7);
      case Field::CPPTYPE_INT64: SET(Int64, 7);
      case Field::CPPTYPE_UINT32: SET(UInt32, 7);
      case Field::CPPTYPE_UINT64: SET(UInt64, 7);
      case Field::CPPTYPE_DOUBLE: SET(Double, 7);
      case Field::CPPTYPE_FLOAT: SET(Float, 7);
      case Field::CPPTYPE_BOOL: SET(Bool, true);
      case Field::CPPTYPE_ENUM: SET(EnumValue, 1);
      case Field::CPPTYPE_STRING: SET(String, std::string("text"));
#undef SET
      case Field::CPPTYPE_MESSAGE:
        fill(many ? *reflection->AddMessage(&message, field) : *reflection->MutableMessage(&message, field), depth + 1);
        break;
    }
  }
}

void missing_fields(const google::protobuf::Message& full, const google::protobuf::Message& less, const std::string& path,
                    std::set<std::string>& out) {
  const auto* reflection = full.GetReflection();
  const auto* type = full.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const auto* field = type->field(i);
    auto name = path + std::string(field->name());
    bool in_full = field->is_repeated() ? reflection->FieldSize(full, field) > 0 : reflection->HasField(full, field);
    bool in_less = field->is_repeated() ? reflection->FieldSize(less, field) > 0 : reflection->HasField(less, field);
    if (in_full && !in_less) out.insert(name);
    if (in_full && in_less && !field->is_repeated() && field->message_type() != nullptr)
      missing_fields(reflection->GetMessage(full, field), reflection->GetMessage(less, field), name + ".", out);
  }
}

}  // namespace

TEST_CASE("Whoever shows the token is let in, in one of three ways") {
  auto request = let_in("/api/v1/info");
  CHECK(route(request, access_).target == Target::info);

  request.authorization = {};
  auto refused = route(request, access_);
  CHECK(refused.target == Target::refused);
  CHECK(refused.status == 401);
  CHECK(refused.form == Form::json);

  request.cookie = "other=1; flotilla_8080=0123456789abcdef; flotilla_9=x";
  CHECK(route(request, access_).target == Target::info);

  auto login = let_in("/?token=0123456789abcdef");
  login.authorization = {};
  CHECK(route(login, access_).target == Target::login);
}

TEST_CASE("A wrong token is refused everywhere") {
  for (auto token : {"0123456789abcde", "0123456789abcdeff", "0123456789ABCDEF", "x", " "}) {
    auto request = let_in("/api/v1/info");
    auto header = "Bearer " + std::string(token);
    request.authorization = header;
    CHECK(route(request, access_).status == 401);
    request.authorization = {};
    auto cookie = "flotilla_8080=" + std::string(token);
    request.cookie = cookie;
    CHECK(route(request, access_).status == 401);
    auto target = "/?token=" + std::string(token);
    request = let_in(target);
    auto login = route(request, access_);
    CHECK(login.status == 401);
    CHECK(login.form == Form::html);
  }
  // Another port's cookie is not ours, and no token at all opens nothing, not even the page's files.
  auto request = let_in("/assets/index.js");
  request.authorization = {};
  request.cookie = "flotilla_8081=0123456789abcdef";
  CHECK(route(request, access_).status == 401);
  // An empty secret is never right.
  CHECK(route(let_in("/?token="), access_).target == Target::page);
  auto empty = let_in("/api/v1/info");
  empty.authorization = "Bearer ";
  CHECK(route(empty, access_).status == 401);
}

TEST_CASE("A name that was pointed at 127.0.0.1 is refused, with the right token too") {
  for (auto host : {"evil.example:8080", "127.0.0.1", "127.0.0.1:80", "localhost:8081", "127.0.0.1.evil.example:8080", "evil127.0.0.1:8080",
                    "localhost:8080:8080", ":8080", "", "0.0.0.0:8080", "user@127.0.0.1:8080"}) {
    auto request = let_in("/?token=0123456789abcdef");
    request.host = host;
    INFO(host);
    CHECK(route(request, access_).status == 421);
  }
  auto request = let_in("/");
  // Over ssh, as 'flotilla web --help' says: the same port at both ends.
  request.host = "localhost:8080";
  CHECK(route(request, access_).target == Target::page);
}

TEST_CASE("Another site's script may not read the API") {
  auto request = let_in("/api/v1/events");
  for (auto site : {"cross-site", "same-site", "whatever"}) {
    request.fetch_site = site;
    CHECK(route(request, access_).status == 403);
  }
  for (auto site : {"same-origin", "none"}) {
    request.fetch_site = site;
    CHECK(route(request, access_).target == Target::events);
  }
  for (auto origin : {"http://evil.example", "http://127.0.0.1:8081", "https://127.0.0.1:8080", "null"}) {
    request.origin = origin;
    CHECK(route(request, access_).status == 403);
  }
  request.origin = "http://127.0.0.1:8080";
  CHECK(route(request, access_).target == Target::events);
}

TEST_CASE("A process of the user's own that is known to be one needs no token, and is held to all else") {
  auto request = let_in("/api/v1/events");
  request.authorization = {};
  request.known_user = true;
  CHECK(route(request, access_).target == Target::events);
  request.target = "/";
  request.host = "localhost:8080";
  CHECK(route(request, access_).target == Target::page);
  request.host = "evil.example:8080";  // its browser, led here by a name that was pointed at 127.0.0.1
  CHECK(route(request, access_).status == 421);
  request.host = "localhost:8080";
  request.target = "/api/v1/info";
  for (auto site : {"cross-site", "same-site"}) {  // its browser, with another site's page open
    request.fetch_site = site;
    CHECK(route(request, access_).status == 403);
  }
  request.fetch_site = {};
  request.origin = "http://localhost:8081";
  CHECK(route(request, access_).status == 403);
  request.origin = {};
  request.method = "POST";
  CHECK(route(request, access_).status == 405);
  request.method = "GET";
  request.target = "/?token=wrong";
  CHECK(route(request, access_).status == 401);
}

TEST_CASE("Addresses and their parameters") {
  auto output = route(let_in("/api/v1/jobs/12/output?stream=2&tail=100"), access_);
  CHECK(output.target == Target::output);
  CHECK(output.job == 12);
  CHECK(output.stream == 2);
  CHECK(output.tail_bytes == 100);
  CHECK(route(let_in("/api/v1/jobs/12/output"), access_).tail_bytes == default_tail_bytes);
  CHECK(route(let_in("/api/v1/jobs/12/output?tail=99999999999"), access_).tail_bytes == most_tail_bytes);
  CHECK(route(let_in("/api/v1/jobs/12"), access_).target == Target::job);
  CHECK(route(let_in("/index.html"), access_).path == "/index.html");
  CHECK(route(let_in("/?x=1"), access_).path == "/index.html");

  for (auto target : {"/api/v1/jobs/0", "/api/v1/jobs/", "/api/v1/jobs/-1", "/api/v1/jobs/1x/output", "/api/v1/jobs/99999999999999999999",
                      "/api/v1/jobs/1/output?tail=0", "/api/v1/jobs/1/output?tail=1k", "/api/v1/jobs/1/output?stream=3"}) {
    INFO(target);
    CHECK(route(let_in(target), access_).status == 400);
  }
  for (auto target : {"/api/v2/info", "/api/", "/api/v1/jobs/1/outputs", "/api/v1/info/"}) {
    INFO(target);
    auto refused = route(let_in(target), access_);
    CHECK(refused.status == 404);
    CHECK(refused.form == Form::json);
  }
  auto post = let_in("/api/v1/info");
  post.method = "POST";
  CHECK(route(post, access_).status == 405);
  post.method = "HEAD";
  CHECK(route(post, access_).head);
}

TEST_CASE("Queries are decoded") {
  CHECK(decode_component("a%20b+c%2f%zz%2") == "a b c/%zz%2");
  CHECK(query_value("a=1&bb=2%3D&b=3", "b") == "3");
  CHECK(query_value("a=1&bb=2%3D", "bb") == "2=");
  CHECK(query_value("a&&=&b", "b").empty());
  CHECK(cookie_value("a=1;b=2;  c=3", "c") == "3");
  CHECK(cookie_value("a=1;ab=2", "b").empty());
}

TEST_CASE("A watcher is told of each thing once, in order, and then of nothing") {
  ChangeLog log(100, 1 << 20);
  log.add(job(1));
  log.add(job(2));
  log.add(job(1, v1::JOB_FINISHED));
  std::uint64_t at = 0;
  auto changes = log.after(at, 100);
  CHECK(ids(changes) == std::vector<std::uint64_t>{2, 1});
  CHECK(changes[1]->job().state() == v1::JOB_FINISHED);
  CHECK(at == 3);
  CHECK(log.after(at, 100).empty());
  v1::Change desk, removed;
  desk.mutable_resource()->mutable_spec()->set_name("desk");
  removed.set_resource_removed("desk");
  log.add(desk);
  log.add(removed);
  changes = log.after(at, 100);
  REQUIRE(changes.size() == 1);
  CHECK(changes[0]->resource_removed() == "desk");
  CHECK(log.size() == 3);

  v1::Change end;
  end.set_snapshot_end(true);
  log.add(end);
  CHECK(log.version() == 5);
}

TEST_CASE("A watcher takes the log piece by piece") {
  ChangeLog log(100, 1 << 20);
  for (std::uint64_t id = 1; id <= 10; ++id) log.add(job(id));
  std::uint64_t at = 0;
  std::vector<std::uint64_t> seen;
  while (at < log.version())
    for (auto id : ids(log.after(at, 3))) seen.push_back(id);
  CHECK(seen == std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
}

TEST_CASE("The log is bounded, and says who has fallen behind") {
  ChangeLog log(10, 1 << 20);
  for (std::uint64_t id = 1; id <= 25; ++id) log.add(job(id));
  CHECK(log.size() == 10);
  CHECK_FALSE(log.reaches(14));
  CHECK(log.reaches(15));
  CHECK(log.reaches(25));
  CHECK_FALSE(log.reaches(26));

  // The same things again and again drop nobody.
  std::uint64_t at = log.version();
  for (int round = 0; round < 100; ++round)
    for (std::uint64_t id = 16; id <= 25; ++id) log.add(job(id));
  CHECK(log.reaches(at));
  CHECK(log.after(at, 100).size() == 10);

  ChangeLog small(1000, 4000);
  for (std::uint64_t id = 1; id <= 100; ++id) {
    auto change = job(id);
    change.mutable_job()->set_message(std::string(300, 'x'));
    small.add(change);
    CHECK(small.bytes() <= 4000);
  }
  CHECK(small.size() > 0);

  log.skip();
  CHECK_FALSE(log.reaches(at));
  CHECK(log.reaches(log.version()));
  CHECK(log.bytes() == 0);
}

TEST_CASE("Only secrets and bulk are left out of what the page gets") {
  v1::Change full;
  fill(*full.mutable_job());  // of the two kinds the last one, a worker, stays
  std::set<std::string> missing;
  missing_fields(full, slim(full), "", missing);
  CHECK(missing == std::set<std::string>{"job.spec.env", "job.spec.files", "job.exit.stderr_tail"});

  full.mutable_job()->mutable_spec()->clear_worker();
  fill(*full.mutable_job()->mutable_spec()->mutable_command());
  missing.clear();
  missing_fields(full, slim(full), "", missing);
  CHECK(missing == std::set<std::string>{"job.spec.env", "job.spec.files", "job.exit.stderr_tail", "job.spec.command.stdin_data",
                                         "job.spec.command.window"});

  v1::Change resource;
  fill(*resource.mutable_resource());
  missing.clear();
  missing_fields(resource, slim(resource), "", missing);
  CHECK(missing == std::set<std::string>{"resource.spec.env"});

  v1::Job job;
  (*job.mutable_spec()->mutable_env())["API_KEY"] = "secret";
  job.mutable_spec()->mutable_command()->set_stdin_data("secret");
  auto shown = detail(job);
  CHECK(shown.spec().env().count("API_KEY") == 1);
  CHECK(shown.SerializeAsString().find("secret") == std::string::npos);
}

TEST_CASE("Long command lines are shortened at a character's boundary") {
  v1::Change change;
  auto* command = change.mutable_job()->mutable_spec()->mutable_command();
  std::string umlauts = "x";
  for (int i = 0; i < 1000; ++i) umlauts += "ü";
  for (int i = 0; i < 100; ++i) command->add_argv(umlauts);
  auto argv = slim(change).job().spec().command().argv();
  CHECK(argv.size() == 25);
  CHECK(argv[24] == "…");
  CHECK(argv[0].size() == 255 + 3);
  CHECK(argv[0].ends_with("ü…"));
}

TEST_CASE("Strings of the user cannot leave their JSON string") {
  std::string out;
  append_json_string(out, "a\"b\\c\n</script>\x01\xff");
  CHECK(out == "\"a\\\"b\\\\c\\n\\u003c/script>\\u0001\\ufffd\"");
  v1::Job job;
  job.set_message("</script><b>\"\n");
  out.clear();
  append_json(out, job);
  CHECK(out.find('<') == std::string::npos);
  CHECK(out.find('\n') == std::string::npos);
}

TEST_CASE("There is always a page") {
  REQUIRE(find_page_file("/index.html") != nullptr);
  CHECK(find_page_file("/index.html")->content.find("Flotilla") != std::string_view::npos);
  CHECK(find_page_file("/nothing") == nullptr);
  CHECK(find_page_file("") == nullptr);
  CHECK(find_page_file("/../index.html") == nullptr);
}
