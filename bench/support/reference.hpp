// SPDX-License-Identifier: MIT
/// Attention in float64, the reference for outputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace kvtilt::bench {

/// Adds the output of one query head to `out` (dim zeros). The key and value of token t begin at
/// keys + t * stride and values + t * stride; the token's weight is multiplied by count(t).
template <class Count>
void add_reference(const float* query, const float* keys, const float* values, std::size_t stride,
                   std::size_t dim, std::size_t tokens, Count count, double* out) {
  std::vector<double> logits(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    double dot = 0;
    for (std::size_t c = 0; c < dim; ++c)
      dot += static_cast<double>(query[c]) * static_cast<double>(keys[t * stride + c]);
    logits[t] = dot / std::sqrt(static_cast<double>(dim));
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    const double weight = count(t) * std::exp(logits[t] - largest);
    sum += weight;
    for (std::size_t c = 0; c < dim; ++c)
      out[c] += weight * static_cast<double>(values[t * stride + c]);
  }
  for (std::size_t c = 0; c < dim; ++c) out[c] /= sum;
}

}  // namespace kvtilt::bench
