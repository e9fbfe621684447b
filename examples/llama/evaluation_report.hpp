// SPDX-License-Identifier: MIT
// Formats the figures of an evaluation as text and as JSON.
#pragma once

#include "evaluation.hpp"

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

namespace llama {

/// One line per recipe. `byte_level` models have bits per byte in place of a perplexity.
std::string evaluation_text(const std::vector<RecipeReport>& reports, bool byte_level);

/// The same figures in full, one object per recipe.
nlohmann::ordered_json evaluation_json(const std::vector<RecipeReport>& reports);

}  // namespace llama
