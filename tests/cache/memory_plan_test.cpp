// SPDX-License-Identifier: MIT
#include <kvtilt/cache/memory_plan.hpp>

#include "support/caches.hpp"
#include "support/counting_allocator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::CountingAllocator;
using test::pick;
using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// A cache to plan and to create.
struct Wanted {
  CacheShape shape;
  Plan plan;
  CacheOptions options;
};

Wanted random_wanted(Random& random) {
  Wanted wanted;
  wanted.options.page_tokens = pick(random, {32, 64, 128});
  wanted.options.sink_tokens = pick(random, {0, 1, 4, 16, 17, 100});
  wanted.options.recent_tokens = pick(random, {0, 1, 31, 64, 128, 200});
  const int layers = 1 + random.below(4);
  for (int layer = 0; layer < layers; ++layer) {
    LayerShape shape{1 + random.below(3), 8 * (1 + random.below(10)), 8 * (1 + random.below(10)),
                     pick(random, {0, 0, 1, 33, 64, 100, 1000})};
    if (random.chance(5)) shape = {};
    std::vector<Recipe> recipes;
    const int count = random.chance(2) ? 1 : shape.kv_heads;
    for (int i = 0; i < count; ++i)
      recipes.push_back({test::random_format(random, shape.key_dim, wanted.options.page_tokens),
                         test::random_format(random, shape.value_dim, wanted.options.page_tokens)});
    if (shape.kv_heads == 0) recipes = {Recipe{}};
    wanted.shape.layers.push_back(shape);
    wanted.plan.recipes.push_back(recipes);
  }
  return wanted;
}

/// Opens, reserves and fills sequences.
void fill(KVCache& cache, const CacheShape& shape, std::int64_t tokens, int sequences) {
  Random random(3);
  for (int i = 0; i < sequences; ++i) {
    const SequenceId id = test::open_reserved(cache, tokens);
    for (int layer = 0; layer < cache.layers(); ++layer) {
      const LayerShape& own = shape.layers[static_cast<std::size_t>(layer)];
      if (own.kv_heads == 0) continue;
      const Rows<float> keys = random_rows(random, tokens, own.kv_heads, own.key_dim);
      const Rows<float> values = random_rows(random, tokens, own.kv_heads, own.value_dim);
      KVTILT_EXPECT_OK(cache.append(id, layer, keys.view(), values.view()));
    }
  }
}

void expect_equal(const MemoryReport& planned, const MemoryReport& seen) {
  EXPECT_EQ(planned.page_bytes, seen.page_bytes);
  EXPECT_EQ(planned.tail_bytes, seen.tail_bytes);
  EXPECT_EQ(planned.sink_bytes, seen.sink_bytes);
  EXPECT_EQ(planned.table_bytes, seen.table_bytes);
  EXPECT_EQ(planned.reserved_bytes, seen.reserved_bytes);
  EXPECT_EQ(planned.elements, seen.elements);
  EXPECT_EQ(planned.effective_bits(), seen.effective_bits());
}

/// plan_memory() equals what a counting allocator sees, with and without page_memory, and
/// page_memory that is one byte smaller does not suffice.
void check(Wanted wanted, std::int64_t tokens, int sequences) {
  const Result<MemoryPlan> plan =
      plan_memory(wanted.shape, wanted.plan, wanted.options, tokens, sequences);
  ASSERT_TRUE(plan.ok()) << plan.message();

  CountingAllocator memory;
  wanted.options.allocator = memory.get();
  KVCache cache = test::make_cache(wanted.shape, wanted.plan, wanted.options);
  fill(cache, wanted.shape, tokens, sequences);
  EXPECT_EQ(plan->reserved_bytes(), memory.bytes);
  expect_equal(plan->filled, cache.memory());

  const std::size_t own_bytes = plan->page_memory_bytes();
  if (own_bytes == 0) return;
  std::vector<std::byte> own(own_bytes + page_alignment);
  std::byte* start = own.data();
  while (reinterpret_cast<std::uintptr_t>(start) % page_alignment != 0) ++start;
  CountingAllocator tables;
  wanted.options.allocator = tables.get();
  wanted.options.page_memory = {start, own_bytes};
  KVCache caller_owned = test::make_cache(wanted.shape, wanted.plan, wanted.options);
  for (int i = 0; i < sequences; ++i) test::open_reserved(caller_owned, tokens);
  EXPECT_EQ(plan->table_bytes, tables.bytes);
  EXPECT_EQ(plan->reserved_bytes(), caller_owned.memory().reserved_bytes);

  wanted.options.page_memory = {start, own_bytes - 1};
  KVCache too_little = test::make_cache(wanted.shape, wanted.plan, wanted.options);
  for (int i = 1; i < sequences; ++i) test::open_reserved(too_little, tokens);
  EXPECT_EQ(too_little.reserve(too_little.open().value(), tokens).code(), ErrorCode::OutOfMemory);
}

TEST(MemoryPlan, IsWhatTheFormatsSay) {
  const CacheShape shape{{{2, 128, 128, 0}, {0, 0, 0, 0}, {1, 72, 40, 0}}};
  const Plan plan{{{presets::k4v2}, {presets::k4v2}, {parse_recipe("k3tv5c").value()}}};
  const MemoryPlan planned = plan_memory(shape, plan, {}, 400, 3).value();
  // 396 tokens follow the 4 sinks: 4 pages beyond the newest 128; a tail of at most 3 blocks.
  constexpr std::size_t page0 = 2 * (4096 + 512 + 2048 + 256);
  constexpr std::size_t page2 =
      (64 * 72 * 3 / 8 + 64 * 4 + 40 * 64 * 5 / 8 + 40 * 4 + 63) / 64 * 64;
  EXPECT_EQ(planned.page_bytes, 3 * 4 * (page0 + page2));
  EXPECT_EQ(planned.tail_bytes, 3u * 3 * 64 * 2 * (2 * 256 + 112));
  EXPECT_EQ(planned.sink_bytes, 3u * 16 * 2 * (2 * 256 + 112));  // blocks of 16 slots
  // Tables: entries for 4 pages, 3 tail blocks and the sinks; blocks of the ring (3) and spare
  // pages (4).
  EXPECT_EQ(planned.table_bytes, 3 * 2 * (8 * sizeof(PageEntry) + 7 * sizeof(Block)));
  EXPECT_EQ(planned.filled.page_bytes, planned.page_bytes);
  EXPECT_EQ(planned.filled.elements, 3 * 400 * (2 * 256 + 112));
  // A slab (one allocation) for the 4 pages, one for the tail, one for the sinks: 64 bytes each.
  EXPECT_EQ(planned.slab_bytes, 3u * 2 * 3 * 64);
}

TEST(MemoryPlan, CountsEveryRecipe) {
  for (const int page : {32, 64, 128})
    for (const int key_bits : test::storage_widths)
      for (const int value_bits : test::storage_widths) {
        Wanted wanted;
        wanted.shape = CacheShape{{{2, 72, 40, 0}, {1, 64, 64, 40}}};
        wanted.plan = Plan::uniform(wanted.shape, presets::per_channel_keys(key_bits, value_bits));
        wanted.options.page_tokens = page;
        wanted.options.recent_tokens = 0;
        check(wanted, 2 * page + 5, 2);
      }
}

TEST(MemoryPlanProperty, EqualsWhatTheAllocatorSeesForAnySetup) {
  Random random(11);
  for (int trial = 0; trial < 120; ++trial) {
    SCOPED_TRACE("trial " + std::to_string(trial));
    check(random_wanted(random), pick(random, {0, 1, 2, 31, 33, 100, 129, 300, 517, 700}),
          1 + random.below(3));
  }
}

TEST(MemoryPlanProperty, EqualsWhatTheAllocatorSeesForEveryLength) {
  Wanted wanted;
  wanted.shape = CacheShape{{{1, 8, 8, 0}, {1, 8, 16, 50}, {1, 16, 8, 1}}};
  wanted.plan = Plan::uniform(wanted.shape, presets::k2v2);
  wanted.options.page_tokens = 32;
  wanted.options.recent_tokens = 33;
  for (std::int64_t tokens = 0; tokens <= 300; ++tokens) check(wanted, tokens, 1);
}

TEST(MostTokens, IsTheLongestReservationThatSucceeds) {
  Random random(12);
  for (int trial = 0; trial < 60; ++trial) {
    SCOPED_TRACE("trial " + std::to_string(trial));
    Wanted wanted = random_wanted(random);
    for (LayerShape& layer : wanted.shape.layers) layer.window = 0;
    wanted.shape.layers[0] = {1, 24, 40, 0};
    wanted.plan.recipes[0] = {presets::k4v2};
    const int sequences = 1 + random.below(3);
    const bool limit = random.chance(2);
    std::vector<std::byte> own;
    if (limit) wanted.options.max_bytes = static_cast<std::size_t>(80000 + random.below(2000000));
    if (!limit || random.chance(2)) {
      own.resize(static_cast<std::size_t>(1 + random.below(2000000)));
      wanted.options.page_memory = own;
    }
    const Result<std::int64_t> most =
        most_tokens(wanted.shape, wanted.plan, wanted.options, sequences);
    ASSERT_TRUE(most.ok()) << most.message();
    Status last;
    for (const std::int64_t tokens : {*most, *most + 1}) {  // both use page_memory: in turn
      KVCache cache = test::make_cache(wanted.shape, wanted.plan, wanted.options);
      for (int i = 0; i < sequences; ++i) last = cache.reserve(cache.open().value(), tokens);
      EXPECT_EQ(last.code(), tokens == *most ? ErrorCode::Ok : ErrorCode::OutOfMemory) << *most;
    }
  }
}

TEST(MostTokens, WindowsBoundTheMemoryOfAnyLength) {
  const CacheShape shape{{{1, 64, 64, 100}, {2, 64, 64, 1000}}};
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  CacheOptions options;
  options.max_bytes = plan_memory(shape, plan, options, max_tokens).value().reserved_bytes();
  EXPECT_LT(options.max_bytes, 1u << 20);
  EXPECT_EQ(most_tokens(shape, plan, options).value(), max_tokens);
  KVCache cache = test::make_cache(shape, plan, options);
  test::open_reserved(cache, max_tokens);
  EXPECT_EQ(cache.memory().reserved_bytes, options.max_bytes);
  --options.max_bytes;
  EXPECT_LT(most_tokens(shape, plan, options).value(), 2000);
}

TEST(MostTokens, AWindowBeyondAllTokensCostsLittleTime) {
  CacheShape shape = CacheShape::uniform(4, 8, 128);
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  CacheOptions options;
  options.max_bytes = std::size_t{1} << 30;
  const std::int64_t unlimited = most_tokens(shape, plan, options).value();
  for (LayerShape& layer : shape.layers) layer.window = std::numeric_limits<int>::max();
  EXPECT_EQ(most_tokens(shape, plan, options).value(), unlimited);
}

TEST(MemoryPlanHostile, RefusesWhatCreateAndReserveRefuseInTheSameWords) {
  const CacheShape good{{{2, 64, 64, 0}}};
  std::vector<Wanted> bad;
  const auto add = [&](const CacheShape& shape, const Plan& plan, const CacheOptions& options) {
    bad.push_back({shape, plan, options});
  };
  CacheOptions odd_page;
  odd_page.page_tokens = 48;
  CacheOptions no_sequences;
  no_sequences.max_sequences = 0;
  CacheOptions null_memory;
  null_memory.page_memory = std::span<std::byte>(static_cast<std::byte*>(nullptr), 100);
  add({}, {}, {});
  add(good, {}, {});
  add(good, {{{presets::k4v2, presets::k4v2, presets::k4v2}}}, {});
  add({{{1, 60, 64, 0}}}, {{{presets::k4v2}}}, {});
  add({{{1, 64, 64, -1}}}, {{{presets::k4v2}}}, {});
  add(good, {{{parse_recipe("k4v2:g48,32").value()}}}, {});
  add(good, {{{presets::k4v2}}}, odd_page);
  add(good, {{{presets::k4v2}}}, no_sequences);
  add(good, {{{presets::k4v2}}}, null_memory);
  for (Wanted& wanted : bad) {
    const Result<KVCache> cache = KVCache::create(wanted.shape, wanted.plan, wanted.options);
    const Result<MemoryPlan> plan = plan_memory(wanted.shape, wanted.plan, wanted.options, 100);
    wanted.options.max_bytes = 1 << 20;
    const Result<std::int64_t> most = most_tokens(wanted.shape, wanted.plan, wanted.options);
    ASSERT_FALSE(cache.ok());
    EXPECT_EQ(plan.code(), cache.code());
    EXPECT_EQ(plan.message(), cache.message());
    EXPECT_EQ(most.message(), cache.message());
  }
  using Few = Formats<Keys<4>, Values<4>>;
  EXPECT_EQ(plan_memory<Few>(good, {{{presets::k4v2}}}, {}, 100).code(), ErrorCode::Unsupported);
  EXPECT_TRUE(plan_memory<Few>(good, {{{presets::k4v4}}}, {}, 100).ok());

  const Plan plan = Plan::uniform(good, presets::k4v2);
  KVCache cache = test::make_cache(good, plan);
  const SequenceId id = cache.open().value();
  for (const std::int64_t tokens :
       {std::int64_t{-1}, max_tokens + 1, std::numeric_limits<std::int64_t>::min()}) {
    const Result<MemoryPlan> planned = plan_memory(good, plan, {}, tokens);
    EXPECT_EQ(planned.code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(planned.message(), cache.reserve(id, tokens).message());
    EXPECT_THAT(std::string(planned.message()), HasSubstr(std::to_string(tokens)));
  }
}

TEST(MemoryPlanHostile, NamesTheNumbersThatAreWrong) {
  const CacheShape shape{{{2, 64, 64, 0}}};
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  CacheOptions options;
  options.max_sequences = 3;
  for (const int sequences : {-1, 0, 4}) {
    const Result<MemoryPlan> planned = plan_memory(shape, plan, options, 100, sequences);
    EXPECT_EQ(planned.code(), ErrorCode::InvalidArgument);
    EXPECT_THAT(std::string(planned.message()), HasSubstr(std::to_string(sequences)));
    EXPECT_THAT(std::string(planned.message()), HasSubstr("max_sequences, which is 3"));
  }
  const Result<std::int64_t> unlimited = most_tokens(shape, plan, options);
  EXPECT_EQ(unlimited.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(unlimited.message()), HasSubstr("nothing limits"));
  options.max_bytes = 10;
  const Result<std::int64_t> nothing = most_tokens(shape, plan, options);
  EXPECT_EQ(nothing.code(), ErrorCode::OutOfMemory);
  EXPECT_THAT(std::string(nothing.message()), HasSubstr("max_bytes is 10"));

  // Two sequences fit, a thousand do not; the vast cache needs more than 2^56 bytes.
  const CacheShape large = CacheShape::uniform(32, 8, 128);
  const Plan large_plan = Plan::uniform(large, presets::k4v2);
  EXPECT_TRUE(plan_memory(large, large_plan, {}, max_tokens, 2).ok());
  EXPECT_EQ(plan_memory(large, large_plan, {}, max_tokens, 1000).code(), ErrorCode::OutOfMemory);
  const CacheShape vast = CacheShape::uniform(1000, 1024, 576);
  const Result<MemoryPlan> planned =
      plan_memory(vast, Plan::uniform(vast, presets::per_channel_keys(1, 1)), {}, max_tokens, 1000);
  EXPECT_EQ(planned.code(), ErrorCode::OutOfMemory);
  EXPECT_THAT(std::string(planned.message()), HasSubstr("more than 2^56 bytes"));
}

}  // namespace
}  // namespace kvtilt
