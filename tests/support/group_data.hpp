// SPDX-License-Identifier: MIT
/// Groups to test quantizers with: usual ones, and hostile ones.
#pragma once

#include <kvtilt/quant/affine.hpp>
#include <kvtilt/quant/format.hpp>

#include "support/fp16_oracle.hpp"
#include "support/random.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvtilt::test {

enum class Data : std::uint8_t {
  Normal,
  Offset20,    // a key channel with a bias
  Offset700,   // so large that fp16 rounding is visible
  HeavyTails,  // cubed normal
  Uniform,
  Constant,
  TwoLevels,
  Subnormal,     // multiples of 2^-24 up to 40
  SignedZeros,   // only +0 and -0
  ZerosAndTiny,  // +0, -0 and the smallest subnormals of either sign
  Extremes,      // 65504 and -65504 and little else
  OneOutlier,
  AnyBits,      // any finite bit pattern
  Neighbours,   // a few neighbouring fp16 numbers
  WideRange,    // magnitudes from 2^-24 to 2^15
  Increasing,   // equal steps
  PowersOfTwo,  // ranges that hit scales exactly
};
inline constexpr int data_kinds = 17;

/// The nearest fp16, ties to even, 65504 at most. Faster than the oracle's search, which would take
/// most of the time of drawing.
inline std::uint16_t fp16_of(double x) {
  const double bounded = x > 65504 ? 65504 : x < -65504 ? -65504 : x;
  const std::int64_t fixed = std::llround(bounded * 0x1p40);
  const std::uint64_t magnitude = static_cast<std::uint64_t>(fixed < 0 ? -fixed : fixed);
  // Steps of 2^-24 up to 2048 of them, then of 1024 in each binade.
  const int binade = std::max(0, static_cast<int>(std::bit_width(magnitude >> 16)) - 11);
  const int shift = 16 + binade;
  const std::uint64_t half = std::uint64_t{1} << (shift - 1);
  const std::uint64_t odd = magnitude >> shift & 1;
  const std::uint64_t steps = (magnitude + half - 1 + odd) >> shift;
  return static_cast<std::uint16_t>((static_cast<std::uint64_t>(binade) * 1024 + steps) |
                                    (fixed < 0 ? 0x8000u : 0u));
}

/// What fixes a group before its elements are drawn.
struct GroupDraw {
  std::uint16_t first;
  std::uint16_t second;
  double width;
  int outlier;
};

inline std::uint16_t any_finite(Random& random) {
  const std::uint16_t bits = static_cast<std::uint16_t>(random.next());
  return (bits & 0x7c00u) == 0x7c00u ? static_cast<std::uint16_t>(bits & 0xbfffu) : bits;
}

inline std::uint16_t draw_element(Random& random, Data kind, const GroupDraw& draw, int index) {
  const std::uint16_t sign = random.chance(2) ? 0x8000u : 0u;
  const auto with_sign = [sign](int bits) { return static_cast<std::uint16_t>(bits | sign); };
  switch (kind) {
    case Data::Normal:
      return fp16_of(random.sampled_normal() * draw.width);
    case Data::Offset20:
      return fp16_of(20 + random.sampled_normal());
    case Data::Offset700:
      return fp16_of(-700 + random.sampled_normal());
    case Data::HeavyTails:
      return fp16_of(std::pow(random.sampled_normal(), 3) * draw.width);
    case Data::Uniform:
      return fp16_of(random.uniform(-1, 3) * draw.width);
    case Data::Constant:
      return draw.first;
    case Data::TwoLevels:
      return random.chance(3) ? draw.first : draw.second;
    case Data::Subnormal:
      return with_sign(random.below(41));
    case Data::SignedZeros:
      return sign;
    case Data::ZerosAndTiny:
      return with_sign(random.chance(2) ? 0 : random.below(4));
    case Data::Extremes:
      return random.chance(8) ? any_finite(random) : with_sign(0x7bff);
    case Data::OneOutlier:
      return fp16_of(random.sampled_normal() * (index == draw.outlier ? 1000 : 1) * draw.width);
    case Data::AnyBits:
      return any_finite(random);
    case Data::Neighbours:
      return static_cast<std::uint16_t>((draw.first & 0xbff0) + random.below(5));
    case Data::WideRange:
      return with_sign(random.below(31) << 10 | random.below(1024));
    case Data::Increasing:
      return fp16_of((index - 20) * draw.width);
    case Data::PowersOfTwo:
      return with_sign((draw.first & 0x3000) + (random.below(8) << 10));
  }
  return 0;
}

/// Fills a group; `largest` bounds magnitudes (32752 for one bit).
inline void fill_group(Random& random, Data kind, std::span<std::uint16_t> group,
                       float largest = f16_max) {
  const GroupDraw draw{any_finite(random), any_finite(random), std::exp2(random.uniform(-12, 8)),
                       random.below(static_cast<int>(group.size()))};
  for (std::size_t i = 0; i < group.size(); ++i) {
    std::uint16_t bits = draw_element(random, kind, draw, static_cast<int>(i));
    if (largest < f16_max && (bits & 0x7fffu) > 0x77ffu)  // 32752
      bits = static_cast<std::uint16_t>((bits & 0x8000u) | 0x77ffu);
    group[i] = bits;
  }
}

/// The library's view of bit patterns.
inline std::vector<F16> to_halves(std::span<const std::uint16_t> group) {
  std::vector<F16> halves;
  for (const std::uint16_t bits : group) halves.push_back(F16{bits});
  return halves;
}

inline GroupView view_of(const std::vector<F16>& group) {
  return {group.data(), static_cast<int>(group.size()), 1};
}

/// For messages of failed tests.
inline std::string describe(Data kind, std::span<const std::uint16_t> group, int bits,
                            RangeRule rule) {
  std::string text = "data " + std::to_string(static_cast<int>(kind)) + ", " +
                     std::to_string(bits) + " bits, " + to_string(rule) + ", group of " +
                     std::to_string(group.size()) + ":";
  for (const std::uint16_t half : group) text += " " + std::to_string(half);
  return text;
}

/// Calls body(kind, group) for groups of every size from 1 to 128 and every kind of data.
template <class Body>
void for_each_group(std::uint64_t seed, float largest, Body body) {
  Random random(seed);
  std::vector<std::uint16_t> group;
  for (int size = 1; size <= max_group; ++size)
    for (int kind = 0; kind < data_kinds; ++kind) {
      group.resize(static_cast<std::size_t>(size));
      fill_group(random, static_cast<Data>(kind), group, largest);
      body(static_cast<Data>(kind), std::span<const std::uint16_t>(group));
    }
}

/// The rules a width may use.
inline std::vector<RangeRule> rules_of(int bits) {
  if (bits == 1) return {RangeRule::Centroids};
  if (bits <= 5) return {RangeRule::MinMax, RangeRule::MinMse};
  return {RangeRule::MinMax};
}

}  // namespace kvtilt::test
