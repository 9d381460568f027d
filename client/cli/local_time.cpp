#include "client/cli/local_time.hpp"

#include <ctime>

namespace flotilla::cli {

std::string format_moment(std::int64_t ms, std::int64_t now_ms) {
  if (ms == 0) return "-";
  const std::time_t moment = ms / 1000, now = now_ms / 1000;
  std::tm then{}, today{};
  localtime_r(&moment, &then);
  localtime_r(&now, &today);
  char text[64];
  const bool same_day = then.tm_year == today.tm_year && then.tm_yday == today.tm_yday;
  std::strftime(text, sizeof text, same_day ? "%H:%M:%S" : "%Y-%m-%d %H:%M:%S", &then);
  return text;
}

}  // namespace flotilla::cli
