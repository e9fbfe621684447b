// SPDX-License-Identifier: MIT
// Which sequences are light, and who seals what; append_test tests the whole.
#include <kvtilt/cuda/cache/append_light.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::cuda::detail {
namespace {

LayerView layer() {
  LayerView layer{};
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

TEST(AppendLight, ATeamHasABlockForEachSequenceAndForEachSlice) {
  LayerView shape = layer();
  shape.seal_slices = 4;
  EXPECT_EQ(team_members(shape, 3), 4);
  EXPECT_EQ(team_members(shape, 20), 20);
  EXPECT_EQ(team_members(shape, 50), append_team);
}

TEST(AppendLight, PagesAreSharedOutAmongAllMembers) {
  for (const int members : {1, 4, 16, 20, 32})
    for (int most = 1; most <= members; most *= 2)
      for (int seals = 0; seals <= members; ++seals) {
        std::vector<int> found(static_cast<std::size_t>(seals));
        int slices = 0;
        for (int member = 0; member < members; ++member) {
          const SealShare share(seals, member, members, most);
          if (share.slices == 0) continue;
          slices = share.slices;
          ASSERT_LT(share.page, seals);
          ASSERT_LT(share.slice, share.slices);
          // Each slice of a page is taken once, in ascending order.
          EXPECT_EQ(share.slice, found[static_cast<std::size_t>(share.page)]++);
        }
        for (const int count : found) EXPECT_EQ(count, slices) << seals << " of " << members;
        if (seals > 0) {
          EXPECT_TRUE(slices == most || 2 * slices * seals > members)
              << "slices are finer where there are members for it";
        }
      }
}

TEST(AppendLight, BitsOfATeamAreCounted) {
  EXPECT_EQ(count_bits(0x80000412u), 4);
  EXPECT_EQ(count_bits(0), 0);
}

}  // namespace
}  // namespace kvtilt::cuda::detail
