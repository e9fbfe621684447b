// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/prefill_work.hpp>

#include "support/emulated_threads.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <utility>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using test::Random;

/// A launch over sequences whose layer has states and tables, but no pages.
struct Launch {
  static constexpr int block_rows = 64;

  std::vector<SequenceState> states;
  std::vector<PageSlot> tables;
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> indptr{0};
  const HeadLayout heads[3] = {};
  std::byte memory[1];
  DeviceRecords records{};
  PrefillArguments arguments{};

  Launch(Random& random, int count, int gqa_ratio) {
    LayerView& layer = arguments.attend.layer;
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
    layer.records = &records;
    layer.heads[static_cast<int>(PageKind::Sealed)] = heads;
    for (std::byte*& pool : layer.pool) pool = memory;
    arguments.attend.rules.end_position = std::numeric_limits<std::int64_t>::max();
    arguments.attend.batch = {slots.data(), count};
    arguments.attend.query_heads = layer.kv_heads * gqa_ratio;
    arguments.attend.gqa_ratio = gqa_ratio;
    arguments.attend.rows = {indptr.data(), 0};
    arguments.attend.row_count = indptr.back();
  }

  /// Plans the launch and calls body(threads, plan, ...) in every thread of every block.
  template <class Body>
  void plan(int blocks, const Body& body) const {
    const int count = arguments.attend.batch.count;
    const std::size_t shared = static_cast<std::size_t>(count + most_tile_groups + 2) * 4;
    test::emulate(blocks, 64, shared, [&](EmulatedThreads& threads) {
      int* tile_starts = reinterpret_cast<int*>(threads.shared());
      int* unit_starts = tile_starts + count + 1;
      const PrefillPlan plan =
          plan_prefill(threads, arguments, block_rows, tile_starts, unit_starts);
      body(threads, plan, tile_starts, unit_starts);
    });
  }
  /// The tiles that a row tile of the only sequence attends to.
  [[nodiscard]] TileList tiles(const RowTile& rows) const {
    return TileList::of(arguments.attend, states[0], tables.data(), rows);
  }
};

/// How often the blocks of a launch took [sequence, kv head, token of the chunk] together with a
/// tile of 16 tokens.
using Taken = std::map<std::pair<std::vector<int>, int>, int>;

TEST(PrefillWorkProperty, BlocksTakeEveryTileOfEveryRowOnce) {
  Random random(1);
  for (int round = 0; round < 40; ++round) {
    const int gqa_ratio = random.between(1, 9);
    const Launch launch(random, random.between(1, 5), gqa_ratio);
    const PrefillArguments& arguments = launch.arguments;
    const int blocks = random.between(1, 30);
    const int count = arguments.attend.batch.count;
    Taken taken;
    std::vector<int> each(static_cast<std::size_t>(blocks));
    launch.plan(blocks, [&](EmulatedThreads& threads, const PrefillPlan& plan, int* tile_starts,
                            int* unit_starts) {
      if (threads.thread() != 0 || plan.total == 0 || threads.block() >= plan.line.blocks) return;
      const int end = plan.line.start(threads.block() + 1);
      for (int unit = plan.line.start(threads.block()); unit < end;) {
        const PrefillSegment segment =
            find_segment(arguments, tile_starts, unit_starts, plan, Launch::block_rows, unit, end);
        unit = segment.item_start + segment.last;
        each[static_cast<std::size_t>(threads.block())] += segment.last - segment.first;
        EXPECT_LE(segment.rows.rows(gqa_ratio), Launch::block_rows);
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
      for (int token = 0; token < arguments.attend.rows.count(i); ++token) {
        const int tile_size = tile_tokens(Launch::block_rows, gqa_ratio);
        const int last_token = std::min<int>((token / tile_size + 1) * tile_size,
                                             static_cast<int>(arguments.attend.rows.count(i)));
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

/// What a row may see: positions below `end`, and with a window those above from - window.
struct RowView {
  std::int64_t from;
  std::int64_t end;
};

/// What the rows of a tile may see, one by one. Any path from the tree's first token to its last
/// may be that of a row under a tree mask, for chunks of up to 64 tokens.
std::vector<RowView> views_of(const AttendRules& rules, const RowTile& rows) {
  const std::int64_t all = rows.past + rows.chunk_tokens;
  std::vector<RowView> views;
  if (rules.tree_mask != nullptr && rows.chunk_tokens <= 64) {
    for (std::int64_t from = rows.new_from; from < all; ++from) views.push_back({from, all});
  } else {
    for (int token = rows.token; token < rows.token + rows.tokens; ++token) {
      const std::int64_t own = rows.past + token;
      views.push_back({own, rules.causal != 0 ? own + 1 : all});
    }
  }
  return views;
}

TEST(PrefillWorkProperty, TilesHoldWhatSomeRowSeesOnce) {
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    Launch launch(random, 1, 2);
    AttendArguments& attend = launch.arguments.attend;
    const SequenceState& state = launch.states[0];
    AttendRules& rules = attend.rules;
    for (int page = state.first_page; page < state.page_end; ++page)  // truncation shortened some
      if (random.chance(5))
        launch.tables[static_cast<std::size_t>(page)].tokens = random.between(1, 31);
    RowTile rows{};
    rows.chunk_tokens = static_cast<int>(launch.arguments.attend.rows.count(0));
    if (rows.chunk_tokens == 0) continue;
    rows.token = random.below(rows.chunk_tokens);
    rows.tokens = random.between(1, rows.chunk_tokens - rows.token);
    rows.past = state.length;
    const std::uint64_t tree[1] = {};
    rows.new_from = rows.past;
    if (random.chance(4)) {
      rules.tree_mask = tree;
      if (rows.chunk_tokens <= most_tree_tokens)
        rows.new_from -= random.between(0, most_tree_tokens - rows.chunk_tokens);
    } else {
      rules.causal = random.chance(4) ? 0 : 1;
    }
    rules.keep_sinks = random.chance(2);
    if (random.chance(2)) rules.window = random.between(1, random.chance(2) ? 60 : 700);
    if (random.chance(3)) rules.first_position = random.below(900);
    if (random.chance(3)) rules.end_position = random.below(1600);
    const std::int64_t all = rows.past + rows.chunk_tokens;
    const std::vector<RowView> views = views_of(rules, rows);
    const auto [oldest, newest] = std::minmax_element(
        views.begin(), views.end(),
        [](const RowView& one, const RowView& other) { return one.from < other.from; });
    const auto some_row_sees = [&](std::int64_t position) {
      const bool stays = position < attend.layer.sink_tokens && rules.keep_sinks != 0;
      if (position < rules.first_position || position >= rules.end_position) return false;
      return std::any_of(views.begin(), views.end(), [&](const RowView& view) {
        return position < view.end &&
               (rules.window == 0 || stays || position > view.from - rules.window);
      });
    };
    std::vector<int> expected(static_cast<std::size_t>(all));
    for (std::int64_t i = 0; i < all; ++i) expected[static_cast<std::size_t>(i)] = some_row_sees(i);
    for (int page = state.first_page; page < state.page_end; ++page) {
      const PageSlot& slot = launch.tables[static_cast<std::size_t>(page)];
      for (int i = slot.tokens; i < attend.layer.page_tokens; ++i)
        expected.at(static_cast<std::size_t>(slot.first_position + i)) = 0;
    }

    const TileList list = launch.tiles(rows);
    std::vector<int> held(static_cast<std::size_t>(all));
    int useless = 0;
    std::map<std::int64_t, bool> pages;  // by first position: whether a row sees any
    const std::int64_t first = first_slot(attend.layer, 0, state, list);
    const int page_tiles = attend.layer.page_tokens / tile_extent;
    for (int i = 0; i < list.total(); ++i) {
      const bool sealed = i < list.past.page_units;
      SourceTile tile{};
      if (sealed) {
        tile.at = sealed_tile(attend.layer, page_of_tile(attend.layer, first, list, i, page_tiles),
                              i % page_tiles);
      } else {
        tile = find_unsealed_tile(attend.layer, 0, state, rows, list, i);
        EXPECT_NE(tile.source, TileSource::Nothing);
      }
      EXPECT_EQ(tile.source == TileSource::Chunk, tile.at.first_position >= rows.past);
      bool seen = false;
      for (int slot = 0; slot < tile.at.tokens; ++slot) {
        const std::int64_t position = tile.at.first_position + slot;
        ++held.at(static_cast<std::size_t>(position));
        seen = seen || some_row_sees(position);
        if (tile.at.sink) {
          EXPECT_LT(position, attend.layer.sink_tokens);
        } else if (rules.keep_sinks != 0 && position < attend.layer.sink_tokens) {
          EXPECT_TRUE(rules.window == 0 || position > newest->from - rules.window) << round;
        }
      }
      if (sealed) {
        bool& page = pages[tile.at.first_position - tile.at.index * tile_extent];
        page = page || seen;
      } else if (!tile.at.sink && !seen) {
        ++useless;
      }
    }
    const std::int64_t window_begin = rules.window > 0 ? oldest->from - rules.window + 1 : 0;
    const std::int64_t seen_end = std::min(rules.end_position, newest->end);
    if (std::max(rules.first_position, window_begin) < seen_end) {
      for (const auto& [first, seen] : pages) EXPECT_TRUE(seen) << first;
      EXPECT_LE(useless, list.total() == 1 ? 1 : 0);
    }
    EXPECT_GE(list.total(), 1) << "a row tile without any would be written by nobody";
    for (std::size_t i = 0; i < held.size(); ++i) {
      EXPECT_LE(held[i], 1);
      EXPECT_GE(held[i], expected[i]) << "position " << i << ", round " << round;
    }
    EXPECT_EQ(find_unsealed_tile(attend.layer, 0, state, rows, list, list.total()).source,
              TileSource::Nothing);
  }
}

TEST(PrefillWork, AWindowCutsTheLine) {
  Random random(3);
  Launch launch(random, 1, 1);
  AttendArguments& attend = launch.arguments.attend;
  LayerView& layer = attend.layer;
  layer.page_tokens = 64;
  layer.sink_tokens = 4;
  layer.kv_heads = 2;
  SequenceState& state = launch.states[0];
  state = {};
  state.length = state.tail_start = 4 + 50 * 64;
  state.page_end = 50;
  for (int page = 0; page < 50; ++page)
    launch.tables[static_cast<std::size_t>(page)] = {4 + page * 64, page, 64};
  launch.indptr = {0, 128};
  launch.arguments.attend.rows.indptr = launch.indptr.data();
  launch.arguments.attend.row_count = 128;
  const auto units = [&] {
    int total = -1;
    launch.plan(1,
                [&](EmulatedThreads&, const PrefillPlan& plan, int*, int*) { total = plan.total; });
    return total;
  };
  // Row tiles of 64 tokens; a unit is a page or 64 tokens of the chunk; sinks take one unit.
  EXPECT_EQ(units(), 2 * ((50 + 1 + 1) + (50 + 1 + 2)));
  attend.rules.window = 640;
  EXPECT_EQ(units(), 2 * ((10 + 1) + (9 + 2)));
  attend.rules.window = 0;
  attend.rules.end_position = 4 + 5 * 64;
  EXPECT_EQ(units(), 2 * (6 + 6)) << "sinks and five pages each";
}

TEST(PrefillWork, GroupsOfRowTilesHoldThemOneAfterTheOther) {
  Random random(6);
  for (const int count : {1, 4, 7}) {
    Launch launch(random, count, 16);
    launch.indptr = {0};
    for (int i = 0; i < count; ++i) launch.indptr.push_back(launch.indptr.back() + 50 + 300 * i);
    PrefillArguments& arguments = launch.arguments;
    arguments.attend.rows.indptr = launch.indptr.data();
    arguments.attend.row_count = launch.indptr.back();
    const int heads = arguments.attend.layer.kv_heads;
    launch.plan(1, [&](EmulatedThreads& threads, const PrefillPlan& plan, int* tile_starts,
                       int* unit_starts) {
      if (threads.thread() != 0) return;
      EXPECT_LE(plan.groups(), most_tile_groups);
      EXPECT_EQ(plan.group, ceil_div(plan.tiles, most_tile_groups));
      int items = 0;
      for (int unit = 0; unit < plan.total; ++items) {
        const PrefillSegment segment = find_segment(arguments, tile_starts, unit_starts, plan,
                                                    Launch::block_rows, unit, plan.total);
        EXPECT_EQ(segment.item_start, unit);
        EXPECT_EQ(segment.rows.kv_head, items % heads);
        EXPECT_EQ(segment.rows.token, (items / heads - tile_starts[segment.rows.sequence]) * 4);
        unit += segment.item_units;
      }
      EXPECT_EQ(items, plan.tiles * heads);
    });
  }
}

TEST(PrefillWork, RowsThatCannotBeMeantPlanNothing) {
  Random random(4);
  for (const std::vector<std::int32_t>& indptr :
       {std::vector<std::int32_t>{0, 5000, 10, 100}, {-3, 5, 10, 100}, {0, 20, 10, 101}}) {
    Launch launch(random, 3, 1);
    launch.indptr = indptr;
    launch.arguments.attend.rows.indptr = launch.indptr.data();
    launch.arguments.attend.row_count = 100;
    launch.plan(3, [&](EmulatedThreads&, const PrefillPlan& plan, int*, int*) {
      EXPECT_EQ(plan.total, 0);
    });
    EXPECT_EQ(launch.records.refused.fault, DeviceFault::BadAttendRows);
    EXPECT_EQ(launch.records.refused.count, 1u);
  }
}

TEST(PrefillWork, LinesOfMoreThan31BitsArePlannedAsNothing) {
  Random random(5);
  Launch launch(random, 1, 1);
  launch.arguments.attend.layer.page_tokens = 64;
  launch.arguments.attend.layer.kv_heads = 2;
  launch.indptr = {0, 64 * 20};
  launch.arguments.attend.rows.indptr = launch.indptr.data();
  launch.arguments.attend.row_count = 64 * 20;
  launch.states[0] = {};
  for (const bool fits : {true, false}) {
    // 20 row tiles of 2 heads: the limit of 2^31 - 1 units is 53687091 pages each, and 8 units
    // more.
    launch.states[0].page_end = fits ? 53687050 : 53687091;
    launch.plan(2, [&](EmulatedThreads&, const PrefillPlan& plan, int*, int*) {
      EXPECT_EQ(plan.total > 0, fits);
    });
    EXPECT_EQ(launch.records.refused.count, fits ? 0u : 1u);
  }
  EXPECT_EQ(launch.records.refused.fault, DeviceFault::TooMuchWork);
  EXPECT_GT(launch.records.refused.token, 0x7fffffff);
}

}  // namespace
}  // namespace kvtilt::cuda
