// SPDX-License-Identifier: MIT
/// What a cache allocates, what it reports, and what it does when memory runs out. Replaces the
/// global operator new to see every allocation.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"
#include "support/counting_allocator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <string>
#include <vector>

namespace {

std::size_t global_calls = 0;
[[maybe_unused]] std::int64_t global_calls_left = -1;  ///< -1: unlimited

[[maybe_unused]] void* allocate_or_null(std::size_t size, std::size_t alignment) {
  ++global_calls;
  if (global_calls_left == 0) return nullptr;
  if (global_calls_left > 0) --global_calls_left;
  return std::aligned_alloc(alignment, (size + alignment) / alignment * alignment);
}

[[maybe_unused]] void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  void* memory = allocate_or_null(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// Not inlined: g++ would warn that free() does not match operator new.
[[gnu::noinline, maybe_unused]] void deallocate(void* memory) { std::free(memory); }

[[maybe_unused]] constexpr std::size_t usual_alignment = alignof(std::max_align_t);

}  // namespace

// The thread sanitizer needs its own operator new.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KVTILT_TEST_OWN_NEW 0
#endif
#endif
#if !defined(KVTILT_TEST_OWN_NEW) && !defined(__SANITIZE_THREAD__)
#define KVTILT_TEST_OWN_NEW 1
// All forms are replaced: the array forms normally call the others, but not under a sanitizer.
void* operator new(std::size_t size) { return allocate_or_throw(size, usual_alignment); }
void* operator new[](std::size_t size) { return allocate_or_throw(size, usual_alignment); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return allocate_or_null(size, usual_alignment);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return allocate_or_null(size, usual_alignment);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate_or_null(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { deallocate(memory); }
void operator delete[](void* memory) noexcept { deallocate(memory); }
void operator delete(void* memory, std::size_t) noexcept { deallocate(memory); }
void operator delete[](void* memory, std::size_t) noexcept { deallocate(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { deallocate(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { deallocate(memory); }
#endif

namespace kvtilt {
namespace {

using test::CountingAllocator;
using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

CacheOptions with_memory(CountingAllocator& memory, int page = 64, int sinks = 4,
                         int recent = 128) {
  CacheOptions options;
  options.allocator = memory.get();
  options.page_tokens = page;
  options.sink_tokens = sinks;
  options.recent_tokens = recent;
  return options;
}

TEST(KVCacheMemory, ReportCountsEveryByteInUse) {
  CountingAllocator memory;
  const CacheShape shape{{{2, 128, 128, 0}, {0, 0, 0, 0}, {1, 72, 40, 0}}};
  KVCache cache = test::make_cache(
      shape, Plan{{{presets::k4v2}, {}, {parse_recipe("k3tv5c").value()}}}, with_memory(memory));
  // Layer 0, per head and page of 64 tokens: keys have 64 * 128 * 4 bits and 128 groups, values
  // 64 * 128 * 2 bits and 64 groups; a group takes 4 bytes (scale and minimum).
  constexpr std::size_t page0 = 2 * (4096 + 512 + 2048 + 256);
  // Layer 2: keys [64][72] in planes of 2 and 1 bits, a group per token; values [40][64] in planes
  // of 4 and 1 bits, a group per channel; the sum is rounded up to whole 64-byte lines.
  constexpr std::size_t page2 =
      (64 * 72 * 3 / 8 + 64 * 4 + 40 * 64 * 5 / 8 + 40 * 4 + 63) / 64 * 64;
  EXPECT_DOUBLE_EQ(cache.page_bits(), 8.0 * (page0 + page2) / (64.0 * (2 * 256 + (72 + 40))));

  const SequenceId id = test::open_reserved(cache, 400);
  Random random(1);
  const Rows<float> rows0 = random_rows(random, 300, 2, 128);
  const Rows<float> keys2 = random_rows(random, 206, 1, 72);
  const Rows<float> values2 = random_rows(random, 206, 1, 40);
  KVTILT_EXPECT_OK(cache.append(id, 0, rows0.view(), rows0.view()));    // 4 + 2 * 64 + 168
  KVTILT_EXPECT_OK(cache.append(id, 2, keys2.view(), values2.view()));  // 4 + 64 + 138
  const MemoryReport report = cache.memory(id).value();
  EXPECT_EQ(report.page_bytes, 2 * page0 + page2);
  EXPECT_EQ(report.sink_bytes, 2u * 4 * (2 * 256 + 112));
  EXPECT_EQ(report.tail_bytes, 2u * (168 * 2 * 256 + 138 * 112));
  EXPECT_EQ(report.table_bytes, (1 + 2 + 3 + 1 + 1 + 3) * sizeof(PageEntry));
  EXPECT_EQ(report.reserved_bytes, 0u);
  EXPECT_EQ(report.elements, 300 * 2 * 256 + 206 * 112);
  EXPECT_DOUBLE_EQ(report.effective_bits(), 8.0 * static_cast<double>(report.bytes_in_use()) /
                                                static_cast<double>(300 * 2 * 256 + 206 * 112));

  const SequenceId other = test::open_reserved(cache, 10);
  KVTILT_EXPECT_OK(cache.append(other, 0, rows0.view(0, 3), rows0.view(0, 3)));
  EXPECT_EQ(cache.memory().bytes_in_use(),
            report.bytes_in_use() + cache.memory(other).value().bytes_in_use());
  EXPECT_EQ(cache.memory().elements, report.elements + 3 * 2 * 256);
}

TEST(KVCacheMemory, ATruncatedPageCountsWhole) {
  CountingAllocator memory;
  KVCache cache =
      test::make_cache(LayerShape{1, 128, 128, 0}, presets::k4v2, with_memory(memory, 64, 0, 0));
  const SequenceId id = test::open_reserved(cache, 64);
  Random random(2);
  const Rows<float> rows = random_rows(random, 64, 1, 128);
  KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(), rows.view()));
  KVTILT_EXPECT_OK(cache.truncate(id, 16));
  EXPECT_EQ(cache.memory(id)->page_bytes, 108u * 64);
  EXPECT_EQ(cache.memory(id)->elements, 16 * 256);
  EXPECT_EQ(cache.memory(id)->tail_bytes, 0u);
}

TEST(KVCacheMemory, ReservedBytesAreWhatTheAllocatorSaw) {
  CountingAllocator memory;
  {
    const CacheShape shape{{{2, 64, 64, 0}, {1, 40, 72, 0}}};
    KVCache cache = test::make_cache(shape, Plan::uniform(shape, presets::k4v2),
                                     with_memory(memory, 32, 4, 40));
    EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
    std::vector<SequenceId> ids;
    for (const std::int64_t tokens : {0, 1, 100, 37, 1000}) {
      ids.push_back(test::open_reserved(cache, tokens));
      EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
    }
    for (const SequenceId id : ids) {
      KVTILT_EXPECT_OK(cache.reserve(id, 300));
      EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
    }
    for (const SequenceId id : ids) {
      KVTILT_EXPECT_OK(cache.close(id));
      EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
    }
  }
  EXPECT_EQ(memory.bytes, 0u);
  EXPECT_EQ(memory.blocks, 0u);
  EXPECT_FALSE(memory.mismatched);
}

TEST(KVCacheMemory, ReservingWhatASequenceHoldsAsksForNothing) {
  for (const int window : {0, 50}) {
    CountingAllocator memory;
    const LayerShape shape{1, 40, 40, window};
    KVCache cache = test::make_cache(shape, presets::k4v2, with_memory(memory, 32, 4, 40));
    const SequenceId id = test::open_reserved(cache, 500);
    const std::size_t calls = memory.calls;
    Random random(6);
    const Rows<float> rows = random_rows(random, 500, 1, 40);
    for (std::int64_t first = 0; first < 500; first += 10) {
      KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(first, 10), rows.view(first, 10)));
      KVTILT_EXPECT_OK(cache.reserve(id, first));
      KVTILT_EXPECT_OK(cache.reserve(id, 500));
    }
    EXPECT_EQ(memory.calls, calls) << "window " << window;
  }
}

TEST(KVCacheMemory, NothingIsAllocatedAfterReserve) {
  CountingAllocator memory;
  const LayerShape shape{2, 72, 64, 0};
  KVCache cache = test::make_cache(shape, presets::k3v2, with_memory(memory, 32, 4, 40));
  const SequenceId id = test::open_reserved(cache, 500);
  Random random(3);
  const Rows<float> keys = random_rows(random, 500, 2, 72);
  const Rows<float> values = random_rows(random, 500, 2, 64);
  const Rows<float> queries = test::random_queries(random, shape, 5, 3);
  test::Output output(5, 6, 64);
  std::vector<std::byte> workspace(attend_prefill_workspace_bytes(cache.view(id, 0).value(), 10) +
                                   100000);
  const std::size_t global_before = global_calls;
  const std::size_t own_before = memory.calls;
  bool ok = true;
  for (std::int64_t first = 0; first + 10 <= 500; first += 10) {
    const Result<LayerView> past = cache.view(id, 0);
    ok = ok && attend_prefill(*past, queries.view(), keys.view(first, 5), values.view(first, 5),
                              output.view(), {}, workspace)
                   .ok();
    ok = ok && cache.append(id, 0, keys.view(first, 10), values.view(first, 10)).ok();
    ok = ok && attend(*cache.view(id, 0), queries.view(), output.view(), {}, workspace).ok();
    ok = ok && cache.truncate(id, first + 8).ok();
    ok = ok && cache.append(id, 0, keys.view(first, 2), values.view(first, 2)).ok();
    ok = ok && cache.length(id).ok() && cache.memory(id).ok();
  }
  ok = ok && cache.remove(id, 4, 36).ok();
  const ParallelFor workers{3};
  const Result<LayerView> view = cache.view(id, 0);
  const AttendRequest batch[] = {{*view, queries.view(), output.view(), {}},
                                 {*view, queries.view(), output.view(), {}}};
  ok = ok && attend_workspace_bytes(batch, 3) <= workspace.size() &&
       attend(batch, workspace, workers).ok();
  EXPECT_EQ(global_calls, global_before);
  EXPECT_EQ(memory.calls, own_before);
  EXPECT_TRUE(ok);
}

TEST(KVCacheMemory, RunningOutAnywhereInReserveChangesNothing) {
  const CacheShape shape{{{2, 64, 64, 0}, {1, 128, 72, 0}}};
  Random random(4);
  const Rows<float> rows = random_rows(random, 100, 2, 64);
  int refusals = 0;
  for (const bool once : {true, false})
    for (std::int64_t allowed = 0;; ++allowed) {
      CountingAllocator memory;
      KVCache cache = test::make_cache(shape, Plan::uniform(shape, presets::k4v2),
                                       with_memory(memory, 32, 4, 0));
      const SequenceId id = test::open_reserved(cache, 100);
      KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(), rows.view()));
      const test::Snapshot before(cache.view(id, 0).value());
      const std::size_t bytes_before = memory.bytes;
      const std::size_t blocks_before = memory.blocks;
      memory.refuse_after = allowed;
      memory.refuse_once = once;
      const Status status = cache.reserve(id, 700);
      EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
      if (status.ok()) break;
      ++refusals;
      EXPECT_EQ(status.code(), ErrorCode::OutOfMemory);
      EXPECT_THAT(std::string(status.message()), HasSubstr("700 tokens"));
      // The tables of one layer may have grown; no page was kept.
      EXPECT_LT(memory.bytes, bytes_before + 4096);
      EXPECT_LE(memory.blocks, blocks_before + 2);
      for (std::size_t i = 0; i < before.pages.size(); ++i)
        EXPECT_EQ(cache.view(id, 0)->pages[i].data, before.pages[i].data);
      EXPECT_TRUE(test::unchanged(before, cache.view(id, 0).value()));
      EXPECT_EQ(cache.append(id, 0, rows.view(), rows.view()).code(), ErrorCode::OutOfCapacity);
      EXPECT_TRUE(test::unchanged(before, cache.view(id, 0).value()));

      memory.refuse_after = -1;
      KVTILT_EXPECT_OK(cache.reserve(id, 700));
      for (int i = 0; i < 6; ++i) KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(), rows.view()));
      EXPECT_EQ(cache.length(id, 0).value(), 700);
      EXPECT_TRUE(test::attends_within_bound(cache.view(id, 0).value(),
                                             test::random_queries(random, shape.layers[0], 1, 1)));
      EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
    }
  EXPECT_GE(refusals, 2 * 6);  // tables of two layers and several pools
}

#if KVTILT_TEST_OWN_NEW
TEST(KVCacheMemory, RunningOutInOpenIsAnErrorAndNotAnException) {
  KVCache cache = test::make_cache(CacheShape::uniform(4, 1, 64),
                                   Plan::uniform(CacheShape::uniform(4, 1, 64), presets::k4v2));
  int refusals = 0;
  for (std::int64_t allowed = 0;; ++allowed) {
    global_calls_left = allowed;
    const Result<SequenceId> opened = cache.open();
    global_calls_left = -1;
    if (opened.ok()) break;
    EXPECT_EQ(opened.code(), ErrorCode::OutOfMemory);
    EXPECT_FALSE(opened.message().empty());
    ++refusals;
  }
  EXPECT_GE(refusals, 2);
  EXPECT_TRUE(cache.open().ok());
}

TEST(KVCacheMemory, RunningOutOfGlobalMemoryInReserveIsAnErrorAndNotAnException) {
  KVCache cache = test::make_cache(LayerShape{1, 64, 64, 0}, presets::k4v2);
  const SequenceId id = cache.open().value();
  for (std::int64_t allowed = 0;; ++allowed) {
    global_calls_left = allowed;
    const Status status = cache.reserve(id, 1000);
    global_calls_left = -1;
    if (status.ok()) break;
    EXPECT_EQ(status.code(), ErrorCode::OutOfMemory);
  }
  EXPECT_TRUE(cache.length(id).ok());
}
#endif

TEST(KVCacheMemory, TheLimitCountsEverythingTheAllocatorIsAskedFor) {
  CountingAllocator memory;
  const LayerShape shape{1, 64, 64, 0};
  std::size_t needed = 0;
  {
    KVCache cache = test::make_cache(shape, presets::k4v2, with_memory(memory));
    test::open_reserved(cache, 1000);
    needed = memory.bytes;
  }
  CacheOptions options = with_memory(memory);
  options.max_bytes = needed - 1;
  KVCache cache = test::make_cache(shape, presets::k4v2, options);
  const SequenceId id = cache.open().value();
  const Status status = cache.reserve(id, 1000);
  EXPECT_EQ(status.code(), ErrorCode::OutOfMemory);
  EXPECT_THAT(std::string(status.message()), HasSubstr("limit of " + std::to_string(needed - 1)));
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(needed) + " bytes more"));
  EXPECT_EQ(memory.bytes, 0u);
  KVTILT_EXPECT_OK(cache.reserve(id, 900));
  EXPECT_LE(memory.bytes, needed - 1);
  KVTILT_EXPECT_OK(cache.reserve(id, 10));  // reserved already
  const SequenceId other = cache.open().value();
  EXPECT_EQ(cache.reserve(other, 900).code(), ErrorCode::OutOfMemory);

  options.max_bytes = needed;
  KVCache exact = test::make_cache(shape, presets::k4v2, options);
  KVTILT_EXPECT_OK(exact.reserve(exact.open().value(), 1000));
}

TEST(KVCacheMemory, BytesNobodyWroteReachNoResult) {
  for (const char* name : {"k4v2", "k3tv5c", "k1v1", "k16v16", "k16v4"})
    for (const int window : {0, 50}) {
      std::optional<test::Output> first;
      std::vector<std::vector<std::byte>> first_pages;
      for (const int poison : {0x0000, 0xffff, 0x7e01, 0x7c00, 0xfc00, 0x7f80}) {
        CountingAllocator memory;
        memory.poison = static_cast<std::uint16_t>(poison);
        const LayerShape shape{2, 40, 72, window};
        KVCache cache =
            test::make_cache(shape, parse_recipe(name).value(), with_memory(memory, 32, 5, 21));
        const SequenceId id = test::open_reserved(cache, 400);
        Random random(5);
        const Rows<float> keys = random_rows(random, 203, 2, 40);
        const Rows<float> values = random_rows(random, 203, 2, 72);
        const Rows<float> queries = test::random_queries(random, shape, 3, 2);
        std::vector<test::Output> outputs;
        std::vector<std::vector<std::byte>> pages;
        for (const std::int64_t length : {3, 5, 6, 40, 203}) {
          const std::int64_t held = cache.length(id).value();
          KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(held, length - held),
                                        values.view(held, length - held)));
          outputs.push_back(test::attended(cache.view(id, 0).value(), queries));
        }
        const test::Snapshot now(cache.view(id, 0).value());
        for (std::size_t i = 0; i < now.pages.size(); ++i)
          if (now.pages[i].kind == PageKind::Sealed) pages.push_back(now.blocks[i]);
        KVTILT_EXPECT_OK(
            cache.truncate(id, window > 0 ? 190 : 90));  // pages that a window freed do not return
        outputs.push_back(test::attended(cache.view(id, 0).value(), queries));
        test::Output all(18, 4, 72);
        all.out.data.clear();
        all.lse.clear();
        for (const test::Output& output : outputs) {
          all.out.data.insert(all.out.data.end(), output.out.data.begin(), output.out.data.end());
          all.lse.insert(all.lse.end(), output.lse.begin(), output.lse.end());
        }
        if (!first) {
          first = all;
          first_pages = pages;
        }
        EXPECT_EQ(all.out.data, first->out.data) << name << std::hex << ", poison " << poison;
        EXPECT_EQ(all.lse, first->lse) << name << std::hex << ", poison " << poison;
        EXPECT_EQ(pages, first_pages) << name << std::hex << ", poison " << poison;
      }
    }
}

}  // namespace
}  // namespace kvtilt
