// SPDX-License-Identifier: MIT
#include <kvtilt/cache/layer_store.hpp>
#include <kvtilt/cuda/cache/memory_plan.hpp>
#include <kvtilt/quant/presets.hpp>

#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::Random;
using testing::HasSubstr;

CacheShape mixed_shape() {
  CacheShape shape;
  shape.layers = {{2, 128, 128, 0}, {}, {4, 64, 96, 256}, {1, 192, 128, 0}};
  return shape;
}

TEST(DeviceMemoryPlan, PagesHaveTheBytesOfTheCpu) {
  const CacheShape shape = mixed_shape();
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  const CacheOptions options;
  const auto layout = detail::make_device_layout(shape, plan, options).value();
  const Plan resolved = resolve_plan(plan, shape, options.page_tokens).value();
  std::size_t pages = 0;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const detail::DeviceLayer& of = layout.layers[layer];
    if (shape.layers[layer].kv_heads == 0) continue;
    const LayerStore store = LayerStore::make(shape.layers[layer], resolved.recipes[layer],
                                              token_placement(options, {}));
    for (const PageKind kind : {PageKind::Sealed, PageKind::Tail, PageKind::Sinks})
      EXPECT_EQ(of.layout(kind).bytes, store.layout(kind).bytes);
    pages += static_cast<std::size_t>(of.pages) * store.layout(PageKind::Sealed).bytes;
  }
  EXPECT_EQ(layout.plan.page_bytes, pages);
  // Layer 0 takes the token capacity, layer 2 what its window holds per sequence.
  EXPECT_EQ(layout.layers[0].pages, 65536 / 64);
  EXPECT_EQ(layout.layers[2].pages, 64 * (256 / 64 + 2));
}

TEST(DeviceMemoryPlan, NothingOverlapsAndAllIsCounted) {
  const CacheShape shape = mixed_shape();
  CacheOptions options;
  options.max_sequences = 3;
  options.token_capacity = 4096;
  const auto layout =
      detail::make_device_layout(shape, Plan::uniform(shape, presets::k4v2), options).value();
  std::vector<std::pair<std::size_t, std::size_t>> pieces = {
      {layout.record, sizeof(DeviceRecords)},
      {layout.views, shape.layers.size() * sizeof(LayerView)},
      {layout.slots, 3 * sizeof(std::int32_t)}};
  for (const detail::DeviceLayer& layer : layout.layers) {
    if (layer.shape.kv_heads == 0) continue;
    const std::size_t counts[page_kinds] = {
        3, static_cast<std::size_t>(layer.pages),
        3 * static_cast<std::size_t>(layer.placement.ring_blocks())};
    for (int kind = 0; kind < page_kinds; ++kind) {
      pieces.emplace_back(layer.pools[kind], counts[kind] * layer.layouts[kind].bytes);
      pieces.emplace_back(layer.heads[kind],
                          static_cast<std::size_t>(layer.shape.kv_heads) * sizeof(HeadLayout));
    }
    pieces.emplace_back(layer.slices,
                        static_cast<std::size_t>(layer.shape.kv_heads) * sizeof(HeadSlices));
    pieces.emplace_back(layer.states, 3 * sizeof(SequenceState));
    pieces.emplace_back(layer.tables,
                        3 * static_cast<std::size_t>(layer.table_stride) * sizeof(PageSlot));
    pieces.emplace_back(layer.arrivals, 3 * sizeof(std::uint32_t));
  }
  std::sort(pieces.begin(), pieces.end());
  std::size_t end = 0;
  for (const auto& [offset, bytes] : pieces) {
    EXPECT_EQ(offset % 256, 0u);
    EXPECT_GE(offset, end);
    end = offset + bytes;
  }
  EXPECT_EQ(layout.plan.device_bytes(), round_up(end, 256));
}

TEST(DeviceMemoryPlanRandom, MostTokenCapacityFitsAndOnePageMoreDoesNot) {
  Random random(5);
  for (int round = 0; round < 60; ++round) {
    CacheShape shape;
    for (int layer = random.between(1, 4); layer > 0; --layer)
      shape.layers.push_back({random.below(3), 32, 64, random.chance(3) ? 200 : 0});
    shape.layers.push_back({1, 64, 64, 0});
    const Plan plan = Plan::uniform(shape, presets::k4v2);
    CacheOptions options;
    options.page_tokens = 32 << random.below(3);
    options.max_sequences = random.between(1, 9);
    options.token_capacity = 1;  // ignored
    if (random.chance(2)) options.max_sequence_tokens = random.between(1, 5000);
    const std::size_t limit = static_cast<std::size_t>(random.between(1, 64)) << 20;
    alignas(256) static std::byte memory[256];  // never accessed
    const std::size_t lost = random.chance(2) ? 0 : 16;
    if (random.chance(2))
      options.max_bytes = limit;
    else
      options.device_memory = {memory + (256 - lost) % 256, limit + lost};
    const Result<std::int64_t> most = most_token_capacity(shape, plan, options);
    CacheOptions made = options;
    made.max_bytes = limit;
    made.token_capacity = options.page_tokens;
    if (!most) {
      EXPECT_EQ(most.code(), ErrorCode::OutOfMemory);
      EXPECT_EQ(plan_memory(shape, plan, made).code(), ErrorCode::OutOfMemory) << round;
      continue;
    }
    EXPECT_EQ(*most % options.page_tokens, 0);
    made.token_capacity = *most;
    EXPECT_TRUE(plan_memory(shape, plan, made).ok()) << round;
    made.token_capacity += options.page_tokens;
    EXPECT_EQ(plan_memory(shape, plan, made).code(), ErrorCode::OutOfMemory) << round;
  }
}

TEST(DeviceMemoryPlanHostile, MostTokenCapacityNeedsALimitAndRoom) {
  const CacheShape shape = CacheShape::uniform(2, 2, 64);
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  CacheOptions options;
  EXPECT_THAT(std::string(most_token_capacity(shape, plan, options).message()),
              HasSubstr("nothing limits the tokens"));
  options.max_bytes = 1000;
  EXPECT_EQ(most_token_capacity(shape, plan, options).code(), ErrorCode::OutOfMemory);
  options.page_tokens = 48;
  EXPECT_EQ(most_token_capacity(shape, plan, options).code(), ErrorCode::InvalidArgument);
}

TEST(DeviceMemoryPlan, RefusesWithAReason) {
  CacheShape shape = mixed_shape();
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  CacheOptions options;
  options.max_bytes = 1000;
  EXPECT_EQ(plan_memory(shape, plan, options).code(), ErrorCode::OutOfMemory);
  shape.layers[3].key_dim = 72;
  const auto refused = plan_memory(shape, plan);
  EXPECT_EQ(refused.code(), ErrorCode::Unsupported);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("layer 3: key_dim is 72"));
  CacheOptions absurd;  // 2^64 bytes and 56 GiB: wraps around
  absurd.page_tokens = 32;
  absurd.sink_tokens = absurd.recent_tokens = 0;
  absurd.max_sequences = 1;
  absurd.max_sequence_tokens = 64;
  absurd.token_capacity = std::int64_t{477218589} * 32;
  const CacheShape large = CacheShape::uniform(512, 1024, 576);
  EXPECT_EQ(plan_memory(large, Plan::uniform(large, presets::k16v16), absurd).code(),
            ErrorCode::OutOfMemory);
  const CacheShape deep = CacheShape::uniform(513, 1, 64);
  EXPECT_EQ(plan_memory(deep, Plan::uniform(deep, presets::k4v2)).code(), ErrorCode::Unsupported);
}

}  // namespace
}  // namespace kvtilt::cuda
