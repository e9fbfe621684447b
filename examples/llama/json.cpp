// SPDX-License-Identifier: MIT
#include "json.hpp"

#include "fail.hpp"

#include <set>
#include <vector>

namespace llama {

nlohmann::json parse_json_object(const std::string& where, std::string_view text) {
  std::vector<std::set<std::string>> open_objects;
  std::string repeated;
  const auto watch_keys = [&](int, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key && !open_objects.back().insert(value.get<std::string>()).second) {
      repeated = value.get<std::string>();
    }
    return true;
  };
  nlohmann::json parsed;
  try {
    parsed = nlohmann::json::parse(text, watch_keys);
  } catch (const nlohmann::json::parse_error& error) {
    fail(where, " is not valid JSON: ", error.what());
  }
  if (!repeated.empty()) fail(where, " has the key \"", repeated, "\" twice");
  if (!parsed.is_object()) fail(where, " is not a JSON object");
  return parsed;
}

}  // namespace llama
