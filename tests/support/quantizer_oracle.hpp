// SPDX-License-Identifier: MIT
/// A second implementation of the arithmetic of quant/: integers, rationals and
/// searches; it uses nothing of the library but the names of its rules.
#pragma once

#include <kvtilt/quant/format.hpp>

#include "support/fp16_oracle.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace kvtilt::test {

/// The stored form that a group must have.
struct OracleGroup {
  std::uint16_t scale = 0;
  std::uint16_t minimum = 0;
  std::vector<int> codes;
};

namespace oracle {

/// h - z in float32, in units of 2^-24 times 2^exponent.
inline Binary difference(std::int64_t value, std::int64_t minimum) {
  return round_to_float32(value - minimum, 1, 0);
}

/// 1/s in float32 for s in units, as a multiple of 2^exponent per unit; 0 for 0.
inline Binary inverse(std::int64_t scale) {
  return scale == 0 ? Binary{} : round_to_float32(1, scale, 0);
}

/// rint((h - z) * inv * 2^shift), half to even, every operation in float32; at least 0.
inline std::int64_t scaled_rint(std::int64_t value, std::int64_t minimum, Binary inverse,
                                int shift) {
  const Binary offset = difference(value, minimum);
  if (offset.mantissa <= 0 || inverse.mantissa == 0) return 0;
  const Binary t =
      round_to_float32(offset.mantissa * inverse.mantissa, 1, offset.exponent + inverse.exponent);
  const int exponent = t.exponent + shift;
  if (exponent >= 0) return static_cast<std::int64_t>(t.mantissa << exponent);
  if (exponent < -60) return 0;
  return static_cast<std::int64_t>(round_half_even(t.mantissa, Wide{1} << -exponent));
}

/// Smallest fp16 s with s * n >= max - z.
inline std::uint16_t covering_scale(std::int64_t low, std::int64_t high, int n) {
  const Binary range = difference(high, low);
  // Ranges reach 2^41 units and may carry up to 17 bits that float32 drops: exponents are 0 to 17.
  const Wide units =
      range.exponent >= 0 ? range.mantissa << range.exponent : range.mantissa >> -range.exponent;
  const std::vector<std::int64_t>& table = fp16_units();
  const auto found = std::partition_point(table.begin(), table.end(),
                                          [&](std::int64_t s) { return Wide{s} * n < units; });
  return static_cast<std::uint16_t>(found - table.begin());
}

/// Metadata has no negative zero.
inline std::uint16_t plus_zero(std::uint16_t bits) { return bits == 0x8000u ? 0 : bits; }

inline OracleGroup min_max(std::span<const std::int64_t> values, int n) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return {covering_scale(*low, *high, n), plus_zero(nearest_fp16(*low, 1)), {}};
}

/// Means of the lower and the upper half, each rounded once.
inline OracleGroup one_bit(std::span<const std::int64_t> values) {
  const Wide count = static_cast<Wide>(values.size());
  Wide total = 0;
  for (const std::int64_t value : values) total += value;
  Wide low = 0;
  Wide low_count = 0;
  for (const std::int64_t value : values)
    if (value * count <= total) {
      low += value;
      ++low_count;
    }
  OracleGroup group;
  group.minimum = plus_zero(nearest_fp16(low, low_count));
  const Wide high_count = count - low_count;
  if (high_count == 0) return group;
  const Wide minimum = fp16_to_units(group.minimum);
  group.scale = nearest_fp16(total - low - minimum * high_count, high_count);
  return group;
}

/// The integer search. Returns the squared error of the winner, and of i = j = 0 in `first_error`.
inline std::int64_t min_mse(std::span<const std::int64_t> values, int bits, OracleGroup& group,
                            std::int64_t* first_error = nullptr) {
  static constexpr int pull[] = {7, 3, 1, 1};
  const int n = (1 << bits) - 1;
  const int unit = pull[bits - 2];
  const std::int64_t minimum = fp16_to_units(group.minimum);
  const std::int64_t scale = fp16_to_units(group.scale);
  const Binary inv = inverse(scale);
  std::int64_t least = -1;
  int best_i = 0;
  int best_j = 0;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      const int sum = i + j;
      const std::int64_t step = (std::int64_t{64} - sum * unit) << (7 - bits);
      const std::int64_t m = static_cast<std::int64_t>(round_half_even(1 << 15, step));
      std::int64_t error = 0;
      for (const std::int64_t value : values) {
        const std::int64_t u = scaled_rint(value, minimum, inv, 13 - bits);
        const std::int64_t y = u - ((std::int64_t{n} * i * unit) << (7 - bits));
        const std::int64_t product = y * m + (1 << 14);
        const std::int64_t floor = product >= 0 ? product / 32768 : -((32767 - product) / 32768);
        const std::int64_t c = std::clamp<std::int64_t>(floor, 0, n);
        error += (y - c * step) * (y - c * step);
      }
      if (i == 0 && j == 0 && first_error != nullptr) *first_error = error;
      if (least < 0 || error < least) {
        least = error;
        best_i = i;
        best_j = j;
      }
    }
  if (best_i == 0 && best_j == 0) return least;
  group.minimum = plus_zero(nearest_fp16(Wide{minimum} * 64 + Wide{scale} * n * best_i * unit, 64));
  group.scale = nearest_fp16(Wide{scale} * (64 - (best_i + best_j) * unit), 64);
  return least;
}

}  // namespace oracle

/// Metadata and codes of a group of fp16 bit patterns.
inline OracleGroup quantize_by_oracle(std::span<const std::uint16_t> group, int bits,
                                      RangeRule rule) {
  std::vector<std::int64_t> values;
  for (const std::uint16_t half : group) values.push_back(fp16_to_units(half));
  const int n = (1 << bits) - 1;
  OracleGroup result =
      rule == RangeRule::Centroids ? oracle::one_bit(values) : oracle::min_max(values, n);
  if (rule == RangeRule::MinMse) oracle::min_mse(values, bits, result);
  const Binary inv = oracle::inverse(fp16_to_units(result.scale));
  for (const std::int64_t value : values)
    result.codes.push_back(static_cast<int>(std::min<std::int64_t>(
        oracle::scaled_rint(value, fp16_to_units(result.minimum), inv, 0), n)));
  return result;
}

}  // namespace kvtilt::test
