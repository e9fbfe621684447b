// SPDX-License-Identifier: MIT
// Measures how far plans move a model's predictions from those of the 16-bit baseline, which is the
// criterion for choosing a plan.
#pragma once

#include <kvtilt/quant/plan.hpp>

#include "make_cache.hpp"
#include "model.hpp"

#include <functional>
#include <vector>

namespace llama {

struct DivergenceOptions {
  CacheSettings cache;
  int threads = 1;
  std::function<void(double share)> progress;  // called repeatedly, by one thread at a time
};

struct Divergences {
  double base = 0;            // mean KL(baseline || base) in nats
  std::vector<double> plans;  // the same of each plan
};

/// Runs every piece with the baseline, with `base` and with each of the plans. A plan runs only
/// from the first layer in which it differs from `base`, on the hidden states of the base run: a
/// plan that changes only the last layer costs one pass over the last layer. The figures equal
/// evaluate()'s up to rounding, and do not depend on `threads`.
///
/// Memory per thread: the logits and the layers' inputs of a piece, (vocabulary + layers x hidden)
/// x tokens x 4 bytes, and one cache. Throws what the model or a cache throws.
Divergences measure_divergence(const Model& model, const std::vector<std::vector<int>>& pieces,
                               const kvtilt::Plan& base, const std::vector<kvtilt::Plan>& plans,
                               const DivergenceOptions& options);

}  // namespace llama
