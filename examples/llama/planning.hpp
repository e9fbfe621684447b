// SPDX-License-Identifier: MIT
// Makes a plan from losses, and compares it with uniform recipes (the same for all layers).
#pragma once

#include <kvtilt/plan/bit_plan.hpp>
#include <kvtilt/plan/norm_report.hpp>

#include "norm_source.hpp"
#include "transforms.hpp"

#include <optional>
#include <string>
#include <vector>

namespace llama {

/// Where losses come from.
enum class LossSource { Frobenius, Spectral, Statistics, Measured };

const char* to_string(LossSource source);

/// One recipe for the whole model, and the loss that it is expected to have.
struct UniformRecipe {
  kvtilt::Recipe recipe;
  std::size_t page_bytes = 0;  // of a page of every layer
  double page_bits = 0;
  double loss = 0;
};

/// The uniform recipe of least loss that keeps the budget's floors and whose pages of all layers fit
/// in its page_bytes; nothing if there is none. Ties go to the smaller one, then to formats that
/// come earlier.
std::optional<UniformRecipe> best_uniform(const kvtilt::CacheShape& shape, int page_tokens,
                                          const kvtilt::FormatChoices& choices,
                                          const kvtilt::ModelLosses& losses,
                                          const kvtilt::BitBudget& budget);

/// The result of one run of the planner.
struct Planning {
  LossSource source = LossSource::Spectral;
  kvtilt::CacheShape shape;
  int page_tokens = 64;
  Transforms transforms;  // of what the losses were measured on
  double budget = 0;      // page bits
  int key_floor = 0;
  int value_floor = 0;
  std::vector<kvtilt::LayerNorms> norms;     // per layer; empty if the weights were not read
  std::vector<kvtilt::LayerReport> reports;  // per layer, likewise
  bool one_norm = false;                     // as in WeightNorms
  std::vector<std::optional<double>> measured_gaps;  // per layer; empty for losses from norms
  kvtilt::BitPlan best;
  std::optional<UniformRecipe> uniform;  // the best that is no larger and keeps the floors
  bool floors_cost = false;              // a better one is below a floor
  std::vector<std::string> warnings;
};

/// Makes a plan from losses, with the comparisons. Throws kvtilt's message if the budget or a
/// floor cannot be met.
///
/// norms  of every layer, or of none
Planning make_planning(LossSource source, const kvtilt::CacheShape& shape, int page_tokens,
                       const kvtilt::FormatChoices& choices, const kvtilt::ModelLosses& losses,
                       const kvtilt::BitBudget& budget, const WeightNorms& norms);

/// Mean width of a layer's keys or values.
double mean_bits(const std::vector<kvtilt::Recipe>& recipes, kvtilt::Role tensor);

}  // namespace llama
