// SPDX-License-Identifier: MIT
#include <kvtilt/core/softmax_state.hpp>

#include "support/fp16_oracle.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace kvtilt {
namespace {

/// log2 of the sum of 2^logit.
double log2_sum(const std::vector<double>& logits) {
  double maximum = logits[0];
  for (const double logit : logits) maximum = std::fmax(maximum, logit);
  double sum = 0;
  for (const double logit : logits) sum += std::exp2(logit - maximum);
  return maximum + std::log2(sum);
}

double log2_sum(const SoftmaxState& state) {
  return static_cast<double>(state.maximum) + std::log2(static_cast<double>(state.sum));
}

SoftmaxState one(float logit) { return {logit, 1.0f}; }

TEST(SoftmaxState, IsEmptyAtFirst) {
  const SoftmaxState state;
  EXPECT_TRUE(state.empty());
  EXPECT_EQ(std::bit_cast<std::uint32_t>(state.lse()), 0xff800000u) << "minus infinity";
  EXPECT_FALSE(one(0.0f).empty());
}

TEST(SoftmaxState, GivesTheNaturalLogarithm) {
  for (const float maximum : {-1000.0f, -1.5f, 0.0f, 3.0f, 20000.0f})
    for (const float sum : {1.0f, 1.5f, 128.0f, 1.0e6f}) {
      const double exact =
          (static_cast<double>(maximum) + std::log2(static_cast<double>(sum))) * std::log(2.0);
      EXPECT_NEAR(static_cast<double>((SoftmaxState{maximum, sum}).lse()), exact,
                  4e-7 * (std::fabs(exact) + 1));
    }
}

TEST(SoftmaxState, EmptyPartsAreNeutral) {
  SoftmaxState state{3.0f, 2.5f};
  MergeWeights weights = merge(state, SoftmaxState{});
  EXPECT_EQ(weights.first, 1.0f);
  EXPECT_EQ(weights.second, 0.0f);
  EXPECT_EQ(state.maximum, 3.0f);
  EXPECT_EQ(state.sum, 2.5f);

  SoftmaxState empty;
  weights = merge(empty, state);
  EXPECT_EQ(weights.first, 0.0f);
  EXPECT_EQ(weights.second, 1.0f);
  EXPECT_EQ(empty.maximum, 3.0f);
  EXPECT_EQ(empty.sum, 2.5f);

  SoftmaxState nothing;
  merge(nothing, SoftmaxState{});
  EXPECT_TRUE(nothing.empty());
}

TEST(SoftmaxState, MergesPartsOfVeryDifferentSize) {
  SoftmaxState state{-1.0e30f, 5.0f};
  MergeWeights weights = merge(state, {1.0e30f, 3.0f});
  EXPECT_EQ(weights.first, 0.0f);
  EXPECT_EQ(weights.second, 1.0f);
  EXPECT_EQ(state.maximum, 1.0e30f);
  EXPECT_EQ(state.sum, 3.0f);
  weights = merge(state, {-1.0e30f, 7.0f});
  EXPECT_EQ(weights.first, 1.0f);
  EXPECT_EQ(weights.second, 0.0f);
  EXPECT_EQ(state.sum, 3.0f);
}

TEST(SoftmaxStateProperty, WeightsRescaleTheSums) {
  SoftmaxState state{2.0f, 3.0f};
  const MergeWeights weights = merge(state, {5.0f, 7.0f});
  EXPECT_EQ(weights.first, 0.125f);
  EXPECT_EQ(weights.second, 1.0f);
  EXPECT_EQ(state.maximum, 5.0f);
  EXPECT_EQ(state.sum, 7.375f);
}

TEST(SoftmaxStateProperty, AnyOrderGivesTheSumOfAll) {
  test::Random random(3);
  for (int round = 0; round < 2000; ++round) {
    const int count = random.between(1, 20);
    const double spread = std::exp2(random.uniform(-2, 12));
    std::vector<double> logits;
    std::vector<SoftmaxState> parts;
    for (int i = 0; i < count; ++i) {
      const float logit = static_cast<float>(random.normal() * spread);
      logits.push_back(static_cast<double>(logit));
      parts.push_back(one(logit));
      if (random.chance(4)) parts.emplace_back();
    }
    while (parts.size() > 1) {
      const std::size_t first =
          static_cast<std::size_t>(random.below(static_cast<int>(parts.size())));
      const SoftmaxState part = parts[first];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(first));
      merge(parts[static_cast<std::size_t>(random.below(static_cast<int>(parts.size())))], part);
    }
    ASSERT_TRUE(test::is_finite(parts[0].sum));
    ASSERT_NEAR(log2_sum(parts[0]), log2_sum(logits), 4e-6 + 1e-9 * spread);
  }
}

}  // namespace
}  // namespace kvtilt
