// SPDX-License-Identifier: MIT
#include <kvtilt/quant/centroids.hpp>

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

constexpr float largest = 32752.0f;

Affine fit_values(const std::vector<float>& values) {
  std::vector<F16> group;
  for (const float value : values) group.push_back(to_f16(value));
  return fit_centroids(test::view_of(group));
}

TEST(Centroids, AreTheMeansOfTheHalves) {
  const Affine affine = fit_values({1, 2, 3, 10});  // the mean is 4: {1, 2, 3} and {10}
  EXPECT_EQ(to_float(affine.minimum), 2.0f);
  EXPECT_EQ(to_float(affine.scale), 8.0f);
}

TEST(Centroids, PutTheMeanItselfBelow) {
  const Affine affine = fit_values({0, 2, 4});  // 2 is the mean
  EXPECT_EQ(to_float(affine.minimum), 1.0f);
  EXPECT_EQ(to_float(affine.scale), 3.0f);
}

TEST(Centroids, SubtractTheRoundedMinimum) {
  // The lower mean 2049 / 2 rounds to 1024; the scale is the distance from there to the upper mean.
  const Affine affine = fit_values({1024, 1025, 3000, 3000});
  EXPECT_EQ(to_float(affine.minimum), 1024.0f);
  EXPECT_EQ(to_float(affine.scale), 1976.0f);
}

TEST(Centroids, ComeFromSums) {
  EXPECT_EQ(centroids({64 << 20, 4, 0, 0}), (Affine{{0}, {0x3c00}}));
  EXPECT_EQ(centroids({0, 1, 3 << 24, 1}), (Affine{{0x4200}, {0}}));
}

TEST(CentroidsAgreement, EqualTheOracle) {
  for (std::uint64_t seed = 0; seed < 4; ++seed)
    test::for_each_group(seed + 300, largest, [&](Data kind, std::span<const std::uint16_t> group) {
      test::check_with_oracle(kind, group, 1, RangeRule::Centroids);
    });
}

TEST(Centroids, KeepConstantGroupsExact) {
  for (int bits = 0; bits < 65536; ++bits) {
    if ((bits & 0x7fff) > 0x77ff) continue;
    const std::vector<F16> group(static_cast<std::size_t>(bits % 128 + 1),
                                 F16{static_cast<std::uint16_t>(bits)});
    const Affine affine = fit_centroids(test::view_of(group));
    ASSERT_EQ(affine.scale.bits, 0);
    ASSERT_EQ(affine.minimum.bits, bits == 0x8000 ? 0 : bits);
  }
}

TEST(CentroidsProperty, KeepTwoLevelsWithinTheirRounding) {
  test::Random random(11);
  std::vector<std::uint16_t> group(64);
  for (int round = 0; round < 500; ++round) {
    test::fill_group(random, Data::TwoLevels, group, largest);
    const auto stored = test::quantize_by_library(group, 1, RangeRule::Centroids);
    for (std::size_t i = 0; i < group.size(); ++i) {
      const double value = static_cast<double>(to_float(F16{group[i]}));
      const double error = static_cast<double>(decode(stored.codes[i], stored.affine)) - value;
      const double scale = static_cast<double>(to_float(stored.affine.scale));
      ASSERT_LE(std::abs(error), 0x1p-11 * scale + 0x1p-24 * (std::abs(value) + 1));
    }
  }
}

TEST(CentroidsHostile, LargestMagnitudesKeepTheScaleFinite) {
  for (int low_count = 1; low_count < 128; ++low_count) {
    std::vector<F16> group(128, F16{0x77ff});
    for (int i = 0; i < low_count; ++i) group[static_cast<std::size_t>(i)] = F16{0xf7ff};
    const Affine affine = fit_centroids(test::view_of(group));
    EXPECT_EQ(affine.minimum.bits, 0xf7ff);
    EXPECT_EQ(to_float(affine.scale), 65504.0f);
  }
}

TEST(CentroidsProperty, ScaleIsPositiveUnlessConstant) {
  for (std::uint64_t seed = 0; seed < 4; ++seed)
    test::for_each_group(seed + 400, largest, [&](Data kind, std::span<const std::uint16_t> group) {
      bool constant = true;
      for (const std::uint16_t half : group)
        constant = constant && test::fp16_to_units(half) == test::fp16_to_units(group[0]);
      const std::vector<F16> halves = test::to_halves(group);
      const Affine affine = fit_centroids(test::view_of(halves));
      EXPECT_EQ(affine.scale.bits == 0, constant)
          << test::describe(kind, group, 1, RangeRule::Centroids);
      EXPECT_LT(affine.scale.bits, 0x7c00);
    });
}

TEST(CentroidsProperty, PowersOfTwoChangeNoCode) {
  test::check_scale_equivariance(1, RangeRule::Centroids);
}

/// The error law for one bit: squared error relative to the variance of normal groups.
TEST(CentroidsProperty, ErrsAsMeasured) {
  for (const auto& [size, expected] : {std::pair{32, 0.343}, {128, 0.358}}) {
    test::Random random(static_cast<std::uint64_t>(size));
    std::vector<std::uint16_t> group(static_cast<std::size_t>(size));
    double error = 0;
    double variance = 0;
    for (int g = 0; g < 1500; ++g) {
      double sum = 0;
      double squares = 0;
      for (std::uint16_t& half : group) {
        const double value = random.normal();
        half = test::fp16_of(value);
        sum += value;
        squares += value * value;
      }
      variance += squares - sum * sum / size;
      error += test::squared_error(group, 1, RangeRule::Centroids);
    }
    EXPECT_NEAR(error / variance, expected, 0.006) << size;
  }
}

TEST(Centroids, AreUsableInConstantExpressions) {
  static constexpr F16 group[] = {{0x3c00}, {0x4000}, {0x4200}, {0x4900}};  // 1 2 3 10
  static_assert(fit_centroids({group, 4, 1}) == Affine{{0x4800}, {0x4000}});
}

}  // namespace
}  // namespace kvtilt
