// SPDX-License-Identifier: MIT
/// A plan: the recipes of a whole model.
#pragma once

#include <kvtilt/quant/format.hpp>

#include <cstddef>
#include <utility>
#include <vector>

namespace kvtilt {

/// recipes[layer] holds one recipe for all kv heads of a layer, or one per kv head.
struct Plan {
  std::vector<std::vector<Recipe>> recipes;

  /// The same recipe everywhere.
  [[nodiscard]] static Plan uniform(const CacheShape& shape, const Recipe& recipe) {
    return {std::vector<std::vector<Recipe>>(shape.layers.size(), std::vector<Recipe>{recipe})};
  }
};

/// Resolves the recipes of a layer's heads (resolve_recipe). Fails with InvalidArgument unless there
/// is one, or one per kv head.
inline Result<std::vector<Recipe>> resolve_recipes(const std::vector<Recipe>& recipes,
                                                   const LayerShape& shape, int page_tokens) {
  if (recipes.size() != 1 && recipes.size() != static_cast<std::size_t>(shape.kv_heads))
    return Status::error(ErrorCode::InvalidArgument,
                         "%zu recipes for %d kv heads; give one, or one per head", recipes.size(),
                         shape.kv_heads);
  std::vector<Recipe> resolved;
  for (const Recipe& recipe : recipes) {
    Result<Recipe> one = resolve_recipe(recipe, shape, page_tokens);
    if (!one) return std::move(one).take_status();
    resolved.push_back(*one);
  }
  return resolved;
}

/// Returns the plan with every recipe resolved for its layer, or the first error found. Recipes of
/// layers without a cache (kv_heads = 0) are not checked.
inline Result<Plan> resolve_plan(const Plan& plan, const CacheShape& shape, int page_tokens) {
  if (plan.recipes.size() != shape.layers.size())
    return Status::error(ErrorCode::InvalidArgument, "the plan has %zu layers, the shape %zu",
                         plan.recipes.size(), shape.layers.size());
  Plan resolved = plan;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    if (shape.layers[layer].kv_heads == 0) continue;
    Result<std::vector<Recipe>> recipes =
        resolve_recipes(plan.recipes[layer], shape.layers[layer], page_tokens);
    if (!recipes) return in_layer(layer, recipes.status());
    resolved.recipes[layer] = *std::move(recipes);
  }
  return resolved;
}

}  // namespace kvtilt
