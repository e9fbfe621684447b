// SPDX-License-Identifier: MIT
/// The arithmetic of quantization, as constexpr scalar code. This file, min_mse.hpp and
/// centroids.hpp are its specification: every kernel on every machine produces exactly these bits.
///
///     n     = 2^bits - 1                             the largest code
///     h     = fp16 of the input, nearest even; only h is ever quantized
///     z     = min(h), -0 becomes +0                  exact
///     s     = smallest fp16 with s*n >= max(h) - z   float32; s*n is exact
///     inv   = 1/s correctly rounded; 0 if s = 0
///     code  = rint((h - z) * inv), half to even      within 0..n by construction
///     value = z + s*code                             s*code is exact: FMA gives the same bits
///
/// |h - value| <= s (1/2 + 2^(bits-22)) and s <= range/n (1 + 2^-10) + 2^-24. A constant group has
/// s = 0 and decodes to h exactly.
///
/// Headers are compiled with any flags, so no result may depend on them: no sum has an inexact
/// product as a term (contraction), no result depends on a floating-point division
/// (-freciprocal-math), nothing is summed up in floating point (-fassociative-math), comparisons
/// that decide a result compare bits, and no float32 subnormal can arise (flush-to-zero): fp16
/// values are multiples of 2^-24.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/quant/format.hpp>

#include <cstdint>

namespace kvtilt {

/// Scale and minimum, which all elements of a group share.
struct Affine {
  F16 scale;    ///< >= 0
  F16 minimum;  ///< value of code 0; never -0
  friend constexpr bool operator==(const Affine&, const Affine&) = default;
};

KVTILT_HD constexpr int max_code(int bits) { return (1 << bits) - 1; }

/// 1/s rounded to nearest for an fp16 s > 0, by integer division; 0 for s = 0.
KVTILT_HD constexpr float reciprocal(F16 s) {
  if (s.bits == 0) return 0.0f;
  std::uint32_t mantissa = s.bits & 1023u;
  int exponent = (s.bits >> 10) - 25;  // s = mantissa * 2^exponent
  if (s.bits >= 1024u)
    mantissa |= 1024u;
  else
    for (exponent = -24; mantissa < 1024u; --exponent) mantissa <<= 1;
  if (mantissa == 1024u)  // a power of two
    return bit_cast<float>(static_cast<std::uint32_t>(117 - exponent) << 23);
  // 2^34 / mantissa lies in (2^23, 2^24): a float32 mantissa. Never a tie.
  const std::uint64_t quotient = ((std::uint64_t{1} << 35) / mantissa + 1) >> 1;
  return bit_cast<float>((static_cast<std::uint32_t>(116 - exponent) << 23) +
                         static_cast<std::uint32_t>(quotient - 0x800000u));
}

/// Nearest integer to 0 <= t < 2^22, half to even; independent of the rounding mode. -0 gives 0.
KVTILT_HD constexpr int round_half_even(float t) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(t);
  const int exponent = static_cast<int>(bits >> 23) - 127;
  if (exponent < -1 || (bits >> 31) != 0) return 0;
  const std::uint32_t full = (bits & 0x7fffffu) | 0x800000u;
  const int shift = 23 - exponent;  // 2 to 24
  const std::uint32_t whole = full >> shift;
  const std::uint32_t rest = full & ((1u << shift) - 1);
  const std::uint32_t half = 1u << (shift - 1);
  return static_cast<int>(whole + ((rest > half || (rest == half && (whole & 1u) != 0)) ? 1 : 0));
}

/// For non-negative floats the order of the bits is the order of the values.
KVTILT_HD constexpr bool at_least(float a, float b) {
  return bit_cast<std::uint32_t>(a) >= bit_cast<std::uint32_t>(b);
}

/// Smallest fp16 s with s * levels >= range, for 0 <= range <= 131008 and a result within fp16.
KVTILT_HD constexpr F16 smallest_scale(float range, int levels) {
  const float n = static_cast<float>(levels);
  // The product with the rounded reciprocal is at most two fp16 units off: step to the exact
  // answer.
  F16 scale = to_f16_up(range * (1.0f / n));
  while (!at_least(to_float(scale) * n, range)) ++scale.bits;
  while (scale.bits != 0) {
    const F16 below{static_cast<std::uint16_t>(scale.bits - 1)};
    if (!at_least(to_float(below) * n, range)) break;
    scale = below;
  }
  return scale;
}

/// Maps an fp16 to an integer with the same order, both zeros to 0: minimum and maximum are exact
/// and do not depend on the order of comparison.
KVTILT_HD constexpr int ordered(F16 half) {
  const int magnitude = half.bits & 0x7fff;
  return (half.bits & 0x8000) != 0 ? -magnitude : magnitude;
}

/// The inverse of ordered(); never -0.
KVTILT_HD constexpr F16 from_ordered(int order) {
  return F16{static_cast<std::uint16_t>(order < 0 ? 0x8000 - order : order)};
}

/// The elements of one group: count values, stride apart.
struct GroupView {
  const F16* data;
  int count;
  std::int64_t stride;
  [[nodiscard]] KVTILT_HD constexpr F16 operator[](int i) const { return data[i * stride]; }
};

/// Scale and minimum of a group whose smallest and largest elements are known. bits >= 2: at 1 bit
/// a range above 65504 would have no fp16 scale.
KVTILT_HD constexpr Affine range_affine(F16 low, F16 high, int bits) {
  const F16 minimum = from_ordered(ordered(low));  // no -0
  const float range = to_float(from_ordered(ordered(high))) - to_float(minimum);
  return {smallest_scale(range, max_code(bits)), minimum};
}

/// Scale and minimum that cover the whole range. bits >= 2.
KVTILT_HD constexpr Affine fit_min_max(GroupView group, int bits) {
  int low = ordered(group[0]);
  int high = low;
  for (int i = 1; i < group.count; ++i) {
    const int value = ordered(group[i]);
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  return range_affine(from_ordered(low), from_ordered(high), bits);
}

/// Code of one value under MinMax metadata, where no clamp is needed.
KVTILT_HD constexpr int encode(F16 half, float minimum, float inverse_scale) {
  return round_half_even((to_float(half) - minimum) * inverse_scale);
}

/// Code of one value under metadata that need not cover the whole range (MinMse, Centroids).
KVTILT_HD constexpr int encode_clamped(F16 half, float minimum, float inverse_scale, int bits) {
  const float offset = to_float(half) - minimum;
  if ((bit_cast<std::uint32_t>(offset) >> 31) != 0) return 0;
  const float t = offset * inverse_scale;
  if (at_least(t, static_cast<float>(max_code(bits)))) return max_code(bits);
  return round_half_even(t);
}

/// z + s*code in float32: only the sum is rounded.
KVTILT_HD constexpr float decode(int code, Affine affine) {
  return to_float(affine.minimum) + to_float(affine.scale) * static_cast<float>(code);
}

}  // namespace kvtilt
