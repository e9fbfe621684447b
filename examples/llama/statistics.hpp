// SPDX-License-Identifier: MIT
// What a model keeps in its cache and what meets it there: the numbers that plans from statistics
// are made of.
#pragma once

#include <kvtilt/plan/captured_losses.hpp>

#include "model.hpp"

#include <functional>
#include <vector>

namespace llama {

struct StatisticsOptions {
  int page_tokens = 64;
  long most_tokens = 16384;  // keys and values kept; pieces are left out evenly to stay below
  int threads = 1;
  std::function<void(double share)> progress;  // called now and then, by one thread at a time
};

/// Runs the pieces with the 16-bit baseline. Of each, the whole pages are kept: what a cache without
/// tail and sinks would quantize. A query counts for a token if it comes late enough to read it as
/// codes, which is from the token on that fills the page. Pieces without a whole page do not count;
/// throws if there is none that does, and what the model throws.
///
/// Memory: keys and values of most_tokens tokens as float32, and one piece per thread.
std::vector<kvtilt::CapturedLayer> capture_statistics(const Model& model,
                                                      const std::vector<std::vector<int>>& pieces,
                                                      const StatisticsOptions& options);

}  // namespace llama
