// SPDX-License-Identifier: MIT
#include <kvtilt/plan/error_law.hpp>
#include <kvtilt/plan/measure_error.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

namespace kvtilt {
namespace {

std::vector<float> gaussians(std::uint64_t seed, std::size_t count) {
  test::Random random(seed);
  std::vector<float> data(count);
  for (float& x : data) x = static_cast<float>(random.normal());
  return data;
}

constexpr Format law_format(const detail::LawRow& row, int group) {
  return {row.bits, Granularity::PerToken, group, row.rule};
}

// Recomputes the table from other numbers: a hundredth of the sample of bench/run.sh --error-law.
TEST(ErrorLawAgreement, TheTableIsWhatTheQuantizersDo) {
  constexpr std::size_t elements = 1 << 17;
  const std::vector<float> data = gaussians(11, elements);
  for (const detail::LawRow& row : detail::law_rows)
    for (const int group : detail::law_groups) {
      const TensorView view(data.data(), static_cast<std::int64_t>(elements) / group, 1, group);
      const auto error = measure_error(view, 0, law_format(row, group), 128);
      ASSERT_TRUE(error.ok()) << error.message();
      const double expected = relative_error(law_format(row, group));
      EXPECT_NEAR(*error / elements, expected, 0.03 * expected)
          << row.bits << " bits, " << to_string(row.rule) << ", group " << group;
    }
  const auto half = measure_error(TensorView(data.data(), elements / 64, 1, 64), 0, Format{}, 32);
  EXPECT_NEAR(*half / elements, relative_error(Format{}), 0.03 * relative_error(Format{}));
}

TEST(ErrorLawAgreement, HoldsBetweenTheGroupsOfTheTable) {
  for (const int group : {24, 48}) {
    constexpr std::size_t groups = 8192;
    const std::vector<float> data = gaussians(13, groups * static_cast<std::size_t>(group));
    const TensorView view(data.data(), groups, 1, group);
    for (const detail::LawRow& row : detail::law_rows) {
      const Format format = law_format(row, group);
      const double error = *measure_error(view, 0, format, 128) / static_cast<double>(data.size());
      EXPECT_NEAR(error, relative_error(format), 0.02 * error)
          << row.bits << " bits, " << to_string(row.rule) << ", group " << group;
    }
  }
}

// On independent data it does not matter along which axis groups run.
TEST(ErrorLawAgreement, HoldsPerChannelToo) {
  constexpr std::size_t elements = 1 << 17;
  const std::vector<float> data = gaussians(12, elements);
  const TensorView view(data.data(), static_cast<std::int64_t>(elements) / 64, 1, 64);
  for (const int bits : {1, 2, 4, 8}) {
    const Format format{bits, Granularity::PerChannel, 32, default_rule(bits)};
    const auto error = measure_error(view, 0, format, 64);
    EXPECT_NEAR(*error / elements, relative_error(format), 0.03 * relative_error(format)) << bits;
  }
}

TEST(ErrorLaw, MinMaxFollowsTheSquareOfItsLevels) {
  for (int group : {32, 64, 128}) {
    const double constant = relative_error({4, Granularity::PerToken, group, RangeRule::MinMax}) *
                            (max_code(4) * max_code(4));
    for (int bits = 2; bits <= 8; ++bits) {
      const int levels = max_code(bits);
      EXPECT_NEAR(
          relative_error({bits, Granularity::PerToken, group, RangeRule::MinMax}) * levels * levels,
          constant, 0.015 * constant)
          << bits;
    }
  }
}

TEST(ErrorLaw, FallsWithBitsAndGrowsWithGroups) {
  for (const int group : {8, 16, 24, 40, 64, 96, 128}) {
    for (int bits = 2; bits <= 8; ++bits)
      EXPECT_LT(relative_error(value_format(bits, Granularity::PerToken, group)),
                relative_error(value_format(bits - 1, Granularity::PerToken, group)))
          << bits;
    EXPECT_LT(relative_error(Format{}), relative_error(value_format(8)));
  }
  for (int bits = 1; bits <= 8; ++bits)
    for (int group = 16; group <= 128; group += 8)
      EXPECT_GT(relative_error(key_format(bits, Granularity::PerChannel, group)),
                relative_error(key_format(bits, Granularity::PerChannel, group - 8)));
}

TEST(ErrorLaw, MeetsTheTableAndLooksUpAtCompileTime) {
  static_assert(relative_error({4, Granularity::PerToken, 64, RangeRule::MinMse}) == 0.006842);
  static_assert(relative_error(value_format(4)) == relative_error(value_format(4, {}, 128)));
  EXPECT_EQ(relative_error({5, Granularity::PerToken, 4, RangeRule::MinMax}), 0.000572);
  EXPECT_EQ(relative_error({9, Granularity::PerToken, 64, RangeRule::MinMax}), 1.0);
}

}  // namespace
}  // namespace kvtilt
