// SPDX-License-Identifier: MIT
// Formats the figures of an evaluation as text and as JSON.
#pragma once

#include "evaluation.hpp"

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

namespace llama {

/// One line per recipe; a mean and its standard error as 1.52e-04 +- 0.11e-04. `byte_level` models
/// have bits per byte in place of a perplexity. With plans a second table: the ratio of each one's
/// mean divergence to that of the best recipe of at most its page bits, among recipes with a name
/// (k4v2) and among all.
std::string evaluation_text(const std::vector<RecipeReport>& reports, bool byte_level);

/// The same figures in full, one object per recipe.
nlohmann::ordered_json evaluation_json(const std::vector<RecipeReport>& reports);

}  // namespace llama
