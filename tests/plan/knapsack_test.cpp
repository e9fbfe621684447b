// SPDX-License-Identifier: MIT
#include <kvtilt/plan/knapsack.hpp>

#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// The answer by the documented rules, from all combinations. Losses must be integers.
std::vector<std::size_t> brute_force(const std::vector<KnapsackItem>& items, std::size_t budget) {
  std::vector<std::size_t> at(items.size(), 0);
  std::vector<std::size_t> best;
  std::vector<std::size_t> best_bytes;
  double best_loss = std::numeric_limits<double>::infinity();
  std::size_t best_total = 0;
  for (;;) {
    double loss = 0;
    std::size_t total = 0;
    std::vector<std::size_t> bytes;
    for (std::size_t item = 0; item < items.size(); ++item) {
      loss += items[item][at[item]].loss;
      bytes.push_back(items[item][at[item]].bytes);
      total += bytes.back();
    }
    const bool better = loss != best_loss ? loss < best_loss
                        : total != best_total
                            ? total < best_total
                            : bytes > best_bytes;  // more bytes in the first item that differs
    if (total <= budget && (best.empty() || better)) {
      best = at;
      best_bytes = bytes;
      best_loss = loss;
      best_total = total;
    }
    std::size_t item = 0;  // the last item changes fastest
    for (item = items.size(); item-- > 0;) {
      if (++at[item] < items[item].size()) break;
      at[item] = 0;
    }
    if (item == static_cast<std::size_t>(-1)) return best;
  }
}

// Few distinct losses and sizes: nearly every answer ties with many others.
TEST(KnapsackProperty, EqualsBruteForceInEveryTie) {
  test::Random random(31);
  int solved = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<KnapsackItem> items(static_cast<std::size_t>(random.between(1, 5)));
    const int values = random.chance(2) ? 4 : 1000;
    for (KnapsackItem& item : items) {
      item.resize(static_cast<std::size_t>(random.between(1, 5)));
      for (KnapsackOption& option : item)
        option = {static_cast<std::size_t>(64 * random.between(0, random.chance(2) ? 4 : 40)),
                  static_cast<double>(random.below(values))};
    }
    const std::size_t budget = static_cast<std::size_t>(random.below(64 * 100));
    const std::vector<std::size_t> expected = brute_force(items, budget);
    const auto picked = solve_knapsack(items, budget);
    ASSERT_EQ(picked.ok(), !expected.empty()) << "round " << round;
    if (!picked.ok()) continue;
    ASSERT_EQ(*picked, expected) << "round " << round << ", budget " << budget;
    ++solved;
  }
  EXPECT_GT(solved, 2000);
}

TEST(KnapsackProperty, EqualsBruteForceOnLossesOfManySizes) {
  test::Random random(32);
  for (int round = 0; round < 500; ++round) {
    std::vector<KnapsackItem> items(4);
    for (KnapsackItem& item : items) {
      item.resize(6);
      double loss = std::exp(random.uniform(-15, 15));
      std::size_t bytes = 0;
      for (KnapsackOption& option : item) {
        option = {bytes += static_cast<std::size_t>(random.between(1, 500)), loss};
        loss *= random.uniform(0.1, 1.0);
      }
    }
    const std::size_t budget = static_cast<std::size_t>(random.between(2000, 8000));
    const auto expected = brute_force(items, budget);
    const auto picked = solve_knapsack(items, budget);
    ASSERT_EQ(picked.ok(), !expected.empty());
    if (!picked.ok()) continue;
    double sum = 0;
    double best = 0;
    for (std::size_t item = 0; item < items.size(); ++item) {
      sum += items[item][(*picked)[item]].loss;
      best += items[item][expected[item]].loss;
    }
    EXPECT_NEAR(sum, best, 1e-12 * best) << "round " << round;
  }
}

// A huge loss is how a caller forbids an option. It must act as if the option were not there: not
// coarsen the grid of all other losses.
TEST(KnapsackProperty, HugeLossesOnlyForbid) {
  test::Random random(34);
  int solved = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<KnapsackItem> with(5);
    std::vector<KnapsackItem> without(5);
    std::vector<std::vector<std::size_t>> indices(5);
    const double huge = random.chance(2) ? 1e300 : 1e15;
    for (std::size_t item = 0; item < 5; ++item)
      for (std::size_t i = 0; i < 6; ++i) {
        const KnapsackOption option{static_cast<std::size_t>(64 * random.between(1, 30)),
                                    random.uniform(0.1, 1.0)};
        const bool forbidden = i > 0 && random.chance(3);
        with[item].push_back({option.bytes, forbidden ? huge : option.loss});
        if (forbidden) continue;
        without[item].push_back(option);
        indices[item].push_back(i);
      }
    const auto budget = static_cast<std::size_t>(64 * random.between(20, 100));
    auto expected = solve_knapsack(without, budget);
    if (!expected.ok()) continue;
    for (std::size_t item = 0; item < 5; ++item)
      (*expected)[item] = indices[item][(*expected)[item]];
    const auto picked = solve_knapsack(with, budget);
    ASSERT_TRUE(picked.ok()) << picked.message();
    ASSERT_EQ(*picked, *expected) << "round " << round;
    ++solved;
  }
  EXPECT_GT(solved, 200);
}

// Where the budget leaves no other choice, the huge loss is taken.
TEST(Knapsack, TakesAHugeLossIfItMust) {
  const std::vector<KnapsackItem> items{{{1, 1e300}, {9, 1}}, {{1, 1e300}, {5, 1}}};
  EXPECT_THAT(*solve_knapsack(items, 14), ElementsAre(1, 1));
  EXPECT_THAT(*solve_knapsack(items, 13), ElementsAre(0, 1));
  EXPECT_THAT(*solve_knapsack(items, 2), ElementsAre(0, 0));
}

TEST(Knapsack, DropsOnlyWhatNoOptimumContains) {
  // A greedy solution would stop after the first step of the second item; the optimum takes both
  // steps of the first item instead.
  const std::vector<KnapsackItem> items{{{0, 100}, {10, 60}, {21, 30}}, {{0, 50}, {12, 0}}};
  EXPECT_THAT(*solve_knapsack(items, 21), ElementsAre(2, 0));
  EXPECT_THAT(*solve_knapsack(items, 22), ElementsAre(1, 1));
  EXPECT_THAT(*solve_knapsack(items, 33), ElementsAre(2, 1));
}

TEST(Knapsack, TakesNothingAndSingleOptions) {
  EXPECT_THAT(*solve_knapsack({}, 0), ElementsAre());
  EXPECT_THAT(*solve_knapsack({{{7, 3}}}, 7), ElementsAre(0));
  EXPECT_THAT(*solve_knapsack({{{7, 0}, {3, 0}}}, 100), ElementsAre(1));
  EXPECT_THAT(*solve_knapsack({{{7, 1e300}, {3, 1e300}}}, SIZE_MAX / 2), ElementsAre(1));
}

TEST(KnapsackHostile, RefusesLossesAndSizesThatAreNone) {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), -3.0, std::numeric_limits<double>::infinity()}) {
    const auto picked = solve_knapsack({{{3, 1}}, {{2, 1}, {1, bad}}}, 5);
    EXPECT_EQ(picked.code(), ErrorCode::InvalidValue);
    EXPECT_THAT(std::string(picked.message()), HasSubstr("item 1 has the loss"));
  }
  const auto wraps = solve_knapsack({{{SIZE_MAX, 1}}, {{10, 1}}}, 100);
  EXPECT_EQ(wraps.code(), ErrorCode::InvalidValue);
  EXPECT_THAT(std::string(wraps.message()), HasSubstr("10 bytes of item 1, the sum of all sizes"));
  EXPECT_EQ(solve_knapsack({{{SIZE_MAX, 1}}}, 100).code(), ErrorCode::InvalidArgument);
}

TEST(KnapsackHostile, SaysWhatIsWrong) {
  const auto small = solve_knapsack({{{7, 3}, {5, 4}}, {{6, 1}}}, 10);
  EXPECT_EQ(small.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(small.message()), HasSubstr("10 bytes is too small: the smallest that "
                                                      "works is 11"));
  EXPECT_THAT(std::string(solve_knapsack({{}}, 10).message()), HasSubstr("item 0 has 0 options"));
  // Every byte gains the same, so no option can be dropped, and sizes have no common divisor: the
  // table would take terabytes, so the solver refuses.
  std::vector<KnapsackItem> items;
  test::Random random(33);
  for (int item = 0; item < 64; ++item) {
    const double bytes = static_cast<double>(random.next() >> 24);
    items.push_back({{0, 0x1p40}, {static_cast<std::size_t>(bytes), 0x1p40 - bytes}});
  }
  const auto large = solve_knapsack(items, std::size_t{1} << 44);
  EXPECT_EQ(large.code(), ErrorCode::Unsupported);
  EXPECT_THAT(std::string(large.message()),
              HasSubstr("an exact answer for 64 items needs a table"));
}

}  // namespace
}  // namespace kvtilt
