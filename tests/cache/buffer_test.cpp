// SPDX-License-Identifier: MIT
#include <kvtilt/cache/buffer.hpp>

#include "support/counting_allocator.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

namespace kvtilt {
namespace {

using test::CountingAllocator;

TEST(Buffer, GrowsAndKeepsItsElements) {
  CountingAllocator memory;
  {
    Buffer<std::int64_t> buffer(memory.get());
    for (std::int64_t i = 0; i < 100; ++i) {
      ASSERT_TRUE(buffer.reserve(buffer.size() + 1));
      buffer.push_back(i * i);
    }
    ASSERT_EQ(buffer.size(), 100u);
    for (std::size_t i = 0; i < 100; ++i) EXPECT_EQ(buffer[i], static_cast<std::int64_t>(i * i));
    EXPECT_EQ(buffer.back(), 99 * 99);
    EXPECT_EQ(memory.blocks, 1u);
    EXPECT_EQ(memory.bytes, buffer.capacity_bytes());
  }
  EXPECT_EQ(memory.bytes, 0u);
  EXPECT_FALSE(memory.mismatched);
}

TEST(Buffer, AsksForNothingItHas) {
  CountingAllocator memory;
  Buffer<int> buffer(memory.get());
  ASSERT_TRUE(buffer.reserve(0));
  EXPECT_EQ(memory.calls, 0u);
  ASSERT_TRUE(buffer.reserve(10));
  for (int i = 0; i < 10; ++i) buffer.push_back(i);
  EXPECT_EQ(buffer.pop_back(), 9);
  buffer.erase(1, 7);  // 0 7 8 are left
  ASSERT_TRUE(buffer.reserve(10));
  EXPECT_EQ(memory.calls, 1u);
  EXPECT_EQ(buffer.size(), 3u);
  EXPECT_EQ(buffer[1], 7);
  EXPECT_EQ(buffer.back(), 8);
}

TEST(Buffer, MissingBytesAreWhatReserveAdds) {
  CountingAllocator memory;
  Buffer<double> buffer(memory.get());
  for (const std::size_t count : {5u, 3u, 5u, 17u}) {
    const std::size_t expected = memory.bytes + buffer.missing_bytes(count);
    ASSERT_TRUE(buffer.reserve(count));
    EXPECT_EQ(memory.bytes, expected);
  }
}

TEST(Buffer, ExhaustedMemoryChangesNothing) {
  CountingAllocator memory;
  Buffer<int> buffer(memory.get());
  ASSERT_TRUE(buffer.reserve(2));
  buffer.push_back(7);
  buffer.push_back(8);
  memory.refuse_after = 0;
  const int* data = buffer.data();
  EXPECT_FALSE(buffer.reserve(3));
  EXPECT_EQ(buffer.data(), data);
  EXPECT_EQ(buffer.size(), 2u);
  EXPECT_EQ(buffer.capacity_bytes(), 2 * sizeof(int));
  EXPECT_EQ(buffer[0], 7);
  EXPECT_EQ(buffer[1], 8);
  memory.refuse_after = -1;
  EXPECT_TRUE(buffer.reserve(3));
  EXPECT_EQ(buffer[1], 8);
}

TEST(Buffer, MovingLeavesNothingBehind) {
  CountingAllocator memory;
  {
    Buffer<int> first(memory.get());
    ASSERT_TRUE(first.reserve(4));
    first.push_back(1);
    const Buffer<int> second(std::move(first));
    EXPECT_EQ(second.size(), 1u);
    EXPECT_EQ(second[0], 1);
    EXPECT_EQ(first.size(), 0u);            // NOLINT: what a moved-from buffer holds is the point
    EXPECT_EQ(first.capacity_bytes(), 0u);  // NOLINT
    EXPECT_EQ(memory.blocks, 1u);
  }
  EXPECT_EQ(memory.blocks, 0u);
}

}  // namespace
}  // namespace kvtilt
