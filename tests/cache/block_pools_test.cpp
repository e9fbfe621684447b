// SPDX-License-Identifier: MIT
#include <kvtilt/cache/block_pools.hpp>

#include "support/counting_allocator.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <limits>
#include <span>
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
  pools.want(pools.pool_for(128), 2);  // wants of blocks of one size add up
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

TEST(BlockPools, WhatNobodyUsesBecomesBlocksOfAnotherSize) {
  for (const bool own_memory : {false, true}) {
    CountingAllocator memory;
    alignas(page_alignment) std::byte own[4096];
    BlockPools pools(memory.get(), own_memory ? std::span(own) : std::span<std::byte>());
    want(pools, 8, 0);
    ASSERT_TRUE(pools.grow());
    const std::size_t first_slab = pools.allocated_bytes();
    std::vector<Block> used;
    for (int i = 0; i < 8; ++i) used.push_back(pools[0].acquire());
    want(pools, 16, 0);
    ASSERT_TRUE(pools.grow());
    EXPECT_EQ(pools.idle_bytes(), pools.allocated_bytes() - first_slab);
    pools[0].release(used[5]);

    want(pools, 2, own_memory ? 8 : 1);
    EXPECT_EQ(pools.free_bytes(), 17u * 128);
    EXPECT_EQ(pools.unwanted_bytes(), 15u * 128);
    const std::size_t missing = pools.missing_bytes_without_idle();
    EXPECT_TRUE(!own_memory || !pools.grow());
    ASSERT_TRUE(pools.give_back());
    EXPECT_FALSE(pools.give_back());
    EXPECT_EQ(pools.allocated_bytes(), first_slab);
    EXPECT_EQ(pools.missing_bytes(), missing);
    EXPECT_EQ(pools.idle_bytes(), 0u);
    ASSERT_TRUE(pools.grow());
    EXPECT_EQ(pools[0].free_count(), 2u);
    EXPECT_EQ(pools[1].free_count(), own_memory ? 8u : 1u);
    EXPECT_EQ(memory.bytes, own_memory ? 0 : pools.allocated_bytes());
    used.erase(used.begin() + 5);
    for (const Block& one : used) pools[0].release(one);
    ASSERT_TRUE(pools.give_back());
    EXPECT_EQ(pools.allocated_bytes(), 0u) << "of all sizes";
  }
}

TEST(BlockPools, PageMemoryInPiecesServesWhatFitsIntoThem) {
  CountingAllocator memory;
  alignas(page_alignment) std::byte own[1024];
  BlockPools pools(memory.get(), own);
  std::vector<Block> used;
  for (int i = 0; i < 5; ++i) {
    want(pools, 1, 0);
    ASSERT_TRUE(pools.grow());
    used.push_back(pools[0].acquire());
  }
  pools[0].release(used[1]);
  pools[0].release(used[3]);
  ASSERT_TRUE(pools.give_back());
  want(pools, 0, 1);
  ASSERT_LE(pools.missing_bytes(), pools.arena()->free_bytes());
  EXPECT_FALSE(pools.grow()) << "two holes of 192 bytes, and 64 at the end";
  EXPECT_EQ(pools.arena()->free_bytes(), 2u * 192 + 64);
  pools[0].release(used[2]);
  ASSERT_TRUE(pools.give_back());
  EXPECT_TRUE(pools.grow());
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
