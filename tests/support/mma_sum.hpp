// SPDX-License-Identifier: MIT
#pragma once

#include <kvtilt/core/half.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace kvtilt::test {

/// One element of a tensor core's product, with the rounding of an H200 as probed
/// (mma_numerics.cuh, "subnormal.sum" in bench/results/h200-probes.json): every term is truncated
/// towards zero at 2^-25 of the largest that the exponents of the terms allow (an fp16 subnormal
/// counts as 2^-14), and so is the sum at the end of its float. Long sums of one sign therefore
/// come out too small.
class MmaSum {
 public:
  explicit MmaSum(float start) { put(static_cast<double>(start), exponent_of(start, -126)); }

  /// Adds the product of two fp16 values.
  void add(float a, float b) {
    put(static_cast<double>(a) * static_cast<double>(b), exponent_of(a, -14) + exponent_of(b, -14));
  }

  [[nodiscard]] float value() const {
    double sum = 0;
    for (int i = 0; i < count_; ++i) sum += term_[i];
    if (!std::isfinite(sum)) return static_cast<float>(sum);
    const double quantum = power(largest_ - 25);
    const double quanta = power(25 - largest_);
    sum = 0;
    for (int i = 0; i < count_; ++i) sum += std::trunc(term_[i] * quanta);
    sum *= quantum;
    const float nearest = static_cast<float>(sum);
    return std::fabs(static_cast<double>(nearest)) > std::fabs(sum) ? std::nextafter(nearest, 0.0f)
                                                                    : nearest;
  }

 private:
  static int exponent_of(float x, int least) {
    return std::max(static_cast<int>(bit_cast<std::uint32_t>(x) >> 23 & 255u) - 127, least);
  }
  static double power(int exponent) {
    return bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
  }
  void put(double term, int exponent) {
    term_[count_++] = term;
    if (term != 0) largest_ = std::max(largest_, exponent);
  }

  double term_[17];
  int count_ = 0;
  int largest_ = -126;
};

}  // namespace kvtilt::test
