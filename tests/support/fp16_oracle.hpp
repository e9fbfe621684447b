// SPDX-License-Identifier: MIT
/// fp16 and float32 arithmetic without floating point and without the library: fp16 is a list of
/// integers, the nearest is found by search, float32 rounding uses 128-bit integers. No compiler
/// flag, rounding mode or flush-to-zero mode can change a result.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

__extension__ typedef __int128 Wide;

/// The non-negative finite fp16 numbers, ascending, in units of 2^-24. Index = bit pattern. Their
/// spacing is one unit for the first 2048 and doubles every 1024 after that.
inline const std::vector<std::int64_t>& fp16_units() {
  static const std::vector<std::int64_t> table = [] {
    std::vector<std::int64_t> values;
    std::int64_t value = 0;
    std::int64_t spacing = 1;
    for (int index = 0; index < 31 * 1024; ++index) {
      values.push_back(value);
      if (index >= 2047 && index % 1024 == 1023) {
        value += spacing;
        spacing *= 2;
      } else {
        value += spacing;
      }
    }
    return values;
  }();
  return table;
}

/// Units of a finite bit pattern.
inline std::int64_t fp16_to_units(std::uint16_t bits) {
  const std::int64_t magnitude = fp16_units()[bits & 0x7fffu];
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

inline Wide absolute(Wide x) { return x < 0 ? -x : x; }

/// Bit pattern of the fp16 nearest to numerator / denominator units, ties to the even pattern;
/// infinity from 65520 on. A zero has the sign of the numerator. By binary search and comparison of
/// distances.
inline std::uint16_t nearest_fp16(Wide numerator, Wide denominator) {
  const std::vector<std::int64_t>& table = fp16_units();
  const Wide magnitude = absolute(numerator);
  std::size_t low = 0;  // table[low] <= magnitude / denominator
  std::size_t high = table.size();
  while (high - low > 1) {
    const std::size_t middle = (low + high) / 2;
    (table[middle] * denominator <= magnitude ? low : high) = middle;
  }
  const Wide above = high < table.size() ? table[high] : Wide{1} << 40;  // 65536: infinity
  const Wide down = magnitude - table[low] * denominator;
  const Wide up = above * denominator - magnitude;
  const std::size_t nearest = down < up || (down == up && low % 2 == 0) ? low : high;
  return static_cast<std::uint16_t>(nearest | (numerator < 0 ? 0x8000u : 0u));
}

/// A number mantissa * 2^exponent.
struct Binary {
  Wide mantissa = 0;
  int exponent = 0;
};

/// numerator / denominator * 2^exponent rounded half to even, as a float32 operation does; the
/// range of float32 exponents counts as unlimited. The mantissa keeps 24 bits.
inline Binary round_to_float32(Wide numerator, Wide denominator, int exponent) {
  if (numerator == 0) return {};
  const bool negative = numerator < 0;
  Wide magnitude = absolute(numerator);
  while (magnitude < denominator << 24) {
    magnitude <<= 1;
    --exponent;
  }
  while (magnitude >= denominator << 24) {
    denominator <<= 1;
    ++exponent;
  }
  Wide mantissa = magnitude / denominator;  // 2^23 to 2^24 - 1
  const Wide twice_rest = 2 * (magnitude - mantissa * denominator);
  if (twice_rest > denominator || (twice_rest == denominator && mantissa % 2 == 1)) ++mantissa;
  return {negative ? -mantissa : mantissa, exponent};
}

/// Bits of a float32 that is normal or zero.
inline std::uint32_t float32_bits(Binary x) {
  if (x.mantissa == 0) return 0;
  std::uint32_t mantissa = static_cast<std::uint32_t>(absolute(x.mantissa));
  while (mantissa < (1u << 23)) {
    mantissa <<= 1;
    --x.exponent;
  }
  while (mantissa >= (1u << 24)) {  // only ever a power of two: nothing is lost
    mantissa >>= 1;
    ++x.exponent;
  }
  return (x.mantissa < 0 ? 0x80000000u : 0u) |
         (static_cast<std::uint32_t>(x.exponent + 150) << 23) | (mantissa & 0x7fffffu);
}

/// Exact value of a finite float32 from its bits.
inline Binary float32_value(std::uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 23 & 255u);
  const Wide mantissa = (bits & 0x7fffffu) | (exponent == 0 ? 0u : 0x800000u);
  return {(bits >> 31) != 0 ? -mantissa : mantissa, (exponent == 0 ? 1 : exponent) - 150};
}

/// The fp16 nearest to a finite float32, by search.
inline std::uint16_t nearest_fp16_to_float(std::uint32_t float_bits) {
  const Binary value = float32_value(float_bits);
  const std::uint16_t sign = static_cast<std::uint16_t>(float_bits >> 16 & 0x8000u);
  const int shift = value.exponent + 24;  // value = mantissa * 2^shift units
  if (shift < -40) return sign;           // below 2^-16 units
  if (shift > 40) return sign | 0x7c00u;
  const Wide numerator = shift >= 0 ? value.mantissa << shift : value.mantissa;
  const Wide denominator = shift >= 0 ? 1 : Wide{1} << -shift;
  return static_cast<std::uint16_t>(nearest_fp16(numerator, denominator) | sign);
}

/// Nearest integer to numerator / denominator >= 0, half to even.
inline Wide round_half_even(Wide numerator, Wide denominator) {
  const Wide whole = numerator / denominator;
  const Wide twice_rest = 2 * (numerator - whole * denominator);
  const bool up = twice_rest > denominator || (twice_rest == denominator && whole % 2 == 1);
  return whole + (up ? 1 : 0);
}

/// Tests for NaN and infinity that -ffinite-math-only cannot remove.
inline bool is_finite(float x) {
  return (std::bit_cast<std::uint32_t>(x) & 0x7f800000u) != 0x7f800000u;
}
inline bool is_nan(float x) {
  return (std::bit_cast<std::uint32_t>(x) & 0x7fffffffu) > 0x7f800000u;
}

}  // namespace kvtilt::test
