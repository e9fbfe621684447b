// SPDX-License-Identifier: MIT
/// fp16 and bf16 as bit patterns. Conversions use integers and exact operations only, so no
/// compiler flag, rounding mode or flush-to-zero mode changes their results.
#pragma once

#include <kvtilt/core/config.hpp>

#include <cstdint>

namespace kvtilt {

/// std::bit_cast that device code may call too.
template <class To, class From>
[[nodiscard]] KVTILT_HD constexpr To bit_cast(From from) {
  return __builtin_bit_cast(To, from);
}

/// IEEE binary16. Layout-compatible with __half, _Float16 and std::float16_t (bit_cast to it).
struct F16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(F16, F16) = default;
};

/// bfloat16, the upper half of a binary32. Layout-compatible with __nv_bfloat16.
struct BF16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(BF16, BF16) = default;
};

inline constexpr float f16_max = 65504.0f;

/// Exact. NaN stays NaN.
KVTILT_HD constexpr float to_float(F16 half) {
  const std::uint32_t sign = (half.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (half.bits >> 10) & 31u;
  const std::uint32_t mantissa = half.bits & 1023u;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // a normal float32: exact
  return bit_cast<float>(sign | bit_cast<std::uint32_t>(magnitude));
}

/// Exact.
KVTILT_HD constexpr float to_float(BF16 half) {
  return bit_cast<float>(static_cast<std::uint32_t>(half.bits) << 16);
}

namespace detail {

/// |x| truncated to fp16, and the cut-off bits on a scale that tells whether they are more than
/// half a unit in the last place, exactly half or less.
struct TruncatedF16 {
  std::uint32_t bits;
  std::uint32_t rest;  // the cut-off bits
  std::uint32_t half;  // half a unit in the last place, on the scale of `rest`; never 0
};

KVTILT_HD constexpr TruncatedF16 truncate_to_f16(std::uint32_t magnitude) {
  const std::uint32_t exponent = magnitude >> 23;
  const std::uint32_t mantissa = magnitude & 0x7fffffu;
  if (exponent >= 113)  // normal in fp16
    return {((exponent - 112) << 10) | (mantissa >> 13), mantissa & 0x1fffu, 0x1000u};
  const std::uint32_t full = mantissa | 0x800000u;
  const std::uint32_t shift = 126 - exponent;  // the unit of fp16 subnormals is 2^-24
  if (exponent == 0 || shift > 24) return {0, magnitude == 0 ? 0u : 1u, 2};  // below half a unit
  return {full >> shift, full & ((1u << shift) - 1), 1u << (shift - 1)};
}

}  // namespace detail

/// Rounds to nearest, ties to even. |x| >= 65520 becomes infinity, NaN a quiet NaN, float32
/// subnormals zero.
KVTILT_HD constexpr F16 to_f16(float x) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return F16{static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return F16{static_cast<std::uint16_t>(sign | 0x7c00u)};
  const detail::TruncatedF16 cut = detail::truncate_to_f16(magnitude);
  const bool up = cut.rest > cut.half || (cut.rest == cut.half && (cut.bits & 1u) != 0);
  return F16{static_cast<std::uint16_t>(sign | (cut.bits + (up ? 1u : 0u)))};
}

/// As to_f16(), but -0 becomes +0: metadata must not depend on the order in which zeros are
/// compared.
KVTILT_HD constexpr F16 to_f16_plus_zero(float x) {
  const F16 half = to_f16(x);
  return half.bits == 0x8000u ? F16{} : half;
}

/// Smallest fp16 >= x, for 0 <= x <= 65504.
KVTILT_HD constexpr F16 to_f16_up(float x) {
  const detail::TruncatedF16 cut = detail::truncate_to_f16(bit_cast<std::uint32_t>(x));
  return F16{static_cast<std::uint16_t>(cut.bits + (cut.rest != 0 ? 1u : 0u))};
}

/// Rounds to nearest, ties to even. NaN stays NaN.
KVTILT_HD constexpr BF16 to_bf16(float x) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return BF16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return BF16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

/// An fp16 as an integer multiple of 2^-24: exact, |result| < 2^40. Not for infinity and NaN.
KVTILT_HD constexpr std::int64_t to_units(F16 half) {
  const int exponent = (half.bits >> 10) & 31;
  const std::int64_t mantissa = half.bits & 1023;
  const std::int64_t magnitude = exponent == 0 ? mantissa : (mantissa | 1024) << (exponent - 1);
  return (half.bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

/// fp16 nearest to numerator / denominator * 2^-24, ties to even; a result of zero is +0.
/// denominator > 0; the result must not exceed 65504 in magnitude.
KVTILT_HD constexpr F16 units_ratio_to_f16(std::int64_t numerator, std::int64_t denominator) {
  const bool negative = numerator < 0;
  const std::int64_t magnitude = negative ? -numerator : numerator;
  std::int64_t quotient = magnitude / denominator;  // whole units of 2^-24
  int shift = 0;  // low bits of the quotient to drop: fp16 keeps 11
  while ((quotient >> shift) >= 2048) ++shift;
  const std::int64_t unit = denominator << shift;
  quotient = magnitude / unit;
  const std::int64_t twice_rest = 2 * (magnitude - quotient * unit);
  if (twice_rest > unit || (twice_rest == unit && (quotient & 1) != 0)) ++quotient;
  if (quotient == 2048) {
    quotient = 1024;
    ++shift;
  }
  const std::int64_t bits =
      quotient < 1024 ? quotient : (static_cast<std::int64_t>(shift + 1) << 10) + quotient - 1024;
  if (bits == 0) return F16{};
  return F16{static_cast<std::uint16_t>(bits | (negative ? 0x8000 : 0))};
}

}  // namespace kvtilt
