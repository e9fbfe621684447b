// SPDX-License-Identifier: MIT
// Compares cache recipes on a text with teacher forcing.
#pragma once

#include <kvtilt/quant/plan.hpp>

#include "context_shift.hpp"
#include "make_cache.hpp"
#include "model.hpp"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace llama {

/// A plan to evaluate, and the name of its row.
struct NamedPlan {
  std::string name;
  kvtilt::Plan plan;
};

struct EvaluationOptions {
  std::vector<std::string> recipes;  // kvtilt's; the baseline always runs, first
  CacheSettings cache;
  int threads = 1;
  std::function<void(double share)> progress;  // called repeatedly, by one thread at a time
  std::vector<NamedPlan> plans = {};           // evaluated after the recipes
  int chunk = 1;  // most predictions per pass; it changes the figures by float rounding only
  std::optional<ContextShift> shift = {};  // what to do when a piece is longer than the context
};

/// One row of the result; every mean runs over all predictions of all pieces. Standard errors are
/// those of ratio_standard_error(): none for a single piece.
struct RecipeReport {
  std::string recipe;
  bool is_plan = false;
  double page_bits = 0;
  double effective_bits = 0;    // at the ends of the pieces, weighted by their tokens
  std::size_t cache_bytes = 0;  // in use at a piece's end, the most of all pieces
  double quantized_share = 0;   // of the predictions, 0 to 1: those whose attention read a code
  double nll = 0;               // nats per token
  double kld_mean = 0;          // KL(baseline || recipe) in nats, like the next four
  std::optional<double> kld_mean_error;
  std::vector<double> kld_sums;  // of each piece
  double kld_p99 = 0;
  double kld_max = 0;
  double top1 = 0;  // percent of predictions with the baseline's most likely token
  std::optional<double> top1_error;
  double tokens_per_s = 0;  // of one thread, in forward passes only
};

/// Decodes every piece, once with the baseline, once with each recipe and once with each plan.
/// Every prediction reads the cache under test: a chunk never extends beyond a page that it fills.
/// The figures, except the speed, do not depend on `threads`. Memory per thread: a block of
/// baseline logits and the caches. Throws what the model or a cache throws, and if logits are not
/// finite.
std::vector<RecipeReport> evaluate(const Model& model, const std::vector<std::vector<int>>& pieces,
                                   const EvaluationOptions& options);

}  // namespace llama
