// SPDX-License-Identifier: MIT
#include <kvtilt/quant/min_mse.hpp>

#include "support/float_modes.hpp"
#include "support/group_check.hpp"
#include "support/group_data.hpp"
#include "support/quantizer_oracle.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

namespace kvtilt {
namespace {

using test::Data;

TEST(MinMse, CandidatesArePulledInEnds) {
  for (int bits = 2; bits <= 5; ++bits) {
    const int unit = bits == 2 ? 7 : bits == 3 ? 3 : 1;
    const int n = max_code(bits);
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        const MinMseCandidate candidate = min_mse_candidate(bits, 3 * i + j);
        const int factor = 1 << (7 - bits);
        EXPECT_EQ(candidate.offset, factor * n * i * unit);
        EXPECT_EQ(candidate.step, factor * (64 - (i + j) * unit));
        EXPECT_EQ(candidate.multiplier,
                  static_cast<int>(test::round_half_even(32768, candidate.step)));
        EXPECT_EQ(candidate.rise * 64, static_cast<float>(n * i * unit));
        EXPECT_EQ(candidate.shrink * 64, static_cast<float>(64 - (i + j) * unit));
      }
  }
}

TEST(MinMseAgreement, EqualsTheOracle) {
  for (int bits = 2; bits <= 5; ++bits)
    test::for_each_group(static_cast<std::uint64_t>(bits), f16_max,
                         [&](Data kind, std::span<const std::uint16_t> group) {
                           test::check_with_oracle(kind, group, bits, RangeRule::MinMse);
                         });
}

TEST(MinMseAgreement, FlushToZeroChangesNothing) {
  const test::FloatModeGuard guard(test::FloatMode::FlushToZero);
  for (int bits = 2; bits <= 5; ++bits)
    test::for_each_group(static_cast<std::uint64_t>(bits) + 50, f16_max,
                         [&](Data kind, std::span<const std::uint16_t> group) {
                           test::check_with_oracle(kind, group, bits, RangeRule::MinMse);
                         });
}

std::int64_t search_error(std::span<const std::uint16_t> group, int bits, int index) {
  const std::vector<F16> halves = test::to_halves(group);
  const Affine range = fit_min_max(test::view_of(halves), bits);
  const float inverse = reciprocal(range.scale);
  std::int64_t error = 0;
  for (const F16 half : halves)
    error += min_mse_error(min_mse_units(half, to_float(range.minimum), inverse, bits),
                           min_mse_candidate(bits, index), bits);
  return error;
}

/// The first candidate of least error wins; candidate 0 is MinMax itself.
TEST(MinMseProperty, NeverErrsMoreThanMinMax) {
  for (int bits = 2; bits <= 5; ++bits)
    test::for_each_group(static_cast<std::uint64_t>(bits) + 10, f16_max,
                         [&](Data kind, std::span<const std::uint16_t> group) {
                           int best = 0;
                           std::int64_t least = search_error(group, bits, 0);
                           for (int index = 1; index < min_mse_candidates; ++index) {
                             const std::int64_t error = search_error(group, bits, index);
                             if (error < least) {
                               least = error;
                               best = index;
                             }
                           }
                           const std::vector<F16> halves = test::to_halves(group);
                           const Affine range = fit_min_max(test::view_of(halves), bits);
                           const Affine expected =
                               best == 0 ? range
                                         : apply_min_mse(range, min_mse_candidate(bits, best));
                           EXPECT_EQ(fit_min_mse(test::view_of(halves), bits), expected)
                               << test::describe(kind, group, bits, RangeRule::MinMse);
                         });
}

TEST(MinMse, SumsOf128FitAnInteger) {
  for (int bits = 2; bits <= 5; ++bits)
    for (int index = 0; index < min_mse_candidates; ++index)
      for (int units = 0; units <= max_code(bits) << (13 - bits); ++units)
        ASSERT_LT(
            static_cast<std::int64_t>(min_mse_error(units, min_mse_candidate(bits, index), bits)) *
                max_group,
            std::int64_t{1} << 31);
}

TEST(MinMseProperty, UnitsSpanTheSearchScale) {
  for (int bits = 2; bits <= 5; ++bits)
    test::for_each_group(static_cast<std::uint64_t>(bits) + 20, f16_max,
                         [&](Data kind, std::span<const std::uint16_t> group) {
                           const std::vector<F16> halves = test::to_halves(group);
                           const Affine range = fit_min_max(test::view_of(halves), bits);
                           for (const F16 half : halves) {
                             const int units = min_mse_units(half, to_float(range.minimum),
                                                             reciprocal(range.scale), bits);
                             EXPECT_TRUE(units >= 0 && units <= max_code(bits) << (13 - bits))
                                 << test::describe(kind, group, bits, RangeRule::MinMse);
                           }
                         });
}

TEST(MinMse, KeepsConstantGroupsExact) {
  for (int bits = 0; bits < 0x7c00; bits += 3)
    for (const int sign : {0, 0x8000}) {
      const std::uint16_t pattern = static_cast<std::uint16_t>(bits | sign);
      const std::vector<F16> group(32, F16{pattern});
      const Affine affine = fit_min_mse(test::view_of(group), 2 + bits % 4);
      ASSERT_EQ(affine.scale.bits, 0);
      ASSERT_EQ(affine.minimum.bits, pattern == 0x8000 ? 0 : pattern);
    }
}

TEST(MinMseProperty, PowersOfTwoChangeNoCode) {
  for (int bits = 2; bits <= 5; ++bits) test::check_scale_equivariance(bits, RangeRule::MinMse);
}

/// The error ratios that the header and the error law state, on standard normal groups.
TEST(MinMseProperty, LowersTheErrorOfNormalGroups) {
  struct Row {
    int bits;
    int group;
    double ratio;
  };
  for (const Row& row : {Row{2, 32, 0.61},
                         {2, 64, 0.54},
                         {2, 128, 0.47},
                         {3, 32, 0.78},
                         {3, 64, 0.76},
                         {3, 128, 0.73},
                         {4, 32, 0.83},
                         {4, 64, 0.85},
                         {4, 128, 0.86},
                         {5, 32, 0.89},
                         {5, 64, 0.89},
                         {5, 128, 0.90}})
    EXPECT_NEAR(test::error_ratio(row.group, row.bits, RangeRule::MinMse, RangeRule::MinMax, 1500),
                row.ratio, 0.015)
        << row.bits << " bits, group of " << row.group;
}

TEST(MinMse, PullsInTheEndOfAnOutlier) {
  // 127 values from 0 to 1 and one 2: with two bits, clipping the 2 gives less error.
  std::vector<std::uint16_t> group;
  for (int i = 0; i < 127; ++i) group.push_back(test::fp16_of(i / 127.0));
  group.push_back(test::fp16_of(2.0));
  const std::vector<F16> halves = test::to_halves(group);
  EXPECT_LT(fit_min_mse(test::view_of(halves), 2).scale.bits,
            fit_min_max(test::view_of(halves), 2).scale.bits);
  EXPECT_LT(test::squared_error(group, 2, RangeRule::MinMse),
            0.75 * test::squared_error(group, 2, RangeRule::MinMax));
}

TEST(MinMse, IsUsableInConstantExpressions) {
  static constexpr F16 group[] = {{0x3c00}, {0x4000}, {0x4200}, {0x4400}};  // 1 2 3 4
  static_assert(fit_min_mse({group, 4, 1}, 2) == Affine{{0x3c00}, {0x3c00}});
}

/// Kernels clamp y to 0..n*step; the specification clamps the code to 0..n.
TEST(MinMseProperty, ClampingUnitsClampsCodes) {
  for (int bits = 2; bits <= 5; ++bits)
    for (int index = 0; index < min_mse_candidates; ++index) {
      const MinMseCandidate& candidate = min_mse_grids[bits - 2].candidates[index];
      const int end = max_code(bits) * candidate.step;
      for (int units = 0; units <= max_code(bits) << (13 - bits); ++units) {
        const int y = units - candidate.offset;
        const int clamped = y < 0 ? 0 : y > end ? end : y;
        const int code = (clamped * candidate.multiplier + (1 << 14)) >> 15;
        const int rest = y - code * candidate.step;
        ASSERT_EQ(rest * rest, min_mse_error(units, candidate, bits)) << bits << ' ' << index;
      }
    }
}

}  // namespace
}  // namespace kvtilt
