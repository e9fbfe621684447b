// SPDX-License-Identifier: MIT
#include <kvtilt/cache/arena.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

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

void give(Arena& arena, void* memory, std::size_t bytes) {
  const Allocator allocator = arena.allocator();
  allocator.deallocate(allocator.context, memory, bytes, page_alignment);
}

TEST(Arena, WhatComesBackIsHandedOutAgain) {
  Memory memory;
  Arena arena({memory.bytes, 320});
  void* first = take(arena, 64);
  void* second = take(arena, 128);
  void* third = take(arena, 64);
  give(arena, second, 128);
  EXPECT_EQ(arena.free_bytes(), 192u);
  EXPECT_EQ(take(arena, 192), nullptr) << "no hole is as long";
  EXPECT_EQ(arena.free_bytes(), 192u);
  EXPECT_EQ(take(arena, 64), second);
  EXPECT_EQ(take(arena, 65), nullptr);
  give(arena, second, 64);
  give(arena, third, 64);
  EXPECT_EQ(take(arena, 256), second) << "holes that meet are one";
  give(arena, second, 256);
  give(arena, first, 64);
  EXPECT_EQ(take(arena, 320), memory.bytes);
}

TEST(Arena, ALastPieceThatWasCutShortComesBackAsLong) {
  Memory memory;
  for (const bool last_first : {false, true}) {
    Arena arena({memory.bytes, 200});
    void* first = take(arena, 128);
    void* last = take(arena, 71);
    EXPECT_EQ(arena.free_bytes(), 0u);
    give(arena, last_first ? last : first, last_first ? 71 : 128);
    give(arena, last_first ? first : last, last_first ? 128 : 71);
    EXPECT_EQ(arena.free_bytes(), 200u);
    EXPECT_EQ(take(arena, 200), memory.bytes);
  }
}

TEST(Arena, AnyOrderOfPiecesLeavesItAsItWas) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    test::Random random(seed);
    Memory memory;
    const std::size_t size = static_cast<std::size_t>(random.between(64, 1024));
    Arena arena({memory.bytes, size});
    std::vector<bool> taken(16);  // per 64 bytes
    std::vector<std::pair<std::byte*, std::size_t>> pieces;
    for (int step = 0; step < 100; ++step) {
      const std::size_t bytes = static_cast<std::size_t>(random.between(1, 300));
      if (random.chance(2) && !pieces.empty()) {
        const auto one = pieces.begin() + random.below(static_cast<int>(pieces.size()));
        give(arena, one->first, one->second);
        for (std::size_t at = 0; at < one->second; at += 64)
          taken[static_cast<std::size_t>(one->first - memory.bytes) / 64 + at / 64] = false;
        pieces.erase(one);
        continue;
      }
      // Finds the first free range of `bytes` bytes; take() is null if there is none.
      std::size_t start = 0;
      std::size_t end = 0;
      for (; end < size && end - start < bytes; end = std::min(end + 64, size))
        if (taken[end / 64]) start = end + 64;
      auto* piece = static_cast<std::byte*>(take(arena, bytes));
      if (end < start || end - start < bytes) {
        ASSERT_EQ(piece, nullptr);
        continue;
      }
      ASSERT_EQ(piece, memory.bytes + start);
      std::memset(piece, 0xee, bytes);
      for (std::size_t at = 0; at < bytes; at += 64) taken[(start + at) / 64] = true;
      pieces.emplace_back(piece, bytes);
    }
    for (const auto& one : pieces) give(arena, one.first, one.second);
    EXPECT_EQ(arena.free_bytes(), size);
    EXPECT_EQ(take(arena, size), memory.bytes);
  }
}

}  // namespace
}  // namespace kvtilt
