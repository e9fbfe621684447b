// SPDX-License-Identifier: MIT
/// A cache whose pages live in the caller's memory (page_memory): it writes nowhere else.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"
#include "support/counting_allocator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::CountingAllocator;
using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

const CacheShape shape{{{2, 64, 72, 0}, {0, 0, 0, 0}, {1, 64, 72, 40}, {1, 40, 40, 0}}};

/// The caller's memory, with a fence of known bytes on either side.
class PageMemory {
 public:
  PageMemory(std::size_t start, std::size_t size)
      : memory_(fence + page_alignment + start + size + fence, mark), size_(size) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data() + fence);
    first_ = memory_.data() + fence + (page_alignment - address % page_alignment) + start;
  }
  [[nodiscard]] std::span<std::byte> span() const { return {first_, size_}; }
  [[nodiscard]] bool holds(const std::byte* block, std::size_t bytes) const {
    return block >= first_ && block + bytes <= first_ + size_;
  }
  [[nodiscard]] bool fences_stand() const {
    const auto marked = [](std::byte byte) { return byte == mark; };
    const std::byte* begin = memory_.data();
    return std::all_of(begin, static_cast<const std::byte*>(first_), marked) &&
           std::all_of(static_cast<const std::byte*>(first_) + size_, begin + memory_.size(),
                       marked);
  }

 private:
  static constexpr std::size_t fence = 4096;
  static constexpr std::byte mark{0xa5};
  std::vector<std::byte> memory_;
  std::byte* first_;
  std::size_t size_;
};

CacheOptions options_with(CountingAllocator& tables, std::span<std::byte> page_memory) {
  CacheOptions options;
  options.allocator = tables.get();
  options.page_memory = page_memory;
  options.page_tokens = 32;
  options.recent_tokens = 40;
  return options;
}

KVCache make(const CacheOptions& options) {
  return test::make_cache(shape, Plan::uniform(shape, presets::k4v2), options);
}

void append_all(KVCache& cache, SequenceId id, std::int64_t tokens) {
  Random random(7);
  for (int layer = 0; layer < cache.layers(); ++layer) {
    const LayerShape& own = shape.layers[static_cast<std::size_t>(layer)];
    if (own.kv_heads == 0) continue;
    const std::int64_t held = cache.length(id, layer).value();
    const Rows<float> keys = random_rows(random, tokens, own.kv_heads, own.key_dim);
    const Rows<float> values = random_rows(random, tokens, own.kv_heads, own.value_dim);
    KVTILT_EXPECT_OK(
        cache.append(id, layer, keys.view(held, tokens - held), values.view(held, tokens - held)));
  }
}

/// Bytes of page_memory that a sequence of `tokens` tokens takes.
std::size_t bytes_for(std::int64_t tokens) {
  CountingAllocator all;
  CountingAllocator tables;
  PageMemory memory(0, 8 << 20);
  KVCache heap = make(options_with(all, {}));
  KVCache cache = make(options_with(tables, memory.span()));
  test::open_reserved(heap, tokens);
  test::open_reserved(cache, tokens);
  EXPECT_GT(tables.bytes, 0u);
  EXPECT_EQ(cache.memory().reserved_bytes, all.bytes);
  return all.bytes - tables.bytes;
}

/// Every byte of every block of a sequence lies in `memory`.
void expect_inside(const KVCache& cache, SequenceId id, const PageMemory& memory) {
  for (const int layer : {0, 2, 3}) {
    const LayerView view = cache.view(id, layer).value();
    for (std::int32_t i = 0; i < view.page_count; ++i)
      EXPECT_TRUE(memory.holds(view.pages[i].data, test::block_bytes(view, view.pages[i].kind)) &&
                  memory.holds(reinterpret_cast<std::byte*>(view.pages[i].references), 4));
  }
}

TEST(KVCachePageMemory, EveryBlockIsInsideWhereverItStarts) {
  const std::size_t needed = bytes_for(300) + bytes_for(500);
  for (const std::size_t start : {0u, 1u, 8u, 63u}) {
    CountingAllocator tables;
    PageMemory memory(start, needed + (start == 0 ? 0 : page_alignment - start));
    {
      KVCache cache = make(options_with(tables, memory.span()));
      KVCache heap = make(options_with(tables, {}));
      const SequenceId id = test::open_reserved(cache, 300);
      const SequenceId twin = test::open_reserved(heap, 300);
      append_all(cache, id, 300);
      append_all(heap, twin, 300);
      const SequenceId fork = cache.fork(id, 500).value();
      append_all(cache, fork, 450);
      KVTILT_EXPECT_OK(cache.truncate(id, 290));
      KVTILT_EXPECT_OK(heap.truncate(twin, 290));
      append_all(cache, id, 300);
      append_all(heap, twin, 300);
      for (const int layer : {0, 2, 3})
        EXPECT_TRUE(
            test::same_content(cache.view(id, layer).value(), heap.view(twin, layer).value()));
      expect_inside(cache, id, memory);
      expect_inside(cache, fork, memory);
      EXPECT_TRUE(memory.fences_stand());
    }
    EXPECT_TRUE(memory.fences_stand());
    EXPECT_EQ(tables.bytes, 0u);
  }
}

TEST(KVCachePageMemory, ExhaustionIsAnErrorWithTheSizesAndChangesNothing) {
  const std::size_t first = bytes_for(100);
  const std::size_t needed = bytes_for(500);
  for (const std::size_t lacking : {0u, 1u, 64u, 100000u}) {
    CountingAllocator tables;
    PageMemory memory(0, first + needed - lacking);
    KVCache cache = make(options_with(tables, memory.span()));
    const SequenceId id = test::open_reserved(cache, 100);
    append_all(cache, id, 100);
    const test::Snapshot before(cache.view(id, 0).value());
    const std::size_t reserved = cache.memory().reserved_bytes;
    const std::size_t calls = tables.calls;
    const SequenceId other = cache.open().value();
    const Status status = cache.reserve(other, 500);
    if (lacking == 0) {
      EXPECT_TRUE(status.ok()) << status.message();
      append_all(cache, other, 500);
      EXPECT_EQ(cache.reserve(id, 1000).code(), ErrorCode::OutOfMemory);
    } else {
      EXPECT_EQ(status.code(), ErrorCode::OutOfMemory);
      EXPECT_THAT(std::string(status.message()),
                  HasSubstr("500 tokens need " + std::to_string(needed) +
                            " bytes of page_memory more; " + std::to_string(needed - lacking) +
                            " of its " + std::to_string(first + needed - lacking) + " are free"));
      EXPECT_EQ(cache.memory().reserved_bytes, reserved);
      EXPECT_EQ(tables.calls, calls) << "tables grew for nothing";
      EXPECT_EQ(cache.fork(id, 700).code(), ErrorCode::OutOfMemory);
      EXPECT_EQ(cache.memory().reserved_bytes, reserved);
      KVTILT_EXPECT_OK(cache.reserve(other, 30));  // the memory of the failed call is still free
      append_all(cache, other, 30);
    }
    EXPECT_TRUE(test::unchanged(before, cache.view(id, 0).value()));
    EXPECT_TRUE(memory.fences_stand());
  }
}

TEST(KVCachePageMemory, AReservationThatFailsForItsTablesTakesNothing) {
  const std::size_t needed = bytes_for(500);
  int refusals = 0;
  for (int allowed = 0;; ++allowed, ++refusals) {
    CountingAllocator tables;
    PageMemory memory(0, needed);
    KVCache cache = make(options_with(tables, memory.span()));
    const SequenceId id = cache.open().value();
    tables.refuse_after = allowed;
    const Status status = cache.reserve(id, 500);
    EXPECT_EQ(cache.memory().reserved_bytes, tables.bytes + (status.ok() ? needed : 0));
    if (status.ok()) break;
    EXPECT_EQ(status.code(), ErrorCode::OutOfMemory);
    tables.refuse_after = -1;
    KVTILT_EXPECT_OK(cache.reserve(id, 500));  // needs every byte of page_memory
    append_all(cache, id, 500);
  }
  EXPECT_EQ(refusals, 3 * 3);  // three tables in each of three layers
}

TEST(KVCachePageMemory, ServesTheNextCacheAndMovesWithThisOne) {
  const std::size_t needed = bytes_for(100) + bytes_for(400);
  CountingAllocator tables;
  PageMemory memory(5, needed + 59);
  std::optional<test::Snapshot> first;
  for (int generation = 0; generation < 3; ++generation) {
    std::optional<KVCache> original(make(options_with(tables, memory.span())));
    const SequenceId id = test::open_reserved(*original, 100);
    append_all(*original, id, 90);
    KVCache cache = std::move(*original);
    original.reset();
    append_all(cache, id, 100);
    const SequenceId other = test::open_reserved(cache, 400);
    append_all(cache, other, 400);
    const test::Snapshot now(cache.view(other, 3).value());
    if (!first) first = now;
    EXPECT_TRUE(test::unchanged(*first, cache.view(other, 3).value()));
    KVTILT_EXPECT_OK(cache.close(other));
    test::open_reserved(cache, 400);  // reuses the closed sequence's blocks
    EXPECT_EQ(cache.reserve(id, 200).code(), ErrorCode::OutOfMemory);
  }
  EXPECT_EQ(tables.bytes, 0u);
  EXPECT_TRUE(memory.fences_stand());
}

TEST(KVCachePageMemory, TheLimitCountsItAsWell) {
  CountingAllocator tables;
  PageMemory memory(0, 1 << 20);
  std::size_t needed = 0;
  {
    KVCache cache = make(options_with(tables, memory.span()));
    test::open_reserved(cache, 200);
    needed = cache.memory().reserved_bytes;
    EXPECT_EQ(needed, bytes_for(200) + tables.bytes);
  }
  CacheOptions options = options_with(tables, memory.span());
  options.max_bytes = needed;
  KVCache enough = make(options);
  test::open_reserved(enough, 200);
  options.max_bytes = needed - 1;
  KVCache less = make(options);
  EXPECT_THAT(std::string(less.reserve(less.open().value(), 200).message()),
              HasSubstr("limit of " + std::to_string(needed - 1)));
}

TEST(KVCachePageMemoryHostile, MemoryTooSmallForAnythingStillMakesACache) {
  for (const std::size_t size : {1u, 63u, 64u, 65u})
    for (const std::size_t start : {0u, 1u, 63u}) {
      CountingAllocator tables;
      PageMemory memory(start, size);
      KVCache cache = make(options_with(tables, memory.span()));
      const SequenceId id = cache.open().value();
      EXPECT_EQ(cache.reserve(id, 1).code(), ErrorCode::OutOfMemory);
      EXPECT_EQ(cache.reserve(id, max_tokens).code(), ErrorCode::OutOfMemory);
      KVTILT_EXPECT_OK(cache.reserve(id, 0));
      EXPECT_TRUE(memory.fences_stand());
    }
}

TEST(KVCachePageMemoryHostile, NullMemoryWithASizeIsRefused) {
  CacheOptions options;
  options.page_memory = std::span<std::byte>(static_cast<std::byte*>(nullptr), 4096);
  const Result<KVCache> cache =
      KVCache::create(shape, Plan::uniform(shape, presets::k4v2), options);
  EXPECT_EQ(cache.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(cache.message()), HasSubstr("page_memory is null, with 4096 bytes"));
  options.page_memory = {};
  EXPECT_TRUE(KVCache::create(shape, Plan::uniform(shape, presets::k4v2), options).ok());
}

}  // namespace
}  // namespace kvtilt
