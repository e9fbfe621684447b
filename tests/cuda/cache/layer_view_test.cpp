// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/page/layout.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace kvtilt::cuda {
namespace {

TEST(LayerView, FindsBlocksOfEachPool) {
  std::vector<std::byte> pools[page_kinds];
  const std::int64_t bytes[page_kinds] = {128, 192, 64};
  LayerView view{};
  view.ring_blocks = 3;
  for (int kind = 0; kind < page_kinds; ++kind) {
    pools[kind].resize(static_cast<std::size_t>(bytes[kind] * 12));
    view.pool[kind] = pools[kind].data();
    view.block_bytes[kind] = bytes[kind];
  }
  for (std::int64_t index = 0; index < 12; ++index) {
    EXPECT_EQ(view.block(PageKind::Sinks, index) - pools[0].data(), 128 * index);
    EXPECT_EQ(view.block(PageKind::Sealed, index) - pools[1].data(), 192 * index);
    EXPECT_EQ(view.block(PageKind::Tail, index) - pools[2].data(), 64 * index);
  }
  EXPECT_EQ(view.sinks(5), view.block(PageKind::Sinks, 5));
}

TEST(LayerView, TurnsTheRingOfEachSequence) {
  std::vector<std::byte> pool(4 * 3 * 64);
  LayerView view{};
  view.ring_blocks = 3;
  view.pool[static_cast<int>(PageKind::Tail)] = pool.data();
  view.block_bytes[static_cast<int>(PageKind::Tail)] = 64;
  for (int sequence = 0; sequence < 4; ++sequence)
    for (int head = 0; head < 3; ++head) {
      std::set<const std::byte*> seen;
      for (int index = 0; index < 3; ++index) {
        const std::byte* const block = view.tail(sequence, head, index);
        EXPECT_EQ(block - pool.data(), 64 * (3 * sequence + (head + index) % 3));
        seen.insert(block);
      }
      EXPECT_EQ(seen.size(), 3u);
    }
  EXPECT_EQ(view.tail(2, 2, 1), view.block(PageKind::Tail, 6)) << "behind the last: the first";
}

/// Pools and tables may exceed 2^32 bytes: indices are multiplied in 64 bits.
TEST(LayerViewHostile, ReachesBeyondFourGigabytes) {
  LayerView view{};
  view.ring_blocks = 1 << 10;
  view.block_bytes[static_cast<int>(PageKind::Tail)] = 1 << 20;
  view.block_bytes[static_cast<int>(PageKind::Sealed)] = 1 << 20;
  view.table_stride = 1 << 20;
  const std::intptr_t start = 1 << 12;  // never accessed
  for (std::byte*& pool : view.pool) pool = reinterpret_cast<std::byte*>(start);
  view.tables = reinterpret_cast<PageSlot*>(start);
  const auto distance = [](const void* end) {
    return reinterpret_cast<std::intptr_t>(end) - start;
  };
  EXPECT_EQ(distance(view.tail(1 << 20, 0, 1)), ((std::intptr_t{1} << 30) + 1) << 20);
  EXPECT_EQ(distance(view.block(PageKind::Sealed, 0x7fffffff)), std::intptr_t{0x7fffffff} << 20);
  EXPECT_EQ(distance(view.table(1 << 20)), std::intptr_t{1} << 44);
}

TEST(LayerView, APageHasSlicesOfEightElementsForAThread) {
  EXPECT_EQ(append_slices(64, 128, 128), 16);
  EXPECT_EQ(append_slices(32, 16, 16), 1);
  EXPECT_EQ(append_slices(32, 64, 64), 4);
  EXPECT_EQ(append_slices(64, 80, 80), 16);
  EXPECT_EQ(append_slices(128, 576, 512), most_slices);
}

TEST(LayerView, PagesThatAreReadAlikeHaveOneFingerprint) {
  const auto of = [](const LayerShape& shape, const std::vector<Recipe>& recipes, int tokens) {
    return layout_fingerprint(PageLayout::make(shape, recipes, tokens));
  };
  const auto keys = [](int bits, int group, RangeRule rule) {
    return Recipe{{bits, Granularity::PerChannel, group, rule}, Format{}};
  };
  const Recipe four = keys(4, 32, RangeRule::MinMax);
  EXPECT_EQ(of({2, 64, 64}, {four}, 64), of({2, 64, 64}, {four, four}, 64));
  EXPECT_EQ(of({2, 64, 64}, {four}, 64), of({2, 64, 64}, {keys(4, 32, RangeRule::MinMse)}, 64));
  const Recipe by_token{{4, Granularity::PerToken, 32, RangeRule::MinMax}, Format{}};
  const Recipe values{Format{}, four.key};
  const std::set<std::uint64_t> others = {
      of({2, 64, 64}, {four}, 64),
      of({2, 64, 64}, {keys(5, 32, RangeRule::MinMax)}, 64),
      of({2, 64, 64}, {keys(4, 64, RangeRule::MinMax)}, 64),
      of({2, 64, 64}, {by_token}, 64),
      of({2, 64, 64}, {values}, 64),
      of({2, 64, 64}, {four, values}, 64),
      of({2, 64, 64}, {values, four}, 64),
      of({2, 64, 64}, {four}, 32),
      of({2, 64, 80}, {four}, 64),
      of({2, 80, 64}, {four}, 64),
      of({1, 64, 64}, {four}, 64),
      of({1, 64, 64}, {values}, 64),
      of({1, 64, 64}, {{Format{}, keys(4, 64, RangeRule::MinMax).key}}, 64),
  };
  EXPECT_EQ(others.size(), 13u);
  const LayerShape shape{2, 64, 64};
  EXPECT_EQ(
      describe_layer(shape, {64, 4, 128}, make_layer_layouts(shape, {four}, 64, 4)).fingerprint,
      of(shape, {four}, 64));
}

TEST(LayerView, TellsWhetherPagesAreFittedByMinMaxAlone) {
  const LayerShape shape{2, 64, 64};
  const auto min_max_only = [&](const std::vector<Recipe>& recipes) {
    return describe_layer(shape, {64, 4, 128}, make_layer_layouts(shape, recipes, 64, 4))
               .min_max_only != 0;
  };
  const auto per_channel = [](int bits, RangeRule rule) {
    return Format{bits, Granularity::PerChannel, 32, rule};
  };
  const Format plain = per_channel(4, RangeRule::MinMax);
  const Format searched = per_channel(4, RangeRule::MinMse);
  EXPECT_TRUE(min_max_only({{plain, plain}}));
  EXPECT_TRUE(min_max_only({{plain, Format{}}})) << "16 bits are not fitted at all";
  EXPECT_TRUE(min_max_only({Recipe{}}));
  EXPECT_FALSE(min_max_only({{searched, plain}}));
  EXPECT_FALSE(min_max_only({{plain, per_channel(1, RangeRule::Centroids)}}));
  EXPECT_FALSE(min_max_only({{plain, plain}, {plain, searched}})) << "of the second head";
}

TEST(LayerView, FindsTablesAndHeads) {
  std::vector<PageSlot> tables(3 * 7);
  LayerView view{};
  view.tables = tables.data();
  view.table_stride = 7;
  for (int sequence = 0; sequence < 3; ++sequence)
    EXPECT_EQ(view.table(sequence), tables.data() + 7 * sequence);
  const PageLayout sealed = PageLayout::make(
      {2, 64, 64},
      {{key_format(4, Granularity::PerChannel, 64), value_format(2, Granularity::PerToken, 64)}},
      64);
  const PageLayout half = PageLayout::make_half({2, 64, 64}, 64);
  view.heads[static_cast<int>(PageKind::Sealed)] = sealed.heads.data();
  view.heads[static_cast<int>(PageKind::Tail)] = half.heads.data();
  EXPECT_EQ(&view.head(PageKind::Sealed, 1), &sealed.heads[1]);
  EXPECT_EQ(&view.head(PageKind::Tail, 1), &half.heads[1]);
}

}  // namespace
}  // namespace kvtilt::cuda
