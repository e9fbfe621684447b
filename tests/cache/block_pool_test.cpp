// SPDX-License-Identifier: MIT
#include <kvtilt/cache/block_pool.hpp>

#include "support/counting_allocator.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::CountingAllocator;

constexpr std::size_t block = 192;

bool grow(BlockPool& pool, std::size_t count) {
  if (!pool.prepare(count)) return false;
  pool.commit();
  return true;
}

TEST(BlockPool, BlocksAreAlignedAndDoNotOverlap) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), block);
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

TEST(BlockPool, TakesExactlyWhatIsMissing) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), block);
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

TEST(BlockPool, ReleasedBlocksAreUsedAgain) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), block);
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

TEST(BlockPool, AnAbandonedSlabGoesBack) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), block);
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

TEST(BlockPool, ExhaustedMemoryChangesNothing) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), block);
  ASSERT_TRUE(grow(pool, 1));
  memory.refuse_after = 0;
  EXPECT_FALSE(pool.prepare(2));
  EXPECT_EQ(pool.free_count(), 1u);
  EXPECT_EQ(pool.allocated_bytes(), memory.bytes);
  EXPECT_TRUE(pool.prepare(1));
  pool.commit();
  EXPECT_EQ(pool.free_count(), 1u);
}

TEST(BlockPool, SlabsWithoutABlockInUseGoBack) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), block);
  EXPECT_FALSE(pool.give_back());
  ASSERT_TRUE(grow(pool, 3));
  const std::size_t first_slab = memory.bytes;
  const Block kept = pool.acquire();
  const Block other = pool.acquire();
  ASSERT_TRUE(grow(pool, 5));
  EXPECT_EQ(pool.idle_bytes(), memory.bytes - first_slab);
  EXPECT_EQ(pool.missing_bytes(5), 0u);
  EXPECT_EQ(pool.missing_bytes_without_idle(1), 0u);
  const std::size_t missing = pool.missing_bytes_without_idle(5);
  EXPECT_GE(missing, 4 * block);
  ASSERT_TRUE(pool.give_back());
  EXPECT_EQ(memory.bytes, first_slab);
  EXPECT_EQ(pool.allocated_bytes(), first_slab);
  EXPECT_EQ(pool.idle_bytes(), 0u);
  EXPECT_EQ(pool.free_count(), 1u);
  EXPECT_EQ(pool.missing_bytes(5), missing);
  EXPECT_FALSE(pool.give_back()) << "blocks of it are in use";
  pool.release(kept);
  pool.release(other);
  ASSERT_TRUE(pool.give_back());
  EXPECT_EQ(memory.blocks, 0u);
  EXPECT_EQ(pool.free_count(), 0u);
  EXPECT_FALSE(memory.mismatched);
}

TEST(BlockPool, BlocksComeOutOfSlabsThatAreInUseAnyway) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), block);
  std::vector<Block> slabs[3];
  for (auto& blocks : slabs) {
    ASSERT_TRUE(grow(pool, 4));
    for (int i = 0; i < 4; ++i) blocks.push_back(pool.acquire());
  }
  for (const Block& one : slabs[0]) pool.release(one);
  for (int i = 0; i < 3; ++i) pool.release(slabs[1][static_cast<std::size_t>(i)]);
  pool.release(slabs[2][2]);
  EXPECT_EQ(pool.acquire().data, slabs[2][2].data) << "the fullest slab first";
  for (int i = 0; i < 3; ++i) {
    const std::byte* data = pool.acquire().data;
    EXPECT_TRUE(data >= slabs[1][0].data && data <= slabs[1][3].data);
  }
  const std::size_t before = memory.bytes;
  ASSERT_TRUE(pool.give_back());
  EXPECT_EQ(memory.bytes, before / 3 * 2) << "the first slab was free all the time";
  EXPECT_EQ(pool.free_count(), 0u);
}

TEST(BlockPool, OneBlockInUseKeepsNoMoreThanASlab) {
  CountingAllocator memory;
  constexpr std::size_t large = std::size_t{3} << 20;
  for (const std::size_t size :
       {large, BlockPool::max_slab_bytes, BlockPool::max_slab_bytes + 64}) {
    BlockPool pool(memory.get(), size);
    const std::size_t count = size == large ? 23 : 3;
    const std::size_t missing = pool.missing_bytes(count);
    ASSERT_TRUE(grow(pool, count));
    EXPECT_EQ(memory.bytes, missing);
    EXPECT_EQ(memory.blocks, 3u);
    const Block kept = pool.acquire();
    ASSERT_TRUE(pool.give_back());
    EXPECT_EQ(memory.blocks, 1u);
    EXPECT_LE(memory.bytes, std::max(size + 64, BlockPool::max_slab_bytes));
    pool.release(kept);
  }
  EXPECT_EQ(memory.blocks, 0u);
}

TEST(BlockPool, ALaterSlabThatIsRefusedTakesTheFirstOnesAlong) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), BlockPool::max_slab_bytes);
  memory.refuse_after = 2;
  EXPECT_FALSE(pool.prepare(3));
  EXPECT_EQ(memory.bytes, 0u);
  pool.commit();
  EXPECT_EQ(pool.free_count(), 0u);
}

TEST(BlockPool, AnyOrderOfCallsKeepsBlocksApart) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    test::Random random(seed);
    CountingAllocator memory;
    BlockPool pool(memory.get(), 64);
    std::map<std::byte*, Block> used;
    for (int step = 0; step < 200; ++step) {
      if (random.chance(8)) {
        ASSERT_TRUE(grow(pool, pool.free_count() + static_cast<std::size_t>(random.below(7))));
      } else if (random.chance(20)) {
        const std::size_t idle = pool.idle_bytes();
        const std::size_t before = memory.bytes;
        EXPECT_EQ(pool.give_back(), idle > 0);
        EXPECT_EQ(memory.bytes, before - idle);
      } else if (pool.free_count() > 0 && random.chance(2)) {
        const Block taken = pool.acquire();
        ASSERT_TRUE(used.emplace(taken.data, taken).second) << "given twice";
        EXPECT_EQ(*taken.references, 1u);
        std::memset(taken.data, 0xee, 64);
      } else if (!used.empty()) {
        auto one = std::next(used.begin(), random.below(static_cast<int>(used.size())));
        EXPECT_EQ(one->second.data[63], std::byte{0xee});
        pool.release(one->second);
        used.erase(one);
      }
      ASSERT_EQ(pool.allocated_bytes(), memory.bytes);
    }
    for (const auto& one : used) pool.release(one.second);
    EXPECT_EQ(pool.idle_bytes(), memory.bytes);
    pool.give_back();
    EXPECT_EQ(memory.blocks, 0u);
    EXPECT_EQ(pool.missing_bytes(9), pool.missing_bytes_without_idle(9));
  }
}

TEST(BlockPoolHostile, CountsThatNoMemoryCouldHoldAreNotWrappedAround) {
  CountingAllocator memory;
  BlockPool pool(memory.get(), std::size_t{1} << 30);
  for (const std::size_t count : {std::size_t{1} << 34, (std::size_t{1} << 34) - 1,
                                  std::numeric_limits<std::size_t>::max()}) {
    EXPECT_GE(pool.missing_bytes(count), (std::size_t{1} << 63));
    if (pool.missing_bytes(count) == std::numeric_limits<std::size_t>::max()) {
      EXPECT_FALSE(pool.prepare(count));
    }
  }
  EXPECT_EQ(memory.calls, 0u);
}

TEST(BlockPool, ReturnsEverythingOnceWhenItDies) {
  CountingAllocator memory;
  {
    BlockPool pool(memory.get(), block);
    for (std::size_t i = 1; i < 20; ++i) ASSERT_TRUE(grow(pool, i));
    BlockPool moved(std::move(pool));
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
