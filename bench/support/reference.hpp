// SPDX-License-Identifier: MIT
/// Attention in float64, the reference for outputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace kvtilt::bench {

/// What the heads of a reference look like.
struct ReferenceShape {
  std::size_t key_dim;
  std::size_t value_dim;
  std::size_t stride;  ///< from a token's key or value to the next
  double scale;        ///< of the logits

  static ReferenceShape square(std::size_t dim, std::size_t stride) {
    return {dim, dim, stride, 1.0 / std::sqrt(static_cast<double>(dim))};
  }
};

/// Adds the output of one query head to `out` (value_dim zeros); a token's weight is multiplied by
/// count(token).
template <class Count>
void add_reference(const ReferenceShape& shape, const float* query, const float* keys,
                   const float* values, std::size_t tokens, Count count, double* out) {
  std::vector<double> logits(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    double dot = 0;
    for (std::size_t c = 0; c < shape.key_dim; ++c)
      dot += static_cast<double>(query[c]) * static_cast<double>(keys[t * shape.stride + c]);
    logits[t] = dot * shape.scale;
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    const double weight = count(t) * std::exp(logits[t] - largest);
    sum += weight;
    for (std::size_t c = 0; c < shape.value_dim; ++c)
      out[c] += weight * static_cast<double>(values[t * shape.stride + c]);
  }
  for (std::size_t c = 0; c < shape.value_dim; ++c) out[c] /= sum;
}

}  // namespace kvtilt::bench
