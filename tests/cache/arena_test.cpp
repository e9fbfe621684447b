// SPDX-License-Identifier: MIT
#include <kvtilt/cache/arena.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt {
namespace {

/// 64-byte aligned.
struct Memory {
  alignas(page_alignment) std::byte bytes[1024];
};

void* take(Arena& arena, std::size_t bytes, std::size_t alignment = page_alignment) {
  const Allocator allocator = arena.allocator();
  return allocator.allocate(allocator.context, bytes, alignment);
}

TEST(Arena, HandsOutMultiplesOfTheAlignmentUntilNothingIsLeft) {
  Memory memory;
  for (std::size_t start = 0; start <= 128; ++start)
    for (const std::size_t size : {0u, 1u, 63u, 64u, 65u, 512u, 800u}) {
      Arena arena({memory.bytes + start, size});
      EXPECT_EQ(arena.size(), size);
      const std::size_t first = (start + 63) / 64 * 64;
      const std::size_t whole = start + size > first ? (start + size - first) / 64 : 0;
      EXPECT_EQ(arena.free_bytes() / 64, whole);
      for (std::size_t i = 0; i < whole; ++i)
        EXPECT_EQ(take(arena, 64), memory.bytes + first + i * 64);
      EXPECT_EQ(take(arena, 64), nullptr) << "start " << start << ", size " << size;
      EXPECT_LT(arena.free_bytes(), 64u);
    }
}

TEST(Arena, ARefusalTakesNothing) {
  Memory memory;
  Arena arena({memory.bytes, 256});
  EXPECT_EQ(take(arena, 257), nullptr);
  EXPECT_EQ(take(arena, SIZE_MAX), nullptr);
  EXPECT_EQ(take(arena, 64, 128), nullptr) << "an alignment it cannot promise";
  EXPECT_EQ(arena.free_bytes(), 256u);
  EXPECT_EQ(take(arena, 192), memory.bytes);
  EXPECT_EQ(take(arena, 65), nullptr);
  EXPECT_EQ(take(arena, 64), memory.bytes + 192);
  EXPECT_EQ(arena.free_bytes(), 0u);
}

TEST(Arena, OddSizesKeepTheNextPieceAligned) {
  Memory memory;
  Arena arena({memory.bytes, 200});
  EXPECT_EQ(take(arena, 1, 8), memory.bytes);
  EXPECT_EQ(take(arena, 70, 8), memory.bytes + 64);
  EXPECT_EQ(arena.free_bytes(), 8u);
  EXPECT_EQ(take(arena, 8, 8), memory.bytes + 192);
  EXPECT_EQ(take(arena, 1, 1), nullptr);
}

TEST(Arena, TakesNothingBack) {
  Memory memory;
  Arena arena({memory.bytes, 128});
  const Allocator allocator = arena.allocator();
  void* piece = take(arena, 64);
  allocator.deallocate(allocator.context, piece, 64, page_alignment);
  EXPECT_EQ(arena.free_bytes(), 64u);
  EXPECT_EQ(take(arena, 64), memory.bytes + 64);
}

}  // namespace
}  // namespace kvtilt
