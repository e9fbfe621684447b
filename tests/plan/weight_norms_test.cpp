// SPDX-License-Identifier: MIT
#include <kvtilt/plan/weight_norms.hpp>

#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::HasSubstr;

std::vector<float> gaussian(std::uint64_t seed, std::size_t count) {
  test::Random random(seed);
  std::vector<float> data(count);
  for (float& x : data) x = static_cast<float>(random.normal());
  return data;
}

TEST(WeightNorms, OfTheWholeAndOfEveryHead) {
  constexpr int heads = 3;
  constexpr int dim = 16;
  constexpr int hidden = 40;
  std::vector<float> weights = gaussian(51, heads * dim * hidden);
  for (std::size_t i = dim * hidden; i < 2 * dim * hidden; ++i) weights[i] *= 3;
  const WeightView view(weights.data(), heads * dim, hidden);
  const auto norms = weight_norms(view, heads);
  ASSERT_TRUE(norms.ok()) << norms.message();
  ASSERT_EQ(norms->head_frobenius.size(), 3u);
  ASSERT_EQ(norms->head_spectral.size(), 3u);
  double squares = 0;
  for (int head = 0; head < heads; ++head) {
    const WeightView part = view.slice(head * dim, dim);
    const std::size_t h = static_cast<std::size_t>(head);
    EXPECT_EQ(norms->head_frobenius[h], *frobenius_norm(part));
    EXPECT_EQ(norms->head_spectral[h], spectral_norm(part, *frobenius_norm(part))->value);
    EXPECT_LE(norms->head_spectral[h], norms->spectral * (1 + 1e-5));
    squares += norms->head_frobenius[h] * norms->head_frobenius[h];
  }
  EXPECT_NEAR(norms->frobenius, std::sqrt(squares), 1e-9);
  EXPECT_GT(norms->head_frobenius[1], 2 * norms->head_frobenius[0]);
  EXPECT_EQ(norms->hidden, hidden);
  EXPECT_EQ(norms->bias, 0);
}

TEST(WeightNorms, OfABias) {
  const std::vector<float> weights = gaussian(52, 8 * 8);
  std::vector<float> bias(8, 0.0f);
  bias[1] = 3;
  bias[6] = -4;
  const WeightView view(weights.data(), 8, 8);
  EXPECT_EQ(weight_norms(view, 1, bias)->bias, 5);
  EXPECT_EQ(weight_norms(view, 2, bias)->head_bias, (std::vector<double>{3, 4}));
  EXPECT_TRUE(weight_norms(view, 2)->head_bias.empty());
  bias[2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(std::string(weight_norms(view, 1, bias).message()), HasSubstr("element 2"));
  bias.pop_back();
  EXPECT_THAT(std::string(weight_norms(view, 1, bias).message()), HasSubstr("a bias of 7"));
  EXPECT_THAT(std::string(weight_norms(view, 3).message()), HasSubstr("for 3 kv heads"));
  EXPECT_FALSE(weight_norms(view, 0).ok());
}

// Every row of a fused weight belongs to exactly one head of queries, keys or values.
TEST(WeightNorms, FusedRowsCoverTheKeysAndValues) {
  constexpr int dim = 4;
  for (const auto& [query_heads, kv_heads] : {std::pair{8, 2}, {6, 6}, {5, 1}})
    for (const FusedRows order : {FusedRows::Blocks, FusedRows::PerKvHead}) {
      std::set<std::int64_t> rows;
      for (const Role tensor : {Role::Keys, Role::Values})
        for (int head = 0; head < kv_heads; ++head)
          for (int row = 0; row < dim; ++row)
            rows.insert(fused_row(order, tensor, head, query_heads, kv_heads, dim) + row);
      EXPECT_EQ(rows.size(), static_cast<std::size_t>(2 * kv_heads * dim));
      EXPECT_GE(*rows.begin(), dim);
      EXPECT_EQ(*rows.rbegin(), (query_heads + 2 * kv_heads) * dim - 1);
    }
  // 8 query heads and 2 kv heads: q q q q q q q q k k v v, or q q q q k v q q q q k v.
  static_assert(fused_row(FusedRows::Blocks, Role::Keys, 1, 8, 2, 4) == 36);
  static_assert(fused_row(FusedRows::Blocks, Role::Values, 0, 8, 2, 4) == 40);
  static_assert(fused_row(FusedRows::PerKvHead, Role::Keys, 0, 8, 2, 4) == 16);
  static_assert(fused_row(FusedRows::PerKvHead, Role::Values, 1, 8, 2, 4) == 44);
}

}  // namespace
}  // namespace kvtilt
