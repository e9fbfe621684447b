// SPDX-License-Identifier: MIT
/// The running state of an online softmax (Milakov and Gimelshein, arXiv 1805.02867) and how two
/// partial results combine.
#pragma once

#include <kvtilt/core/half.hpp>

#include <cmath>
#include <cstdint>

namespace kvtilt {

/// Kernels multiply logits by log2(e) and exponentiate with base 2.
inline constexpr float log2_e = 1.44269504088896341f;

/// The default scale of logits, 1 / sqrt(key_dim). In double, because -ffast-math may replace a
/// float square root by an approximation.
inline float implied_scale(int key_dim) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(key_dim)));
}

// Minus infinity is made and tested as bits: -ffast-math may assume that no infinity occurs.
inline constexpr std::uint32_t minus_infinity_bits = 0xff800000u;

KVTILT_HD inline bool is_minus_infinity(float x) {
  return bit_cast<std::uint32_t>(x) == minus_infinity_bits;
}

/// Maximum of the base-2 logits so far, and the sum of 2^(logit - maximum). Empty: sum = 0.
struct SoftmaxState {
  float maximum = 0.0f;
  float sum = 0.0f;

  [[nodiscard]] bool empty() const { return sum == 0.0f; }

  /// Natural log-sum-exp; minus infinity if empty.
  [[nodiscard]] float lse() const {
    if (empty()) return bit_cast<float>(minus_infinity_bits);
    return (maximum + std::log2(sum)) * 0.693147180559945309f;
  }
};

/// Weights by which two unnormalised outputs must be multiplied before they are added.
struct MergeWeights {
  float first;
  float second;
};

/// Folds `part` into `state` and returns the weights of their outputs, `state`'s first. An empty
/// part changes nothing; the order of parts changes results by rounding only.
inline MergeWeights merge(SoftmaxState& state, const SoftmaxState& part) {
  if (part.empty()) return {1.0f, 0.0f};
  if (state.empty()) {
    state = part;
    return {0.0f, 1.0f};
  }
  const float maximum = state.maximum > part.maximum ? state.maximum : part.maximum;
  const MergeWeights weights{std::exp2(state.maximum - maximum), std::exp2(part.maximum - maximum)};
  state = {maximum, state.sum * weights.first + part.sum * weights.second};
  return weights;
}

}  // namespace kvtilt
