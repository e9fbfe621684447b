// SPDX-License-Identifier: MIT
/// Which tiles of the past and of the chunk are given to hand-made row tiles.
#include <kvtilt/cuda/attention/prefill_work.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace kvtilt::cuda {
namespace {

TEST(PrefillWorkTiles, TheWindowHidesTilesOfPastAndChunk) {
  AttendArguments attend{};
  attend.layer.page_tokens = 64;
  attend.rules.end_position = std::numeric_limits<std::int64_t>::max();
  attend.rules.window = 40;
  RowTile rows{};
  rows.chunk_tokens = 300;
  rows.token = 100;
  rows.tokens = 32;
  TileList list = TileList::of(attend, {}, nullptr, rows);
  EXPECT_EQ(list.chunk_first, (100 - 39) / 16);
  EXPECT_EQ(list.chunk_end, 9) << "up to token 131";
  attend.rules.window = 101;
  EXPECT_EQ(TileList::of(attend, {}, nullptr, rows).chunk_first, 0);
  attend.layer.sink_tokens = 4;
  SequenceState state{};
  state.length = state.tail_start = rows.past = 4 + 3 * 64;
  state.page_end = 3;
  const PageSlot table[3] = {{4, 0, 64}, {68, 1, 64}, {132, 2, 64}};
  const auto past = [&] { return TileList::of(attend, state, table, rows).past.total(); };
  EXPECT_EQ(past(), 0) << "token 100 sees the chunk alone";
  attend.rules.window = 102;
  EXPECT_EQ(past(), 4) << "and one token of the last page";
  attend.rules.window = 101 + 64;
  EXPECT_EQ(past(), 4);
  attend.rules.window = 101 + 65;
  EXPECT_EQ(past(), 8);
  attend.rules.keep_sinks = 1;
  EXPECT_EQ(past(), 1 + 8) << "sinks";
  attend.rules.first_position = 4;
  EXPECT_EQ(past(), 8);
  attend.rules.end_position = 132;
  EXPECT_EQ(past(), 4);
  EXPECT_EQ(TileList::of(attend, state, table, rows).total(), 4) << "none of the chunk";
  attend.rules.end_position = std::numeric_limits<std::int64_t>::max();
  const std::uint64_t tree[1] = {};
  attend.rules.tree_mask = tree;
  EXPECT_EQ(TileList::of(attend, state, table, rows).chunk_end, 9) << "too many for a tree";
  rows.token = 20;
  rows.tokens = 10;
  rows.chunk_tokens = 60;
  rows.new_from = rows.past;
  EXPECT_EQ(TileList::of(attend, state, table, rows).chunk_end, 4)
      << "trees see any of their tokens";
}

TEST(PrefillWorkTiles, SinksThatAChunkBringsHaveTilesOfTheirOwn) {
  AttendArguments attend{};
  attend.layer.page_tokens = 64;
  attend.layer.sink_tokens = 20;
  AttendRules& rules = attend.rules;
  rules.end_position = std::numeric_limits<std::int64_t>::max();
  rules.window = 40;
  rules.keep_sinks = 1;
  RowTile rows{};
  rows.chunk_tokens = 300;
  rows.token = 100;
  rows.tokens = 32;
  SequenceState state{};
  const auto list = [&] { return TileList::of(attend, state, nullptr, rows); };
  /// A tile's first position, its tokens, and whether they are sinks.
  const auto tile = [&](int i) {
    const SourceTile found = find_unsealed_tile(attend.layer, 0, state, rows, list(), i);
    EXPECT_EQ(found.source, TileSource::Chunk);
    EXPECT_EQ(found.at.index, found.at.first_position - rows.past);
    return std::vector<std::int64_t>{found.at.first_position, found.at.tokens, found.at.sink};
  };
  using Tile = std::vector<std::int64_t>;
  EXPECT_EQ(list().total(), 2 + 5);
  EXPECT_EQ(tile(0), (Tile{0, 16, 1}));
  EXPECT_EQ(tile(1), (Tile{16, 4, 1}));
  EXPECT_EQ(tile(2), (Tile{20 + 2 * 16, 16, 0})) << "token 100 sees those from 61 on";
  EXPECT_EQ(tile(6), (Tile{20 + 6 * 16, 16, 0})) << "and token 131 itself";
  rules.first_position = 20;
  EXPECT_EQ(list().total(), 5);
  rules.first_position = 19;
  EXPECT_EQ(list().total(), 2 + 5);
  rules.end_position = 20;
  EXPECT_EQ(list().total(), 2);
  rules.first_position = 0;
  rules.end_position = 16;
  EXPECT_EQ(list().total(), 1);
  rules.end_position = std::numeric_limits<std::int64_t>::max();

  rules.window = 131;
  EXPECT_EQ(tile(0), (Tile{0, 16, 1})) << "token 131 does not see the first one otherwise";
  rules.window = 132;
  EXPECT_EQ(list().chunk_sink_tiles, 0);
  EXPECT_EQ(tile(0), (Tile{0, 16, 0}));
  rules.window = 40;
  rules.keep_sinks = 0;
  EXPECT_EQ(list().chunk_sink_tiles, 0);
  rules.keep_sinks = 1;

  state.length = state.tail_start = rows.past = 17;
  EXPECT_EQ(list().past.total(), 2);
  EXPECT_EQ(list().total(), 2 + 1 + 6);
  EXPECT_EQ(tile(2), (Tile{17, 3, 1}));
  EXPECT_EQ(tile(3), (Tile{20 + 3 * 16, 16, 0})) << "position 117 sees those from 78 on";
  state.length = state.tail_start = rows.past = 20;
  EXPECT_EQ(list().chunk_sink_tiles, 0);

  state = {};
  rows = {};
  rows.chunk_tokens = rows.tokens = 10;
  rules.window = 3;
  EXPECT_EQ(list().total(), 1) << "all of them are sinks";
  EXPECT_EQ(tile(0), (Tile{0, 10, 1}));
}

}  // namespace
}  // namespace kvtilt::cuda
