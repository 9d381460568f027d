// The tables in the program and in PROTOCOL.md are the same.
#include "daemon/core/life_cycle.hpp"

#include <catch2/catch.hpp>
#include <fstream>
#include <set>
#include <sstream>
#include <tuple>

using namespace flotilla;
using namespace flotilla::daemon;

namespace {
using Row = std::tuple<std::string, std::string, std::string>;

std::string cell(const std::string& text) {
  const auto begin = text.find_first_not_of(" `"), end = text.find_last_not_of(" `");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

// The rows of the table "| from | event | to |" in the section with this heading.
std::set<Row> documented(const std::string& heading) {
  std::ifstream in(PROTOCOL_MD);
  REQUIRE(in);
  std::set<Row> rows;
  std::string line;
  bool section = false, table = false;
  while (std::getline(in, line)) {
    if (line.rfind("## ", 0) == 0) section = line == heading;
    if (!section) continue;
    if (line == "| from | event | to |") {
      table = true;
      continue;
    }
    if (!table || line.rfind("|--", 0) == 0) continue;
    if (line.rfind("|", 0) != 0) {
      table = false;
      continue;
    }
    std::stringstream cells(line);
    std::string empty, from, event, to;
    std::getline(cells, empty, '|');
    std::getline(cells, from, '|');
    std::getline(cells, event, '|');
    std::getline(cells, to, '|');
    rows.insert({cell(from), cell(event), cell(to)});
  }
  return rows;
}

template <class Table>
std::set<Row> programmed(const Table& table) {
  std::set<Row> rows;
  for (const auto& t : table) rows.insert({word(t.from), word(t.event), word(t.to)});
  return rows;
}
}  // namespace

TEST_CASE("the life cycles are those of PROTOCOL.md") {
  CHECK(documented("## 3. Jobs") == programmed(job_transitions));
  CHECK(documented("## 4. Pilots") == programmed(pilot_transitions));
}

TEST_CASE("no transition leaves an end, and each state but the first is reached") {
  for (const auto& t : job_transitions) CHECK_FALSE(ended(t.from));
  for (const auto& t : pilot_transitions) CHECK_FALSE(ended(t.from));
  for (int s = v1::JOB_QUEUED; s <= v1::JOB_CANCELED; ++s)
    CHECK(std::any_of(job_transitions.begin(), job_transitions.end(), [&](const auto& t) { return t.to == s; }));
  for (int s = v1::PILOT_STARTING; s <= v1::PILOT_FAILED; ++s)
    CHECK(std::any_of(pilot_transitions.begin(), pilot_transitions.end(), [&](const auto& t) { return t.to == s; }));
}

TEST_CASE("a transition is unique") {
  std::set<std::pair<int, int>> jobs, pilots;
  for (const auto& t : job_transitions) CHECK(jobs.insert({t.from, static_cast<int>(t.event)}).second);
  for (const auto& t : pilot_transitions) CHECK(pilots.insert({t.from, static_cast<int>(t.event)}).second);
}
