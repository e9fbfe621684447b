// SPDX-License-Identifier: MIT
// From losses to a plan, and what it is worth beside recipes that treat all layers alike.
#pragma once

#include <kvtilt/plan/bit_plan.hpp>
#include <kvtilt/plan/norm_report.hpp>

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

/// The uniform recipe of least loss with keys of `key_floor` bits at least, within `page_bytes` for
/// a page of every layer; nothing if none fits. Ties go to the smaller, then to formats that come
/// earlier.
std::optional<UniformRecipe> best_uniform(const kvtilt::CacheShape& shape, int page_tokens,
                                          const kvtilt::FormatChoices& choices,
                                          const kvtilt::ModelLosses& losses, std::size_t page_bytes,
                                          int key_floor);

/// Everything that one run of the planner found out.
struct Planning {
  LossSource source = LossSource::Spectral;
  kvtilt::CacheShape shape;
  int page_tokens = 64;
  double budget = 0;  // page bits
  int key_floor = 0;
  std::vector<kvtilt::LayerNorms> norms;     // per layer; empty if the weights were not read
  std::vector<kvtilt::LayerReport> reports;  // per layer, likewise
  bool one_norm = false;                     // norms are of one kind, whichever it is
  std::vector<std::optional<double>> measured_gaps;  // per layer; empty for losses from norms
  kvtilt::BitPlan best;
  std::optional<UniformRecipe> uniform;  // of the same or smaller size, above the same floor
  bool floor_costs = false;              // the best uniform recipe of all has keys below the floor
  std::vector<std::string> warnings;
};

/// The plan for given losses with everything around it. Throws kvtilt's sentence when the budget or
/// the floor cannot be met.
///
/// norms  one per layer, or empty
Planning make_planning(LossSource source, const kvtilt::CacheShape& shape, int page_tokens,
                       const kvtilt::FormatChoices& choices, const kvtilt::ModelLosses& losses,
                       const kvtilt::BitBudget& budget,
                       const std::vector<kvtilt::LayerNorms>& norms);

/// Mean width of a layer's keys or values.
double mean_bits(const std::vector<kvtilt::Recipe>& recipes, kvtilt::Tensor tensor);

}  // namespace llama
