// SPDX-License-Identifier: MIT
/// Quantizes a group with the library and with the oracle, and compares them.
#pragma once

#include <kvtilt/quant/fit.hpp>

#include "support/group_data.hpp"
#include "support/quantizer_oracle.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

namespace kvtilt::test {

/// A group as the library stores it.
struct StoredGroup {
  Affine affine;
  std::vector<int> codes;
};

inline StoredGroup quantize_by_library(std::span<const std::uint16_t> group, int bits,
                                       RangeRule rule) {
  const std::vector<F16> halves = to_halves(group);
  StoredGroup stored;
  stored.affine = fit(view_of(halves), bits, rule);
  const float inverse = reciprocal(stored.affine.scale);
  for (const F16 half : halves)
    stored.codes.push_back(encode(half, stored.affine, inverse, bits, rule));
  return stored;
}

/// Checks for equal metadata bits and equal codes. Returns false after a reported difference.
inline bool check_with_oracle(Data kind, std::span<const std::uint16_t> group, int bits,
                              RangeRule rule) {
  const StoredGroup stored = quantize_by_library(group, bits, rule);
  const OracleGroup expected = quantize_by_oracle(group, bits, rule);
  const bool same = stored.affine.scale.bits == expected.scale &&
                    stored.affine.minimum.bits == expected.minimum &&
                    stored.codes == expected.codes;
  EXPECT_TRUE(same) << "scale " << stored.affine.scale.bits << " not " << expected.scale
                    << ", minimum " << stored.affine.minimum.bits << " not " << expected.minimum
                    << ", " << describe(kind, group, bits, rule);
  return same;
}

/// Sum of squared errors of a group's decoded values; in double, for statistics only.
inline double squared_error(std::span<const std::uint16_t> group, int bits, RangeRule rule) {
  const StoredGroup stored = quantize_by_library(group, bits, rule);
  double sum = 0;
  for (std::size_t i = 0; i < group.size(); ++i) {
    const double error = static_cast<double>(to_float(F16{group[i]})) -
                         static_cast<double>(decode(stored.codes[i], stored.affine));
    sum += error * error;
  }
  return sum;
}

/// Squared error of `rule` over that of `other` on standard normal groups.
inline double error_ratio(int size, int bits, RangeRule rule, RangeRule other, int groups) {
  Random random(static_cast<std::uint64_t>(size * 16 + bits));
  std::vector<std::uint16_t> group(static_cast<std::size_t>(size));
  double error = 0;
  double other_error = 0;
  for (int g = 0; g < groups; ++g) {
    for (std::uint16_t& half : group) half = fp16_of(random.sampled_normal());
    error += squared_error(group, bits, rule);
    other_error += squared_error(group, bits, other);
  }
  return error / other_error;
}

/// The same group times 2^exponent, for groups that stay normal.
inline std::vector<std::uint16_t> scaled_by_power(std::span<const std::uint16_t> group,
                                                  int exponent) {
  std::vector<std::uint16_t> scaled;
  for (const std::uint16_t half : group)
    scaled.push_back(static_cast<std::uint16_t>(half + (exponent << 10)));
  return scaled;
}

/// Groups of normal numbers of magnitude 1 to 2, times powers of two, keep their codes; scales and
/// minima take the exponent.
inline void check_scale_equivariance(int bits, RangeRule rule) {
  Random random(static_cast<std::uint64_t>(bits) + 77);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::uint16_t> group(static_cast<std::size_t>(random.between(2, 128)));
    for (std::uint16_t& half : group)
      half =
          static_cast<std::uint16_t>(0x3c00 | random.below(1024) | (random.chance(2) ? 0x8000 : 0));
    group[0] = 0xbc00;
    group[1] = 0x3d00;
    const StoredGroup base = quantize_by_library(group, bits, rule);
    for (int exponent = -5; exponent <= 13; ++exponent) {
      const StoredGroup scaled = quantize_by_library(scaled_by_power(group, exponent), bits, rule);
      ASSERT_EQ(scaled.codes, base.codes) << describe(Data::Uniform, group, bits, rule);
      ASSERT_EQ(scaled.affine.scale.bits, base.affine.scale.bits + (exponent << 10));
      ASSERT_EQ(scaled.affine.minimum.bits, base.affine.minimum.bits + (exponent << 10));
    }
  }
}

}  // namespace kvtilt::test
