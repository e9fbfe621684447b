// SPDX-License-Identifier: MIT
#include <kvtilt/cache/block_pools.hpp>

#include "support/counting_allocator.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::CountingAllocator;

void want(BlockPools& pools, std::size_t first, std::size_t second) {
  pools.want_nothing();
  pools.want(pools.pool_for(128), first);
  pools.want(pools.pool_for(192), second);
}

TEST(BlockPools, OnePoolPerSize) {
  CountingAllocator memory;
  BlockPools pools(memory.get(), {});
  EXPECT_EQ(pools.pool_for(128), 0);
  EXPECT_EQ(pools.pool_for(192), 1);
  EXPECT_EQ(pools.pool_for(128), 0);
  EXPECT_EQ(pools[1].block_bytes(), 192u);
  EXPECT_EQ(pools.arena(), nullptr);
}

TEST(BlockPools, GrowsByExactlyWhatIsMissing) {
  CountingAllocator memory;
  BlockPools pools(memory.get(), {});
  want(pools, 3, 1);
  pools.want(pools.pool_for(128), 2);  // wants of one size add up
  const std::size_t missing = pools.missing_bytes();
  EXPECT_GE(missing, 5u * 128 + 192);
  ASSERT_TRUE(pools.grow());
  EXPECT_EQ(memory.bytes, missing);
  EXPECT_EQ(pools.allocated_bytes(), missing);
  EXPECT_EQ(pools[0].free_count(), 5u);
  EXPECT_EQ(pools[1].free_count(), 1u);
  EXPECT_EQ(pools.missing_bytes(), 0u);
  want(pools, 1, 0);
  EXPECT_EQ(pools.missing_bytes(), 0u);
}

TEST(BlockPools, AllPoolsGrowOrNone) {
  for (const int allowed : {0, 1}) {
    CountingAllocator memory;
    BlockPools pools(memory.get(), {});
    want(pools, 3, 4);
    memory.refuse_after = allowed;
    EXPECT_FALSE(pools.grow());
    EXPECT_EQ(memory.bytes, 0u);
    EXPECT_EQ(pools.allocated_bytes(), 0u);
    EXPECT_EQ(pools[0].free_count() + pools[1].free_count(), 0u);
    memory.refuse_after = -1;
    EXPECT_TRUE(pools.grow());
  }
}

TEST(BlockPools, PageMemoryIsTakenAsAWholeOrNotAtAll) {
  CountingAllocator memory;
  alignas(page_alignment) std::byte own[4096];
  std::size_t missing = 0;
  {
    BlockPools measure(memory.get(), {});
    want(measure, 3, 4);
    missing = measure.missing_bytes();
  }
  ASSERT_LT(missing, sizeof own);
  for (const std::size_t lacking : {1u, 64u, 200u}) {
    BlockPools pools(memory.get(), {own, missing - lacking});
    want(pools, 3, 4);
    EXPECT_FALSE(pools.grow()) << "the first pool alone would fit";
    EXPECT_EQ(pools.arena()->free_bytes(), missing - lacking);
    EXPECT_EQ(pools[0].free_count(), 0u);
  }
  BlockPools pools(memory.get(), {own, missing});
  want(pools, 3, 4);
  BlockPools moved(std::move(pools));
  ASSERT_TRUE(moved.grow());
  EXPECT_EQ(moved.arena()->free_bytes(), 0u);
  EXPECT_EQ(moved[1].free_count(), 4u);
  EXPECT_EQ(memory.calls, 0u);
}

TEST(BlockPoolsHostile, SumsThatNoNumberHoldsAreNotWrappedAround) {
  CountingAllocator memory;
  BlockPools pools(memory.get(), {});
  pools.want(pools.pool_for(std::size_t{1} << 32), std::size_t{1} << 31);
  pools.want(pools.pool_for(std::size_t{3} << 31), std::size_t{1} << 31);
  EXPECT_EQ(pools.missing_bytes(), std::numeric_limits<std::size_t>::max());
}

}  // namespace
}  // namespace kvtilt
