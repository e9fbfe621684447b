// SPDX-License-Identifier: MIT
#include <kvtilt/cache/page_pool.hpp>

#include "support/counting_allocator.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

namespace kvtilt {
namespace {

using test::CountingAllocator;

constexpr std::size_t block = 192;

bool grow(PagePool& pool, std::size_t count) {
  if (!pool.prepare(count)) return false;
  pool.commit();
  return true;
}

TEST(PagePool, BlocksAreAlignedAndDoNotOverlap) {
  CountingAllocator memory;
  PagePool pool(memory.get(), block);
  ASSERT_TRUE(grow(pool, 3));
  ASSERT_TRUE(grow(pool, 10));
  EXPECT_EQ(pool.free_count(), 10u);
  std::set<std::byte*> blocks;
  for (int i = 0; i < 10; ++i) {
    std::byte* taken = pool.acquire().data;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(taken) % page_alignment, 0u);
    std::memset(taken, i, block);
    blocks.insert(taken);
  }
  EXPECT_EQ(pool.free_count(), 0u);
  ASSERT_EQ(blocks.size(), 10u);
  for (auto next = blocks.begin(), last = next++; next != blocks.end(); last = next++)
    EXPECT_GE(*next - *last, static_cast<std::ptrdiff_t>(block));
}

TEST(PagePool, TakesExactlyWhatIsMissing) {
  CountingAllocator memory;
  PagePool pool(memory.get(), block);
  std::size_t taken = 0;
  for (const std::size_t count : {4u, 2u, 4u, 9u}) {
    const std::size_t expected = taken + pool.missing_bytes(count);
    ASSERT_TRUE(grow(pool, count));
    EXPECT_GE(pool.free_count(), count);
    EXPECT_EQ(memory.bytes, expected);
    EXPECT_EQ(pool.allocated_bytes(), expected);
    taken = expected;
  }
  EXPECT_EQ(pool.free_count(), 9u);
  EXPECT_EQ(memory.calls, 2u);
}

TEST(PagePool, ReleasedBlocksAreUsedAgain) {
  CountingAllocator memory;
  PagePool pool(memory.get(), block);
  ASSERT_TRUE(grow(pool, 2));
  const Block first = pool.acquire();
  const Block second = pool.acquire();
  *first.references = 7;
  pool.release(first);
  pool.release(second);
  EXPECT_EQ(pool.free_count(), 2u);
  EXPECT_EQ(pool.acquire().data, second.data);
  const Block again = pool.acquire();
  EXPECT_EQ(again.data, first.data);
  EXPECT_EQ(*again.references, 1u) << "a block starts with one owner";
  EXPECT_EQ(memory.calls, 1u);
}

TEST(PagePool, AnAbandonedSlabGoesBack) {
  CountingAllocator memory;
  PagePool pool(memory.get(), block);
  ASSERT_TRUE(grow(pool, 1));
  const std::size_t before = memory.bytes;
  ASSERT_TRUE(pool.prepare(5));
  EXPECT_EQ(pool.free_count(), 1u);
  EXPECT_GT(memory.bytes, before);
  pool.abandon();
  pool.abandon();
  EXPECT_EQ(memory.bytes, before);
  EXPECT_EQ(pool.allocated_bytes(), before);
  EXPECT_EQ(pool.free_count(), 1u);
}

TEST(PagePool, ExhaustedMemoryChangesNothing) {
  CountingAllocator memory;
  PagePool pool(memory.get(), block);
  ASSERT_TRUE(grow(pool, 1));
  memory.refuse_after = 0;
  EXPECT_FALSE(pool.prepare(2));
  EXPECT_EQ(pool.free_count(), 1u);
  EXPECT_EQ(pool.allocated_bytes(), memory.bytes);
  EXPECT_TRUE(pool.prepare(1));
  pool.commit();
  EXPECT_EQ(pool.free_count(), 1u);
}

TEST(PagePoolHostile, CountsThatNoMemoryCouldHoldAreNotWrappedAround) {
  CountingAllocator memory;
  PagePool pool(memory.get(), std::size_t{1} << 30);
  for (const std::size_t count : {std::size_t{1} << 34, (std::size_t{1} << 34) - 1,
                                  std::numeric_limits<std::size_t>::max()}) {
    EXPECT_GE(pool.missing_bytes(count), (std::size_t{1} << 63));
    if (pool.missing_bytes(count) == std::numeric_limits<std::size_t>::max()) {
      EXPECT_FALSE(pool.prepare(count));
    }
  }
  EXPECT_EQ(memory.calls, 0u);
}

TEST(PagePool, ReturnsEverythingOnceWhenItDies) {
  CountingAllocator memory;
  {
    PagePool pool(memory.get(), block);
    for (std::size_t i = 1; i < 20; ++i) ASSERT_TRUE(grow(pool, i));
    PagePool moved(std::move(pool));
    EXPECT_EQ(moved.free_count(), 19u);
    EXPECT_EQ(moved.allocated_bytes(), memory.bytes);
    ASSERT_TRUE(moved.prepare(30));
  }
  EXPECT_EQ(memory.blocks, 0u);
  EXPECT_EQ(memory.bytes, 0u);
  EXPECT_FALSE(memory.mismatched);
}

}  // namespace
}  // namespace kvtilt
