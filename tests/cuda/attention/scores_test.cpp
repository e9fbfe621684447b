// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/scores.hpp>

#include "support/attend_item.hpp"
#include "support/attention_oracle.hpp"
#include "support/random.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

namespace kvtilt::cuda {
namespace {

using test::AttendItem;
using test::column_of;
using test::outer_of;
using test::Random;
using test::Rows;

constexpr int score_tiles = 4;
constexpr int score_bands = 2;
using SomeScores = Scores<score_tiles, score_bands>;

SomeScores random_scores(Random& random) {
  SomeScores scores;
  for (auto& tile : scores.product)
    for (float& product : tile) product = static_cast<float>(random.normal());
  for (float& factor : scores.factor) factor = static_cast<float>(random.uniform(0.5, 3.0));
  for (auto& band : scores.bias)
    for (float& bias : band) bias = static_cast<float>(random.normal());
  return scores;
}

/// The logit of an element, without rules.
float logit_of(const SomeScores& scores, int tile, int e) {
  return std::fma(scores.product[tile][e], scores.factor[e],
                  scores.bias[tile * score_bands / score_tiles][e % 2]);
}

TEST(AttendScores, LargestLogitIsThatOfPlainArithmetic) {
  Random random(4);
  for (int round = 0; round < 200; ++round) {
    const SomeScores scores = random_scores(random);
    float expected[2] = {no_maximum, no_maximum};
    for (int tile = 0; tile < score_tiles; ++tile)
      for (int e = 0; e < 4; ++e)
        expected[e % 2] = std::fmax(expected[e % 2], logit_of(scores, tile, e));
    float largest[2];
    scores.largest(largest);
    EXPECT_EQ(largest[0], expected[0]);
    EXPECT_EQ(largest[1], expected[1]);
  }
}

TEST(AttendScores, WeightsAreThoseOfPlainArithmetic) {
  Random random(5);
  const SomeScores scores = random_scores(random);
  AttendState<16, 0, 1> state;
  state.clear();
  state.maximum[0] = 1.5f;
  state.maximum[1] = -2.0f;
  SomeScores weights = scores;
  weights.weigh(state);
  double sums[2] = {};
  for (int tile = 0; tile < score_tiles; ++tile)
    for (int e = 0; e < 4; ++e) {
      const double expected = std::exp2(static_cast<double>(logit_of(scores, tile, e)) -
                                        static_cast<double>(state.maximum[e % 2]));
      EXPECT_NEAR(static_cast<double>(weights.product[tile][e]), expected, 1e-5 * expected);
      sums[e % 2] += expected;
    }
  EXPECT_NEAR(static_cast<double>(state.sum[0]), sums[0], 1e-5 * sums[0]);
  EXPECT_NEAR(static_cast<double>(state.sum[1]), sums[1], 1e-5 * sums[1]);
}

/// Slots 0 to 49 hold tokens 100 to 149; the rows are tokens 148 to 151. So the first row does not
/// see slot 49, and all other rows could see slots that hold no token.
TEST(AttendScores, ShapedLogitsFollowTheRules) {
  Random random(6);
  const float slopes[2] = {0.25f, 0.03f};
  for (const float cap : {0.0f, 5.0f})
    for (const bool sloped : {false, true}) {
      AttendItem item(Rows<float>(4, 2, 16), 100 + 52);
      AttendRules& rules = item.arguments.rules;
      rules.soft_cap = cap;
      rules.window = 30;
      if (sloped) rules.alibi_slopes = slopes;
      const SomeScores before = random_scores(random);
      for (int lane = 0; lane < 32; ++lane) {
        SomeScores scores = before;
        scores.transform_and_mask(item.arguments, item.rows, lane, 100, 50, false);
        for (int tile = 0; tile < score_tiles; ++tile)
          for (int e = 0; e < 4; ++e) {
            const int column = column_of(lane, e);
            const int slot = tile * tile_extent + outer_of(lane, e);
            const std::int64_t distance = 100 + slot - item.position(column);
            const float got = logit_of(scores, tile, e);
            if (slot >= 50 || distance > 0 || distance <= -rules.window) {
              EXPECT_TRUE(test::is_minus_infinity(got)) << slot << ", " << column;
              continue;
            }
            double expected = static_cast<double>(logit_of(before, tile, e));
            if (cap > 0) expected = 5.0 * std::tanh(expected);
            if (sloped)
              expected += static_cast<double>(slopes[column % 2]) * 1.4426950408889634 *
                          static_cast<double>(distance);
            EXPECT_NEAR(static_cast<double>(got), expected, 1e-5) << slot << ", " << column;
          }
      }
    }
}

}  // namespace
}  // namespace kvtilt::cuda
