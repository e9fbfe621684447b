// SPDX-License-Identifier: MIT
/// MinMse: shrinks a group's range at both ends, by steps of a small integer grid, and keeps the
/// candidate of least squared error. Squared error relative to MinMax on Gaussian groups of 32 to
/// 128: 0.47-0.61 at 2 bits, 0.73-0.78 at 3, 0.83-0.86 at 4, 0.9 at 5 (smaller groups gain less:
/// 0.72 at 2 bits in groups of 8). From 6 bits on MinMax is used: this grid's steps of 1/64 of the
/// range would gain less than 3 %.
///
/// The search does not see that z' and s' are then rounded to fp16. That can cost more than it
/// gained where a group's minimum is far larger than its range (512 standard deviations from zero,
/// 4 bits: MinMax is better in 40 % of groups of 64, 3 times in the worst of 20,000; the mean is
/// still 0.95 of MinMax), and where the range is only a few fp16 subnormals.
///
///     u = rint((h - z) * inv * 2^(13-b))             z, inv from MinMax; n = 2^b - 1
///     for i, j in 0..2 and D = 7, 3, 1, 1 (b = 2, 3, 4, 5):
///       y    = u - n*2^(7-b)*i*D                     the low end rises by i*D/64 of the range
///       step = 2^(7-b)*(64-(i+j)*D)                  the high end falls by j*D/64
///       m    = round(2^15/step)
///       c    = clamp((y*m + 2^14) >> 15, 0, n)       a 16-bit multiply-high with rounding
///       e    = sum (y - c*step)^2                    below 2^31 for groups of up to 128
///     the least e wins; of equal ones, the lowest 3i+j
///     z' = fp16(z + s*n*i*D/64),  s' = fp16(s*(64-(i+j)*D)/64), nearest;  i = j = 0 keeps z and s
#pragma once

#include <kvtilt/quant/affine.hpp>

namespace kvtilt {

/// One candidate of the grid for a width.
struct MinMseCandidate {
  int offset;      ///< subtracted from u
  int step;        ///< from one code to the next, in units of u
  int multiplier;  ///< round(2^15 / step)
  float rise;      ///< z' = z + s * rise
  float shrink;    ///< s' = s * shrink
};

inline constexpr int min_mse_candidates = 9;

/// Candidate 3i + j of a width from 2 to 5.
KVTILT_HD constexpr MinMseCandidate min_mse_candidate(int bits, int index) {
  const int unit = bits == 2 ? 7 : bits == 3 ? 3 : 1;
  const int low = index / 3 * unit;
  const int kept = 64 - low - index % 3 * unit;
  const int step = kept << (7 - bits);
  return {(max_code(bits) * low) << (7 - bits), step, (65536 / step + 1) / 2,
          static_cast<float>(max_code(bits) * low) * 0x1p-6f, static_cast<float>(kept) * 0x1p-6f};
}

/// All candidates of a width.
struct MinMseGrid {
  MinMseCandidate candidates[min_mse_candidates] = {};
  constexpr explicit MinMseGrid(int bits) {
    for (int index = 0; index < min_mse_candidates; ++index)
      candidates[index] = min_mse_candidate(bits, index);
  }
};
inline constexpr MinMseGrid min_mse_grids[] = {MinMseGrid(2), MinMseGrid(3), MinMseGrid(4),
                                               MinMseGrid(5)};

/// u: one element on the search's integer scale, 0 to n * 2^(13-bits).
KVTILT_HD constexpr int min_mse_units(F16 half, float minimum, float inverse_scale, int bits) {
  return round_half_even((to_float(half) - minimum) * inverse_scale *
                         static_cast<float>(1 << (13 - bits)));
}

/// Squared error of one element under a candidate.
KVTILT_HD constexpr int min_mse_error(int units, const MinMseCandidate& candidate, int bits) {
  const int y = units - candidate.offset;
  int code = (y * candidate.multiplier + (1 << 14)) >> 15;
  code = code < 0 ? 0 : code > max_code(bits) ? max_code(bits) : code;
  const int rest = y - code * candidate.step;
  return rest * rest;
}

/// Scale and minimum of a candidate. `range` holds those of MinMax.
KVTILT_HD constexpr Affine apply_min_mse(Affine range, const MinMseCandidate& candidate) {
  const float scale = to_float(range.scale);
  const float rise = scale * candidate.rise;  // exact: 11 + 6 bits
  return {to_f16(scale * candidate.shrink), to_f16_plus_zero(to_float(range.minimum) + rise)};
}

/// Scale and minimum of the candidate of least squared error, rounded. 2 <= bits <= 5, at most 128 elements.
KVTILT_HD constexpr Affine fit_min_mse(GroupView group, int bits) {
  const Affine range = fit_min_max(group, bits);
  const float minimum = to_float(range.minimum);
  const float inverse = reciprocal(range.scale);
  int units[max_group] = {};
  for (int i = 0; i < group.count; ++i) units[i] = min_mse_units(group[i], minimum, inverse, bits);
  int best = 0;
  int best_error = 0;
  for (int index = 0; index < min_mse_candidates; ++index) {
    const MinMseCandidate candidate = min_mse_candidate(bits, index);
    int error = 0;
    for (int i = 0; i < group.count; ++i) error += min_mse_error(units[i], candidate, bits);
    if (index == 0 || error < best_error) {
      best = index;
      best_error = error;
    }
  }
  return best == 0 ? range : apply_min_mse(range, min_mse_candidate(bits, best));
}

}  // namespace kvtilt
