// SPDX-License-Identifier: MIT
#include <kvtilt/quant/fit.hpp>

#include "support/float_modes.hpp"
#include "support/group_check.hpp"
#include "support/group_data.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

namespace kvtilt {
namespace {

using test::Data;

float largest_of(int bits) { return largest_magnitude({.bits = bits}); }

TEST(Fit, ChoosesTheRule) {
  test::Random random(21);
  std::vector<std::uint16_t> group(128);
  test::fill_group(random, Data::HeavyTails, group, 32752.0f);
  const std::vector<F16> halves = test::to_halves(group);
  const GroupView view = test::view_of(halves);
  EXPECT_EQ(fit(view, 2, RangeRule::MinMax), fit_min_max(view, 2));
  EXPECT_EQ(fit(view, 2, RangeRule::MinMse), fit_min_mse(view, 2));
  EXPECT_EQ(fit(view, 1, RangeRule::Centroids), fit_centroids(view));
  EXPECT_NE(fit(view, 2, RangeRule::MinMse), fit(view, 2, RangeRule::MinMax));
}

TEST(Fit, ClampsWhereMetadataDoesNotCover) {
  const Affine affine{to_f16(1.0f), to_f16(10.0f)};
  const float inverse = reciprocal(affine.scale);
  EXPECT_EQ(encode(to_f16(-5.0f), affine, inverse, 2, RangeRule::MinMse), 0);
  EXPECT_EQ(encode(to_f16(12.0f), affine, inverse, 2, RangeRule::MinMse), 2);
  EXPECT_EQ(encode(to_f16(99.0f), affine, inverse, 2, RangeRule::MinMse), 3);
  EXPECT_EQ(encode(to_f16(99.0f), affine, inverse, 1, RangeRule::Centroids), 1);
  EXPECT_EQ(encode(to_f16(12.0f), affine, inverse, 2, RangeRule::MinMax), 2);
}

TEST(FitAgreement, EveryWidthAndRuleEqualsTheOracle) {
  for (int bits = 1; bits <= 8; ++bits)
    for (const RangeRule rule : test::rules_of(bits))
      test::for_each_group(500 + static_cast<std::uint64_t>(bits), largest_of(bits),
                           [&](Data kind, std::span<const std::uint16_t> group) {
                             test::check_with_oracle(kind, group, bits, rule);
                           });
}

TEST(FitRandom, ManyGroupsEqualTheOracle) {
  test::Random random(31);
  std::vector<std::uint16_t> group;
  for (int round = 0; round < 6000; ++round) {
    const int bits = random.between(1, 8);
    const std::vector<RangeRule> rules = test::rules_of(bits);
    const RangeRule rule =
        rules[static_cast<std::size_t>(random.below(static_cast<int>(rules.size())))];
    const Data kind = static_cast<Data>(random.below(test::data_kinds));
    group.resize(static_cast<std::size_t>(random.between(1, 128)));
    test::fill_group(random, kind, group, largest_of(bits));
    // Mixtures of two kinds reach cases that no single kind does.
    if (group.size() > 1 && random.chance(3))
      test::fill_group(random, static_cast<Data>(random.below(test::data_kinds)),
                       std::span(group).first(group.size() / 2), largest_of(bits));
    ASSERT_TRUE(test::check_with_oracle(kind, group, bits, rule));
  }
}

TEST(FitProperty, OrderDoesNotMatter) {
  test::Random random(41);
  std::vector<std::uint16_t> group(100);
  for (int bits = 1; bits <= 8; ++bits)
    for (const RangeRule rule : test::rules_of(bits))
      for (int kind = 0; kind < test::data_kinds; ++kind) {
        test::fill_group(random, static_cast<Data>(kind), group, largest_of(bits));
        const Affine affine = fit(test::view_of(test::to_halves(group)), bits, rule);
        for (std::size_t i = group.size() - 1; i > 0; --i)
          std::swap(group[i],
                    group[static_cast<std::size_t>(random.below(static_cast<int>(i) + 1))]);
        EXPECT_EQ(fit(test::view_of(test::to_halves(group)), bits, rule), affine);
      }
}

/// Any group of finite numbers gives a finite scale and minimum.
TEST(FitHostile, MetadataIsAlwaysFinite) {
  for (int bits = 1; bits <= 8; ++bits)
    for (const RangeRule rule : test::rules_of(bits))
      for (const Data kind : {Data::Extremes, Data::AnyBits, Data::WideRange})
        for (std::uint64_t seed = 0; seed < 20; ++seed) {
          test::Random random(seed);
          std::vector<std::uint16_t> group(static_cast<std::size_t>(random.between(1, 128)));
          test::fill_group(random, kind, group, largest_of(bits));
          const auto stored = test::quantize_by_library(group, bits, rule);
          ASSERT_LT(stored.affine.scale.bits, 0x7c00);
          ASSERT_LT(stored.affine.minimum.bits & 0x7fff, 0x7c00);
          ASSERT_NE(stored.affine.minimum.bits, 0x8000);
          for (const int code : stored.codes) ASSERT_TRUE(code >= 0 && code <= max_code(bits));
        }
}

}  // namespace
}  // namespace kvtilt
