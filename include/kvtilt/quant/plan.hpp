// SPDX-License-Identifier: MIT
/// A plan: the recipes of a whole model.
#pragma once

#include <kvtilt/quant/format.hpp>

#include <cstddef>
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

/// Returns the plan with every recipe resolved for its layer, or the first error found. Recipes of
/// layers without a cache (kv_heads = 0) are not checked.
inline Result<Plan> resolve_plan(const Plan& plan, const CacheShape& shape, int page_tokens) {
  if (plan.recipes.size() != shape.layers.size())
    return Status::error(ErrorCode::InvalidArgument, "the plan has %zu layers, the shape %zu",
                         plan.recipes.size(), shape.layers.size());
  Plan resolved = plan;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const LayerShape& layer_shape = shape.layers[layer];
    std::vector<Recipe>& recipes = resolved.recipes[layer];
    if (layer_shape.kv_heads == 0) continue;
    if (recipes.size() != 1 && recipes.size() != static_cast<std::size_t>(layer_shape.kv_heads))
      return Status::error(ErrorCode::InvalidArgument,
                           "layer %zu: the plan has %zu recipes for %d kv heads; give one, or one "
                           "per head",
                           layer, recipes.size(), layer_shape.kv_heads);
    for (Recipe& recipe : recipes) {
      Result<Recipe> one = resolve_recipe(recipe, layer_shape, page_tokens);
      if (!one)
        return Status::error(one.code(), "layer %zu: %.*s", layer,
                             static_cast<int>(one.message().size()), one.message().data());
      recipe = *one;
    }
  }
  return resolved;
}

}  // namespace kvtilt
