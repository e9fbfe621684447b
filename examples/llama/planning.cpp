// SPDX-License-Identifier: MIT
#include "planning.hpp"

#include "fail.hpp"

#include <algorithm>

namespace llama {
namespace {

using kvtilt::Recipe;
using kvtilt::Role;

/// Bytes of a page of every layer with one recipe; nothing if it does not fit some layer.
std::optional<std::size_t> uniform_bytes(const kvtilt::CacheShape& shape, int page_tokens,
                                         const Recipe& recipe) {
  std::size_t bytes = 0;
  for (const kvtilt::LayerShape& layer : shape.layers) {
    if (layer.kv_heads == 0) continue;
    const auto resolved = kvtilt::resolve_recipe(recipe, layer, page_tokens);
    if (!resolved) return std::nullopt;
    bytes += kvtilt::PageLayout::make(layer, {*resolved}, page_tokens).bytes;
  }
  return bytes;
}

double uniform_loss(const kvtilt::ModelLosses& losses, std::size_t key, std::size_t value) {
  double loss = 0;
  for (const auto& layer : losses.layers) {
    for (const kvtilt::HeadLosses& head : layer) loss += head.keys[key] + head.values[value];
  }
  return loss;
}

/// "layers 0, 3 and 7", at most six of them.
std::string list_layers(const std::vector<std::size_t>& layers) {
  std::string text = layers.size() == 1 ? "layer " : "layers ";
  const std::size_t shown = std::min<std::size_t>(layers.size(), 6);
  for (std::size_t i = 0; i < shown; ++i) {
    if (i > 0) text += i + 1 == layers.size() ? " and " : ", ";
    text += std::to_string(layers[i]);
  }
  return layers.size() > shown ? text + " and " + std::to_string(layers.size() - shown) + " more"
                               : text;
}

template <class Holds>
std::vector<std::size_t> layers_where(std::size_t count, Holds holds) {
  std::vector<std::size_t> layers;
  for (std::size_t i = 0; i < count; ++i) {
    if (holds(i)) layers.push_back(i);
  }
  return layers;
}

/// The gap at the first width that both lists have, in the order below.
std::optional<double> measured_gap(const std::vector<kvtilt::HeadLosses>& entries,
                                   const kvtilt::FormatChoices& choices) {
  for (const int bits : {4, 3, 5, 2, 6, 8, 7, 1}) {
    if (const auto gap = kvtilt::measured_gap(entries, choices, bits)) return gap;
  }
  return std::nullopt;
}

std::vector<std::string> warnings_of(const Planning& planning) {
  std::vector<std::string> warnings;
  const std::size_t count = planning.shape.layers.size();
  const auto warn = [&](const std::vector<std::size_t>& layers, const std::string& sentence) {
    if (!layers.empty()) warnings.push_back(list_layers(layers) + ": " + sentence);
  };
  const bool from_norms =
      planning.source == LossSource::Frobenius || planning.source == LossSource::Spectral;
  if (!planning.reports.empty()) {
    warn(layers_where(count, [&](std::size_t i) { return planning.reports[i].contradicted; }),
         "the norms of W_K and W_V ask for another gap between keys and values than the errors "
         "that were measured; the plan follows what was measured");
    warn(
        layers_where(count, [&](std::size_t i) { return planning.reports[i].key_norm; }),
        std::string("keys pass a norm of their own (QK-norm), so that the size of W_K says nothing "
                    "about them") +
            (from_norms ? "; the plan uses that norm's gains. Measuring (--text) is safer" : ""));
    if (from_norms) {
      // A published file of norms does not say whether its model has a QK-norm.
      warn(layers_where(count,
                        [&](std::size_t i) {
                          return planning.shape.layers[i].kv_heads > 0 &&
                                 !planning.reports[i].key_norm &&
                                 planning.norms[i].keys.frobenius <
                                     planning.norms[i].values.frobenius;
                        }),
           planning.one_norm
               ? "W_V is larger than W_K. Where keys pass a QK-norm (Qwen3 and others) "
                 "that says nothing about them: measure such models (--text)"
               : "W_V is larger than W_K. Keys may need more bits all the same: "
                 "measuring (--text) tells");
      warn(layers_where(count,
                        [&](std::size_t i) {
                          const auto& recipes = planning.best.plan.recipes[i];
                          return planning.shape.layers[i].kv_heads > 0 &&
                                 std::any_of(recipes.begin(), recipes.end(),
                                             [](const Recipe& r) { return r.value.bits == 1; });
                        }),
           "values get 1 bit, which costs far more than norms tell: set --value-floor 2");
    }
  }
  warn(layers_where(count,
                    [&](std::size_t i) {
                      const auto& recipes = planning.best.plan.recipes[i];
                      return planning.shape.layers[i].kv_heads > 0 &&
                             mean_bits(recipes, Role::Keys) < mean_bits(recipes, Role::Values);
                    }),
       "keys get fewer bits than values");
  return warnings;
}

}  // namespace

const char* to_string(LossSource source) {
  switch (source) {
    case LossSource::Frobenius:
      return "frobenius";
    case LossSource::Spectral:
      return "spectral";
    case LossSource::Statistics:
      return "statistics";
    case LossSource::Measured:
      break;
  }
  return "measured";
}

std::optional<UniformRecipe> best_uniform(const kvtilt::CacheShape& shape, int page_tokens,
                                          const kvtilt::FormatChoices& choices,
                                          const kvtilt::ModelLosses& losses,
                                          const kvtilt::BitBudget& budget) {
  std::optional<UniformRecipe> best;
  const double elements = kvtilt::detail::page_elements(shape, page_tokens);
  for (std::size_t key = 0; key < choices.keys.size(); ++key) {
    if (choices.keys[key].bits < budget.key_floor) continue;
    for (std::size_t value = 0; value < choices.values.size(); ++value) {
      if (choices.values[value].bits < budget.value_floor) continue;
      const Recipe recipe{choices.keys[key], choices.values[value]};
      const auto bytes = uniform_bytes(shape, page_tokens, recipe);
      if (!bytes || *bytes > budget.page_bytes) continue;
      const UniformRecipe found{recipe, *bytes, 8 * static_cast<double>(*bytes) / elements,
                                uniform_loss(losses, key, value)};
      if (!best || found.loss < best->loss ||
          (found.loss == best->loss && found.page_bits < best->page_bits)) {
        best = found;
      }
    }
  }
  return best;
}

Planning make_planning(LossSource source, const kvtilt::CacheShape& shape, int page_tokens,
                       const kvtilt::FormatChoices& choices, const kvtilt::ModelLosses& losses,
                       const kvtilt::BitBudget& budget, const WeightNorms& norms) {
  Planning planning;
  planning.source = source;
  planning.shape = shape;
  planning.page_tokens = page_tokens;
  planning.budget = budget.page_bits;
  planning.key_floor = budget.key_floor;
  planning.value_floor = budget.value_floor;
  planning.norms = norms.layers;
  planning.one_norm = norms.one_norm;
  auto best = kvtilt::plan_bits(shape, page_tokens, choices, losses, budget);
  if (!best) fail(best.message());
  planning.best = *std::move(best);
  kvtilt::BitBudget limits = budget;
  limits.page_bytes = planning.best.page_bytes;
  planning.uniform = best_uniform(shape, page_tokens, choices, losses, limits);
  limits.key_floor = limits.value_floor = 0;
  const auto free = best_uniform(shape, page_tokens, choices, losses, limits);
  planning.floors_cost = free && (free->recipe.key.bits < budget.key_floor ||
                                  free->recipe.value.bits < budget.value_floor);
  if (source == LossSource::Statistics || source == LossSource::Measured) {
    for (const auto& layer : losses.layers) {
      planning.measured_gaps.push_back(measured_gap(layer, choices));
    }
  }
  for (std::size_t i = 0; i < norms.layers.size(); ++i) {
    const auto gap =
        planning.measured_gaps.empty() ? std::optional<double>() : planning.measured_gaps[i];
    planning.reports.push_back(shape.layers[i].kv_heads == 0
                                   ? kvtilt::LayerReport{}
                                   : kvtilt::layer_report(norms.layers[i], shape.layers[i], gap));
  }
  planning.warnings = warnings_of(planning);
  return planning;
}

double mean_bits(const std::vector<kvtilt::Recipe>& recipes, Role tensor) {
  double sum = 0;
  for (const Recipe& recipe : recipes) {
    sum += tensor == Role::Keys ? recipe.key.bits : recipe.value.bits;
  }
  return recipes.empty() ? 0 : sum / static_cast<double>(recipes.size());
}

}  // namespace llama
