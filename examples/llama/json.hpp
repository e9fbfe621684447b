// SPDX-License-Identifier: MIT
// JSON as checkpoints use it: one object, every key once.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

namespace llama {

/// Parses `text`; throws a sentence that starts with `where` when it is not valid JSON, not an
/// object, or repeats a key (parsers disagree on which of the two counts).
nlohmann::json parse_json_object(const std::string& where, std::string_view text);

}  // namespace llama
