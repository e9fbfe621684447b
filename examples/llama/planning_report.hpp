// SPDX-License-Identifier: MIT
// Formats the planner's result as text and as JSON.
#pragma once

#include "planning.hpp"

#include <nlohmann/json.hpp>

#include <string>

namespace llama {

/// Explains the columns of the table.
std::string planning_legend();

/// A table of layers (norms, whether Theorem 1 holds, gaps, chosen formats), then the plan beside
/// the best uniform recipe, then the warnings.
std::string planning_text(const Planning& planning);

/// The same, with every figure in full. A norm of unknown kind (from a norm file) is called "norm".
nlohmann::ordered_json planning_json(const Planning& planning);

}  // namespace llama
