// SPDX-License-Identifier: MIT
// Captures a model's keys and values and the attention that reads them: the input of plans from
// statistics.
#pragma once

#include <kvtilt/plan/captured_losses.hpp>

#include "model.hpp"

#include <functional>
#include <vector>

namespace llama {

struct StatisticsOptions {
  int page_tokens = 64;
  long most_tokens = 16384;  // limit of tokens kept; whole pieces are left out evenly to meet it
  int threads = 1;
  std::function<void(double share)> progress;  // called repeatedly, by one thread at a time
};

/// Runs the pieces with the 16-bit baseline. Of each, the whole pages are kept: what a cache
/// without tail and sinks would quantize. A query counts for a token only if a cache would let it
/// read the token as codes: from the token on that fills the page. Pieces without a whole page do
/// not count. Throws if there is no other piece, and what the model throws.
///
/// Memory: keys and values of most_tokens tokens as float32, and one piece per thread.
std::vector<kvtilt::CapturedLayer> capture_statistics(const Model& model,
                                                      const std::vector<std::vector<int>>& pieces,
                                                      const StatisticsOptions& options);

}  // namespace llama
