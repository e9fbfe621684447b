// SPDX-License-Identifier: MIT
// Makes a plan from losses, and compares it with uniform recipes (the same for all layers).
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

/// The uniform recipe of least loss whose keys have at least `key_floor` bits and whose pages of
/// all layers fit in `page_bytes`; nothing if there is none. Ties go to the smaller one, then to
/// formats that come earlier.
std::optional<UniformRecipe> best_uniform(const kvtilt::CacheShape& shape, int page_tokens,
                                          const kvtilt::FormatChoices& choices,
                                          const kvtilt::ModelLosses& losses, std::size_t page_bytes,
                                          int key_floor);

/// The result of one run of the planner.
struct Planning {
  LossSource source = LossSource::Spectral;
  kvtilt::CacheShape shape;
  int page_tokens = 64;
  double budget = 0;  // page bits
  int key_floor = 0;
  std::vector<kvtilt::LayerNorms> norms;     // per layer; empty if the weights were not read
  std::vector<kvtilt::LayerReport> reports;  // per layer, likewise
  bool one_norm = false;                     // both norm fields hold the same norm, of unknown kind
  std::vector<std::optional<double>> measured_gaps;  // per layer; empty for losses from norms
  kvtilt::BitPlan best;
  std::optional<UniformRecipe> uniform;  // the best that is no larger and keeps the key floor
  bool floor_costs = false;              // the best uniform recipe has keys below the floor
  std::vector<std::string> warnings;
};

/// Makes a plan from losses, with the comparisons. Throws kvtilt's message if the budget or the key
/// floor cannot be met.
///
/// norms  one per layer, or empty
Planning make_planning(LossSource source, const kvtilt::CacheShape& shape, int page_tokens,
                       const kvtilt::FormatChoices& choices, const kvtilt::ModelLosses& losses,
                       const kvtilt::BitBudget& budget,
                       const std::vector<kvtilt::LayerNorms>& norms);

/// Mean width of a layer's keys or values.
double mean_bits(const std::vector<kvtilt::Recipe>& recipes, kvtilt::Tensor tensor);

}  // namespace llama
