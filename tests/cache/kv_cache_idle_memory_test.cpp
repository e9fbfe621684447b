// SPDX-License-Identifier: MIT
/// Memory that closed sequences leave behind serves later reservations of any size.
#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/cache/memory_plan.hpp>

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"
#include "support/counting_allocator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::CountingAllocator;
using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

const CacheShape idle_shape{{{1, 64, 64, 0}}};
const Plan idle_plan = Plan::uniform(idle_shape, presets::k4v2);
constexpr std::int64_t chat = 160;  // so short that it needs 16-bit blocks only
constexpr std::int64_t prompt = 50000;
constexpr int chats = 64;

MemoryPlan needs(std::int64_t tokens, int sequences = 1) {
  return plan_memory(idle_shape, idle_plan, {}, tokens, sequences).value();
}

/// Opens, fills (up to 1000 tokens) and closes `count` sequences.
void come_and_go(KVCache& cache, std::int64_t tokens, int count) {
  Random random(1);
  const Rows<float> rows = random_rows(random, std::min<std::int64_t>(tokens, 1000), 1, 64);
  std::vector<SequenceId> ids;
  for (int i = 0; i < count; ++i) {
    ids.push_back(test::open_reserved(cache, tokens));
    KVTILT_EXPECT_OK(cache.append(ids.back(), 0, rows.view(), rows.view()));
  }
  for (const SequenceId id : ids) KVTILT_EXPECT_OK(cache.close(id));
}

TEST(KVCacheIdleMemory, ChatsThenAPromptThenChatsFitIntoTheLargerOfBoth) {
  const std::size_t limit =
      std::max(needs(chat, chats).reserved_bytes(), needs(prompt).reserved_bytes());
  ASSERT_GT(needs(chat, chats).reserved_bytes() + needs(prompt).reserved_bytes(), 3 * limit / 2);
  CountingAllocator memory;
  CacheOptions options;
  options.allocator = memory.get();
  options.max_bytes = limit;
  {
    KVCache cache = test::make_cache(idle_shape, idle_plan, options);
    for (int round = 0; round < 3; ++round) {
      come_and_go(cache, chat, chats);
      EXPECT_GT(memory.bytes, limit / 2) << "what is free stays for the next chat";
      come_and_go(cache, prompt, 1);
      EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
      EXPECT_LE(memory.bytes, limit);
    }
    const SequenceId id = test::open_reserved(cache, prompt);
    EXPECT_EQ(cache.reserve(cache.open().value(), prompt).code(), ErrorCode::OutOfMemory);
    KVTILT_EXPECT_OK(cache.close(id));
  }
  EXPECT_EQ(memory.bytes, 0u);
  EXPECT_FALSE(memory.mismatched);
}

TEST(KVCacheIdleMemory, PageMemoryServesOneSizeAfterTheOther) {
  // The prompt's slabs lie between those of chats, and a hole may be too short: one chat to spare.
  const std::size_t bytes =
      std::max(needs(chat, chats + 1).page_memory_bytes(), needs(prompt).page_memory_bytes());
  std::vector<std::byte> own(bytes + page_alignment);
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(own.data()) % page_alignment;
  CacheOptions options;
  options.page_memory = std::span(own).subspan((page_alignment - misaligned) % page_alignment);
  options.page_memory = options.page_memory.first(bytes);
  KVCache cache = test::make_cache(idle_shape, idle_plan, options);
  for (int round = 0; round < 3; ++round) {
    come_and_go(cache, chat, chats);
    come_and_go(cache, prompt, 1);
  }
}

TEST(KVCacheIdleMemory, PageMemoryBetweenOpenSequencesServesOnlyWhatFitsThere) {
  const std::size_t bytes = needs(chat, 20).page_memory_bytes();
  std::vector<std::byte> own(bytes + page_alignment);
  CacheOptions options;
  options.page_memory = own;
  KVCache cache = test::make_cache(idle_shape, idle_plan, options);
  std::vector<SequenceId> ids;
  for (int i = 0; i < 20; ++i) ids.push_back(test::open_reserved(cache, chat));
  for (std::size_t i = 0; i < 20; i += 2) KVTILT_EXPECT_OK(cache.close(ids[i]));
  ASSERT_LT(needs(4000).page_memory_bytes(), bytes / 2);
  const Status refused = cache.reserve(cache.open().value(), 4000);
  EXPECT_EQ(refused.code(), ErrorCode::OutOfMemory);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("are free, but the pieces between slabs in use are too small"));
  EXPECT_LE(cache.memory().reserved_bytes, 20 * needs(chat).reserved_bytes());
  for (std::size_t i = 0; i < 20; i += 2) ids[i] = test::open_reserved(cache, chat);
  for (const SequenceId id : ids) KVTILT_EXPECT_OK(cache.close(id));
  test::open_reserved(cache, 4000);
}

TEST(KVCacheIdleMemory, AnOpenSequenceKeepsItsSlabsAndItsBytes) {
  CountingAllocator memory;
  CacheOptions options;
  options.allocator = memory.get();
  options.max_bytes = needs(chat).reserved_bytes() +
                      std::max(needs(chat, chats).reserved_bytes(), needs(prompt).reserved_bytes());
  KVCache cache = test::make_cache(idle_shape, idle_plan, options);
  Random random(2);
  const Rows<float> rows = random_rows(random, chat, 1, 64);
  const SequenceId open = test::open_reserved(cache, chat);
  KVTILT_EXPECT_OK(cache.append(open, 0, rows.view(), rows.view()));
  const test::Snapshot before(cache.view(open, 0).value());
  come_and_go(cache, chat, chats);
  come_and_go(cache, prompt, 1);
  EXPECT_TRUE(test::unchanged(before, cache.view(open, 0).value()));
  EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
}

TEST(KVCacheIdleMemory, GoesBackWhereTheAllocatorHasNoMore) {
  for (int allowed = 0; allowed < 4; ++allowed) {  // one of 3 tables or a slab of pages
    CountingAllocator memory;
    CacheOptions options;
    options.allocator = memory.get();
    KVCache cache = test::make_cache(idle_shape, idle_plan, options);
    come_and_go(cache, chat, chats);
    const SequenceId id = cache.open().value();
    memory.refuse_after = allowed;
    memory.refuse_once = true;
    KVTILT_EXPECT_OK(cache.reserve(id, prompt));
    EXPECT_EQ(memory.refuse_after, -1);
    EXPECT_EQ(memory.bytes, needs(prompt).reserved_bytes());
    EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
  }
}

TEST(KVCacheIdleMemory, StaysWhereItWouldNotBeEnough) {
  CountingAllocator memory;
  CacheOptions options;
  options.allocator = memory.get();
  options.max_bytes = needs(prompt).reserved_bytes() - 1;
  KVCache cache = test::make_cache(idle_shape, idle_plan, options);
  come_and_go(cache, chat, 10);
  const SequenceId open = test::open_reserved(cache, chat);
  const std::size_t taken = memory.bytes;
  const SequenceId id = cache.open().value();
  const Status refused = cache.reserve(id, prompt);
  EXPECT_EQ(refused.code(), ErrorCode::OutOfMemory);
  const MemoryPlan free = needs(chat, 9);
  const MemoryPlan other = needs(chat, 8);  // the prompt can use the blocks of one chat
  EXPECT_THAT(
      std::string(refused.message()),
      HasSubstr(std::to_string(taken) + " of the limit of " + std::to_string(options.max_bytes) +
                " are taken, " + std::to_string(taken - free.tail_bytes - free.sink_bytes) +
                " of them by open sequences and " +
                std::to_string(other.tail_bytes + other.sink_bytes) +
                " by free blocks of other sizes"));
  EXPECT_EQ(memory.bytes, taken);
  KVTILT_EXPECT_OK(cache.close(open));
}

}  // namespace
}  // namespace kvtilt
