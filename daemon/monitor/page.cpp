#include "daemon/monitor/page.hpp"

namespace flotilla::monitor {
namespace {

constexpr PageFile not_built{"/index.html", "text/html; charset=utf-8",
                             "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Flotilla</title>"
                             "<h1>Flotilla</h1><p>The daemon runs, but this build of it carries no web page.</p>"
                             "<p>To build it, with Node.js 20.19 or later: <code>cd web &amp;&amp; npm ci &amp;&amp; npm run build</code>, "
                             "then build the daemon again (<code>./scripts/build</code> does both).</p>"
                             "<p>Meanwhile: <code>flotilla job list</code>, <code>flotilla pilot list</code>, or the "
                             "<a href=\"/api/v1/snapshot\">state as JSON</a>.</p></html>"};

}  // namespace

const PageFile* find_page_file(std::string_view path) {
  for (const PageFile* file = page_files; !file->path.empty(); ++file)
    if (file->path == path) return file;
  return path == not_built.path ? &not_built : nullptr;
}

}  // namespace flotilla::monitor
