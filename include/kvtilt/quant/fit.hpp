// SPDX-License-Identifier: MIT
/// Metadata and codes of a group under any range rule: calls the arithmetic of that rule.
#pragma once

#include <kvtilt/quant/affine.hpp>
#include <kvtilt/quant/centroids.hpp>
#include <kvtilt/quant/min_mse.hpp>

namespace kvtilt {

/// Scale and minimum of a group of at most max_group elements.
/// Cost: one pass for MinMax, two for Centroids, ten for MinMse. On CPUs Centroids are not vectorized:
/// sealing 1 bit takes nine times as long as 2 bits with MinMse.
KVTILT_HD constexpr Affine fit(GroupView group, int bits, RangeRule rule) {
  if (rule == RangeRule::Centroids) return fit_centroids(group);
  return rule == RangeRule::MinMse ? fit_min_mse(group, bits) : fit_min_max(group, bits);
}

/// Code of one value under metadata from fit().
KVTILT_HD constexpr int encode(F16 half, Affine affine, float inverse_scale, int bits,
                               RangeRule rule) {
  const float minimum = to_float(affine.minimum);
  return rule == RangeRule::MinMax ? encode(half, minimum, inverse_scale)
                                   : encode_clamped(half, minimum, inverse_scale, bits);
}

}  // namespace kvtilt
