// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/prefill_work.hpp>

#include "support/emulated_threads.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using test::Random;

/// A launch over sequences of a layer that has states and tables but no pages.
struct Launch {
  static constexpr int block_rows = 64;

  std::vector<SequenceState> states;
  std::vector<PageSlot> tables;
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> indptr{0};
  std::byte memory[1];
  PrefillArguments arguments{};

  Launch(Random& random, int count, int ratio) {
    LayerStorage& layer = arguments.attend.layer;
    layer.kv_heads = random.between(1, 3);
    layer.page_tokens = 32 << random.below(3);
    layer.sink_tokens = random.chance(3) ? 0 : random.between(1, 20);
    layer.ring_blocks = 4;
    layer.table_stride = 60;
    for (int i = 0; i < count; ++i) {
      SequenceState state{};
      state.length = random.chance(3) ? random.below(30) : random.between(30, 1500);
      state.tail_start = layer.sink_tokens;
      state.first_page = state.page_end = random.below(2);
      while (state.length - state.tail_start > 2 * layer.page_tokens) {
        state.tail_start += layer.page_tokens;
        ++state.page_end;
      }
      states.push_back(state);
      slots.push_back(count - 1 - i);
      indptr.push_back(indptr.back() + (random.chance(4) ? 0 : random.between(1, 150)));
    }
    tables.resize(static_cast<std::size_t>(count * layer.table_stride));
    for (int i = 0; i < count; ++i) {
      const SequenceState& state = states[static_cast<std::size_t>(i)];
      for (int page = state.first_page; page < state.page_end; ++page)
        tables[static_cast<std::size_t>(i * layer.table_stride + page)] = {
            layer.sink_tokens + std::int64_t{page - state.first_page} * layer.page_tokens, page,
            layer.page_tokens};
    }
    layer.states = states.data();
    layer.tables = tables.data();
    for (std::byte*& pool : layer.pool) pool = memory;
    arguments.attend.batch = {slots.data(), count};
    arguments.attend.query_heads = layer.kv_heads * ratio;
    arguments.attend.ratio = ratio;
    arguments.rows = {indptr.data(), 0};
    arguments.keys.tokens = indptr.back();
    arguments.most_tiles = count + indptr.back() / tile_tokens(block_rows, ratio);
  }
};

/// What all blocks of a launch were given: [sequence, kv head, token of the chunk] and tile of 16
/// tokens, how often.
using Taken = std::map<std::pair<std::vector<int>, int>, int>;

TEST(PrefillWorkProperty, BlocksTakeEveryTileOfEveryRowOnce) {
  Random random(1);
  for (int round = 0; round < 40; ++round) {
    const int ratio = random.between(1, 9);
    const Launch launch(random, random.between(1, 5), ratio);
    const PrefillArguments& arguments = launch.arguments;
    const int blocks = random.between(1, 30);
    const int count = arguments.attend.batch.count;
    Taken taken;
    std::vector<int> each(static_cast<std::size_t>(blocks));
    const std::size_t shared = static_cast<std::size_t>(count + arguments.most_tiles + 2) * 4;
    test::emulate(blocks, 64, shared, [&](EmulatedThreads& threads) {
      int* tile_starts = reinterpret_cast<int*>(threads.shared());
      int* unit_starts = tile_starts + count + 1;
      const PrefillPlan plan =
          plan_prefill(threads, arguments, Launch::block_rows, tile_starts, unit_starts);
      if (threads.thread() != 0 || plan.total == 0 || threads.block() >= plan.line.blocks) return;
      const int end = plan.line.start(threads.block() + 1);
      for (int unit = plan.line.start(threads.block()); unit < end;) {
        const PrefillSegment segment = find_segment(arguments, tile_starts, unit_starts, plan.tiles,
                                                    Launch::block_rows, unit, end);
        unit = segment.item_start + segment.last;
        each[static_cast<std::size_t>(threads.block())] += segment.last - segment.first;
        EXPECT_LE(segment.rows.rows(ratio), Launch::block_rows);
        for (int tile = segment.first * unit_tiles; tile < segment.last * unit_tiles; ++tile)
          for (int token = 0; token < segment.rows.tokens; ++token)
            if (tile < segment.list.total())
              ++taken[{{segment.rows.sequence, segment.rows.kv_head, segment.rows.token + token},
                       tile}];
      }
    });
    const auto [least, most] = std::minmax_element(each.begin(), each.end());
    EXPECT_LE(*most - *least, 1) << "blocks get equal stretches";
    std::size_t expected = 0;
    for (int i = 0; i < count; ++i)
      for (int token = 0; token < arguments.rows.count(i); ++token) {
        const int tile_size = tile_tokens(Launch::block_rows, ratio);
        const int last_token = std::min<int>((token / tile_size + 1) * tile_size,
                                             static_cast<int>(arguments.rows.count(i)));
        const UnitCounts past = count_units(
            arguments.attend.layer,
            launch.states[static_cast<std::size_t>(launch.slots[static_cast<std::size_t>(i)])],
            arguments.attend.layer.page_tokens / tile_extent);
        expected += static_cast<std::size_t>(arguments.attend.layer.kv_heads) *
                    static_cast<std::size_t>(past.total() + ceil_div(last_token, tile_extent));
      }
    EXPECT_EQ(taken.size(), expected);
    for (const auto& [what, times] : taken) EXPECT_EQ(times, 1);
  }
}

TEST(PrefillWorkProperty, TilesHoldEveryPositionOnceInOrder) {
  Random random(2);
  for (int round = 0; round < 100; ++round) {
    const Launch launch(random, 1, 2);
    const AttendArguments& attend = launch.arguments.attend;
    const SequenceState& state = launch.states[0];
    RowTile rows{};
    rows.chunk_tokens = static_cast<int>(launch.arguments.rows.count(0));
    rows.tokens = rows.chunk_tokens;
    rows.past = state.length;
    if (rows.tokens == 0) continue;
    const TileList list = TileList::of(attend, state, rows);
    std::vector<int> seen(static_cast<std::size_t>(rows.past + rows.chunk_tokens));
    for (int i = 0; i < list.total(); ++i) {
      const SourceTile tile = find_tile(attend.layer, 0, state, rows, list, i);
      EXPECT_NE(tile.source, TileSource::Nothing);
      EXPECT_EQ(tile.source == TileSource::Chunk, tile.at.first_position >= rows.past);
      for (int slot = 0; slot < tile.at.tokens; ++slot)
        ++seen.at(static_cast<std::size_t>(tile.at.first_position + slot));
    }
    for (const int times : seen) EXPECT_EQ(times, 1);
    EXPECT_EQ(find_tile(attend.layer, 0, state, rows, list, list.total()).source,
              TileSource::Nothing);
  }
}

TEST(PrefillWork, TheWindowHidesTheChunksFirstTiles) {
  AttendArguments attend{};
  attend.layer.page_tokens = 64;
  attend.rules.window = 40;
  RowTile rows{};
  rows.chunk_tokens = 300;
  rows.token = 100;
  rows.tokens = 32;
  TileList list = TileList::of(attend, {}, rows);
  EXPECT_EQ(list.chunk_first, (100 - 39) / 16);
  EXPECT_EQ(list.chunk_end, 9) << "up to token 131";
  attend.rules.window = 101;
  EXPECT_EQ(TileList::of(attend, {}, rows).chunk_first, 0);
  attend.layer.sink_tokens = 4;
  SequenceState state{};
  state.length = state.tail_start = 4 + 3 * 64;
  state.page_end = 3;
  EXPECT_EQ(TileList::of(attend, state, rows).past.total(), 1 + 3 * 4) << "token 100 sees the past";
  rows.token = 101;
  EXPECT_EQ(TileList::of(attend, state, rows).past.total(), 0);
  attend.rules.keep_sinks = 1;
  EXPECT_EQ(TileList::of(attend, state, rows).past.total(), 1) << "sinks";
  rows.token = 100;
  const std::uint64_t tree[1] = {};
  attend.rules.tree_mask = tree;
  EXPECT_EQ(TileList::of(attend, {}, rows).chunk_end, 19) << "trees see any of their tokens";
}

}  // namespace
}  // namespace kvtilt::cuda
