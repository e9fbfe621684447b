// SPDX-License-Identifier: MIT
#include <kvtilt/cache/allocator.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvtilt {
namespace {

TEST(DefaultAllocator, GivesAlignedMemory) {
  const Allocator allocator = default_allocator();
  for (const std::size_t alignment : {8u, 64u, 4096u}) {
    void* memory = allocator.allocate(allocator.context, 100, alignment);
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % alignment, 0u);
    std::memset(memory, 1, 100);
    allocator.deallocate(allocator.context, memory, 100, alignment);
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
TEST(DefaultAllocator, ReturnsNullInsteadOfThrowing) {
  const Allocator allocator = default_allocator();
  EXPECT_EQ(allocator.allocate(allocator.context, std::size_t{1} << 62, 64), nullptr);
}
#endif

}  // namespace
}  // namespace kvtilt
