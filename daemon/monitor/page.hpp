// The page's files, built into the program from web/dist (see embed_page.cmake).
#pragma once

#include <string_view>

namespace flotilla::monitor {

struct PageFile {
  std::string_view path;  // "/index.html"
  std::string_view type;  // Content-Type
  std::string_view content;
};

// nullptr when there is no such file. "/index.html" is always there: without web/dist it says how to build the page.
const PageFile* find_page_file(std::string_view path);

// Generated: all files, ended by one with an empty path.
extern const PageFile page_files[];

}  // namespace flotilla::monitor
