// SPDX-License-Identifier: MIT
/// Scale and minimum of 1-bit groups. Min-max would err by more than the signal, so the two levels
/// are the means of the elements up to the group's mean and of those above it:
///
///     z = fp16(mean of h <= mean),  s = fp16(mean of h > mean, minus z), code clamped to 0..1
///
/// Means are ratios of integers (fp16 values are multiples of 2^-24), rounded once. A constant
/// group has no element above its mean: s = 0 and z = h. |h| <= 32752 keeps s within fp16.
#pragma once

#include <kvtilt/quant/affine.hpp>

namespace kvtilt {

/// Sums, in units of 2^-24, and counts that determine a group's levels.
struct CentroidSums {
  std::int64_t low_sum = 0;
  std::int64_t low_count = 0;
  std::int64_t high_sum = 0;
  std::int64_t high_count = 0;
};

KVTILT_HD constexpr Affine centroids(const CentroidSums& sums) {
  const F16 minimum = units_ratio_to_f16(sums.low_sum, sums.low_count);
  if (sums.high_count == 0) return {F16{}, minimum};
  const std::int64_t spread = sums.high_sum - to_units(minimum) * sums.high_count;
  return {units_ratio_to_f16(spread, sums.high_count), minimum};
}

/// Scale and minimum of a one-bit group of at most 128 elements.
KVTILT_HD constexpr Affine fit_centroids(GroupView group) {
  std::int64_t total = 0;
  for (int i = 0; i < group.count; ++i) total += to_units(group[i]);
  CentroidSums sums;
  for (int i = 0; i < group.count; ++i) {
    const std::int64_t value = to_units(group[i]);
    const bool high = value * group.count > total;
    (high ? sums.high_sum : sums.low_sum) += value;
    (high ? sums.high_count : sums.low_count) += 1;
  }
  return centroids(sums);
}

}  // namespace kvtilt
