// SPDX-License-Identifier: MIT
/// Finds the plan with the least loss within a budget of stored bytes.
#pragma once

#include <kvtilt/page/layout.hpp>
#include <kvtilt/plan/knapsack.hpp>
#include <kvtilt/plan/losses.hpp>
#include <kvtilt/quant/plan.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace kvtilt {

/// Limits the size of one page of every layer, with metadata, padding and alignment.
struct BitBudget {
  double page_bits = 0;        ///< 8 x bytes / unpadded elements, over all layers together
  int key_floor = 0;           ///< keys get at least this many bits
  int value_floor = 0;         ///< values likewise
  std::size_t page_bytes = 0;  ///< if not 0, the budget in bytes, in place of page_bits
};

struct BitPlan {
  Plan plan;               ///< resolved; one recipe per entry of the losses
  std::size_t page_bytes;  ///< of one page of every layer
  double page_bits;
  double loss;
};

namespace detail {

/// Elements of one page of every layer.
inline double page_elements(const CacheShape& shape, int page_tokens) {
  double elements = 0;
  for (const LayerShape& layer : shape.layers)
    elements += static_cast<double>(layer.elements_per_token()) * page_tokens;
  return elements;
}

/// All recipes that a layer's heads may have, in the order of the choices, keys in the outer loop.
struct RecipeOptions {
  std::vector<Recipe> recipes;
  std::vector<std::size_t> bytes;                            ///< of one head
  std::vector<std::pair<std::size_t, std::size_t>> formats;  ///< indices into the choices

  RecipeOptions(const FormatChoices& resolved, const LayerShape& shape, int page_tokens,
                const BitBudget& budget) {
    for (std::size_t key = 0; key < resolved.keys.size(); ++key) {
      if (resolved.keys[key].bits < budget.key_floor) continue;
      for (std::size_t value = 0; value < resolved.values.size(); ++value) {
        const bool stored = resolved.values[value] != in_keys;
        if (stored && resolved.values[value].bits < budget.value_floor) continue;
        recipes.push_back({resolved.keys[key], resolved.values[value]});
        bytes.push_back(
            head_layout(recipes.back(), shape.key_dim, shape.value_dim, page_tokens, 0).bytes());
        formats.emplace_back(key, value);
      }
    }
  }

  /// The knapsack item of `heads` heads that share a recipe and have `losses` together.
  [[nodiscard]] KnapsackItem item(const HeadLosses& losses, std::size_t heads) const {
    KnapsackItem item;
    for (std::size_t i = 0; i < recipes.size(); ++i) {
      const double values = recipes[i].value == in_keys ? 0.0 : losses.values[formats[i].second];
      item.push_back({bytes[i] * heads, losses.keys[formats[i].first] + values});
    }
    return item;
  }
};

inline Status check_floor(Role tensor, const std::vector<Format>& formats, int floor) {
  int widest = 0;
  for (const Format& format : formats) widest = format.bits > widest ? format.bits : widest;
  if (widest >= floor) return {};
  return Status::error(ErrorCode::InvalidArgument,
                       "%s must have at least %d bits, but the widest format to choose from has "
                       "%d",
                       to_string(tensor), floor, widest);
}

/// Bytes that a budget allows; fails if they are fewer than `smallest`.
inline Result<std::size_t> budget_bytes(const BitBudget& budget, double elements,
                                        std::size_t smallest) {
  double bytes = static_cast<double>(budget.page_bytes);
  if (budget.page_bytes == 0) {
    if (!is_finite(budget.page_bits) || budget.page_bits <= 0)
      return Status::error(ErrorCode::InvalidArgument,
                           "the budget is %g page bits, must be more than 0", budget.page_bits);
    // Page bits are a rounded quotient: with the margin, a plan's own page_bits still buy that
    // plan.
    bytes = std::floor(budget.page_bits * elements / 8 * (1 + 1e-12));
  }
  if (bytes >= static_cast<double>(smallest))
    return bytes < 0x1p62 ? static_cast<std::size_t>(bytes) : std::size_t{1} << 62;
  return Status::error(ErrorCode::InvalidArgument,
                       "a budget of %g page bits (%.0f bytes) is too small: with keys of at least "
                       "%d bits and values of at least %d the smallest that works is %.4f page "
                       "bits (%zu bytes)",
                       8 * bytes / elements, bytes, budget.key_floor, budget.value_floor,
                       std::ceil(8e4 * static_cast<double>(smallest) / elements) / 1e4, smallest);
}

}  // namespace detail

/// Finds the exact optimum: the recipes of least total loss whose pages together fit the budget.
/// Ties in loss go to fewer bytes; then, at the first layer or head where two plans differ, to the
/// one with more bytes there; then to formats that come earlier in the choices. Scaling all losses
/// changes nothing, and a larger budget never has a larger loss (up to the grid of knapsack.hpp).
///
/// The budget counts one page of every layer. Layers with a sliding window hold fewer pages of a
/// long text than others, but count as if they held as many.
///
/// losses  one entry per layer (its heads share a recipe) or one per kv head
/// Fails   InvalidArgument for shapes and counts that disagree, and for a budget or a floor that
///         cannot be met, naming the limit; InvalidValue for losses that are no valid losses
/// Cost    0.15 s for a plan per head of 80 layers x 8 heads with 1,681 recipes each; memory: see
///         solve_knapsack
inline Result<BitPlan> plan_bits(const CacheShape& shape, int page_tokens,
                                 const FormatChoices& choices, const ModelLosses& losses,
                                 const BitBudget& budget) {
  KVTILT_RETURN_IF_ERROR(check_shape(shape));
  KVTILT_RETURN_IF_ERROR(check_page_tokens(page_tokens));
  KVTILT_RETURN_IF_ERROR(check_losses(losses, shape, choices));
  KVTILT_RETURN_IF_ERROR(detail::check_floor(Role::Keys, choices.keys, budget.key_floor));
  if (!choices.values.empty())
    KVTILT_RETURN_IF_ERROR(detail::check_floor(Role::Values, choices.values, budget.value_floor));

  std::vector<detail::RecipeOptions> options;
  std::vector<KnapsackItem> items;
  std::size_t smallest = 0;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const LayerShape& layer_shape = shape.layers[layer];
    if (layer_shape.kv_heads == 0) {
      options.emplace_back(FormatChoices{}, layer_shape, page_tokens, budget);
      continue;
    }
    Result<FormatChoices> resolved = resolve_choices(choices, layer_shape, page_tokens, layer);
    if (!resolved) return std::move(resolved).take_status();
    options.emplace_back(*resolved, layer_shape, page_tokens, budget);
    const std::size_t heads = static_cast<std::size_t>(layer_shape.kv_heads);
    for (const HeadLosses& entry : losses.layers[layer])
      items.push_back(options.back().item(entry, heads / losses.layers[layer].size()));
    smallest += heads * *std::min_element(options.back().bytes.begin(), options.back().bytes.end());
  }
  const double elements = detail::page_elements(shape, page_tokens);
  if (items.empty())
    return Status::error(ErrorCode::InvalidArgument, "no layer of the shape keeps a cache");
  Result<std::size_t> bytes = detail::budget_bytes(budget, elements, smallest);
  if (!bytes) return std::move(bytes).take_status();
  Result<std::vector<std::size_t>> picked = solve_knapsack(items, *bytes);
  if (!picked) return std::move(picked).take_status();

  BitPlan result{};
  std::size_t item = 0;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    std::vector<Recipe>& recipes = result.plan.recipes.emplace_back();
    const std::size_t entries = shape.layers[layer].kv_heads == 0 ? 0 : losses.layers[layer].size();
    if (entries == 0) recipes.emplace_back();
    for (std::size_t entry = 0; entry < entries; ++entry, ++item) {
      const std::size_t option = (*picked)[item];
      recipes.push_back(options[layer].recipes[option]);
      result.page_bytes += items[item][option].bytes;
      result.loss += items[item][option].loss;
    }
  }
  result.page_bits = 8 * static_cast<double>(result.page_bytes) / elements;
  return result;
}

}  // namespace kvtilt
