// SPDX-License-Identifier: MIT
// The block arithmetic of append_head.hpp; append_test and pack_test test whole appends.
#include <kvtilt/cuda/cache/append_head.hpp>

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::cuda::detail {
namespace {

AppendPlan plan_of(std::int64_t length, std::int64_t tail_start, std::int64_t tokens,
                   std::int32_t seals = 0) {
  AppendPlan plan{};
  plan.length = length;
  plan.tail_start = tail_start;
  plan.tokens = tokens;
  plan.seals = seals;
  return plan;
}

TEST(AppendHead, NewTokensOfABlockAreThoseInItsSlots) {
  const AppendPlan plan = plan_of(100, 4, 50);  // positions 100 to 149
  const auto expect = [&](std::int64_t start, std::int64_t first, int slot, int count) {
    const NewTokens tokens = new_tokens_in(plan, start, 64);
    EXPECT_EQ(tokens.count, count) << start;
    if (count == 0) return;
    EXPECT_EQ(tokens.first, first) << start;
    EXPECT_EQ(tokens.slot, slot) << start;
  };
  expect(4, 0, 0, 0);
  expect(68, 0, 32, 32);
  expect(132, 32, 0, 18);
  expect(196, 0, 0, 0);
}

TEST(AppendHead, BlocksAreThoseWithNewTokensOrToBeSealed) {
  const auto expect = [](const AppendPlan& plan, std::int64_t first, std::int64_t last) {
    LayerView layer{};
    layer.page_tokens = 64;
    layer.sink_tokens = 4;
    const TailBlocks blocks = all_blocks(plan, layer);
    EXPECT_EQ(blocks.first, first) << plan.length;
    EXPECT_EQ(blocks.last, last) << plan.length;
  };
  expect(plan_of(100, 4, 50), 1, 3);
  expect(plan_of(100, 4, 50, 1), 0, 3);  // the first block is sealed
  expect(plan_of(132, 4, 1), 2, 3);
  expect(plan_of(2, 4, 1), -1, 0);  // only sinks
  expect(plan_of(2, 4, 3), -1, 1);
}

}  // namespace
}  // namespace kvtilt::cuda::detail
