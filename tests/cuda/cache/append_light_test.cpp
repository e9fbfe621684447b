// SPDX-License-Identifier: MIT
// The whole is tested in append_test; here is who is light, and the bits of teams.
#include <kvtilt/cuda/cache/append_light.hpp>

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::cuda::detail {
namespace {

LayerStorage layer() {
  LayerStorage layer{};
  layer.page_tokens = 64;
  layer.sink_tokens = 4;
  layer.recent_tokens = 128;
  layer.ring_blocks = 3;
  return layer;
}

AppendPlan plan_of(std::int64_t in_tail, std::int64_t tokens, std::int32_t seals,
                   std::int32_t skipped = 0) {
  AppendPlan plan{};
  plan.tail_start = 4;
  plan.length = 4 + in_tail;
  plan.tokens = tokens;
  plan.seals = seals;
  plan.skipped = skipped;
  return plan;
}

TEST(AppendLight, SequencesAreThatGetAFewTokens) {
  EXPECT_TRUE(is_light(plan_of(10, 1, 0), layer()));
  EXPECT_TRUE(is_light(plan_of(10, append_light_tokens, 0), layer()));
  EXPECT_FALSE(is_light(plan_of(10, append_light_tokens + 1, 0), layer()));
}

TEST(AppendLight, APageIsSealedThatHoldsNoNewToken) {
  EXPECT_TRUE(is_light(plan_of(191, 1, 1), layer()));
  EXPECT_FALSE(is_light(plan_of(60, 6, 1), layer())) << "new tokens in it";
  EXPECT_FALSE(is_light(plan_of(191, 2, 1), layer())) << "the ring has come round to it";
  EXPECT_FALSE(is_light(plan_of(191, 1, 2), layer()));
  EXPECT_FALSE(is_light(plan_of(191, 1, 1, 1), layer())) << "the window frees it at once";
}

TEST(AppendLight, MembersOfATeamAreBits) {
  constexpr std::uint32_t mask = 0x80000412u;
  EXPECT_EQ(count_bits(mask), 4);
  EXPECT_EQ(nth_bit(mask, 0), 1);
  EXPECT_EQ(nth_bit(mask, 1), 4);
  EXPECT_EQ(nth_bit(mask, 2), 10);
  EXPECT_EQ(nth_bit(mask, 3), 31);
  EXPECT_EQ(count_bits(0), 0);
}

}  // namespace
}  // namespace kvtilt::cuda::detail
