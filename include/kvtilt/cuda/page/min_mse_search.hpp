// SPDX-License-Identifier: MIT
/// The search of min_mse.hpp over a lane's elements: one pass for all nine candidates.
///
/// The search minimizes sum (y - c*step)^2 - sum u^2, which with y = u - o (o: a candidate's
/// offset) is
///
///     step (step sum c^2 + 2 o sum c - 2 sum u c) + count o^2 - 2 o sum u
///
/// Codes c are bytes, so dot product instructions sum four at a time. Sums are modulo 2^32; the
/// difference of two errors fits. Cost per element and candidate: a multiply-add, 1/2 conversion,
/// 1/4 byte permute, 3/4 or 1 dot products.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/quant/min_mse.hpp>

#include <cstdint>

namespace kvtilt::cuda {

class MinMseSearch {
 public:
  /// minimum, inverse  of the group's MinMax metadata
  KVTILT_HD MinMseSearch(int bits, float minimum, float inverse)
      : MinMseSearch(bits, search_grid(bits), minimum, inverse) {}
  KVTILT_HD MinMseSearch(int bits, const SearchGrid& grid, float minimum, float inverse)
      : steps_(bits),
        minimum_(minimum),
        unit_(multiply(inverse, static_cast<float>(1 << (13 - bits)))) {
    KVTILT_DEVICE_UNROLL
    for (int sum = 0; sum < 5; ++sum) slopes_[sum] = grid.slopes[sum];
    KVTILT_DEVICE_UNROLL
    for (int k = 0; k < min_mse_candidates; ++k)
      starts_[k] = steps_.start(k / 3, slopes_[k / 3 + k % 3]);
  }

  /// Adds four elements, two fp16 in each word.
  KVTILT_HD void add(std::uint32_t first, std::uint32_t second) {
    const float values[4] = {low_half(first), high_half(first), low_half(second),
                             high_half(second)};
    std::uint32_t bits[4];
    float units[3][4];  // u, clamped to the top of each j
    KVTILT_DEVICE_UNROLL
    for (int e = 0; e < 4; ++e) {
      const float whole = plus(multiply(subtract(values[e], minimum_), unit_), rounder);
      bits[e] = bit_cast<std::uint32_t>(whole);
      units[0][e] = subtract(whole, rounder);
      units[1][e] = smaller(units[0][e], steps_.top(1));
      units[2][e] = smaller(units[0][e], steps_.top(2));
    }
    const std::uint32_t low = join_low(bits[0], bits[1]);
    const std::uint32_t high = join_low(bits[2], bits[3]);
    total_ = dot_words(low, high, 0x01010101u, total_);
    KVTILT_DEVICE_UNROLL
    for (int k = 0; k < min_mse_candidates; ++k) {
      float code[4];
      KVTILT_DEVICE_UNROLL
      for (int e = 0; e < 4; ++e)
        code[e] = multiply_add(units[k % 3][e], slopes_[k / 3 + k % 3], starts_[k]);
      const std::uint32_t bytes =
          permute_bytes(code_pair(code[0], code[1]), code_pair(code[2], code[3]), 0x6420);
      products_[k] = dot_words(low, high, bytes, products_[k]);
      squares_[k] = dot_bytes(bytes, bytes, squares_[k]);
      if (k >= 3) codes_[k] = dot_bytes(bytes, 0x01010101u, codes_[k]);  // the offset is not 0
    }
  }

  /// Squared error of candidate k minus the sum of u^2, for the `count` elements added.
  [[nodiscard]] KVTILT_HD std::uint32_t error(int k, int count) const {
    const std::uint32_t step = static_cast<std::uint32_t>(steps_.step(k / 3 + k % 3));
    const std::uint32_t offset = static_cast<std::uint32_t>(steps_.offset(k / 3));
    return step * (step * squares_[k] + 2 * offset * codes_[k] - 2 * products_[k]) +
           offset * (offset * static_cast<std::uint32_t>(count) - 2 * total_);
  }

 private:
  SearchSteps steps_;
  float minimum_;
  float unit_;
  float slopes_[5];
  float starts_[min_mse_candidates];
  std::uint32_t products_[min_mse_candidates] = {};
  std::uint32_t squares_[min_mse_candidates] = {};
  std::uint32_t codes_[min_mse_candidates] = {};
  std::uint32_t total_ = 0;
};

/// Index of the least error; of equal ones the first.
KVTILT_HD inline int least_error(const std::uint32_t (&errors)[min_mse_candidates]) {
  std::uint32_t least = errors[0];
  int best = 0;
  KVTILT_DEVICE_UNROLL
  for (int k = 1; k < min_mse_candidates; ++k)
    if (static_cast<std::int32_t>(errors[k] - least) < 0) {
      least = errors[k];
      best = k;
    }
  return best;
}

}  // namespace kvtilt::cuda
