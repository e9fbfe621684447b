// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/page.hpp>
#include <kvtilt/cuda/attention/segment.hpp>

#include "support/emulated_threads.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <tuple>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using test::Random;

TEST(AttendSegment, ChunksAreCountedExactlyBelowTwoMillionUnits) {
  Random random(1);
  for (int units = 1; units <= 128; ++units) {
    const Chunk chunk(units);
    const auto expect = [&](int of) { ASSERT_EQ(chunk.count(of), ceil_div(of, units)) << of; };
    for (int of = 0; of < 1000; ++of) expect(of);
    const int last = (1 << 21) - 1;
    for (int i = 0; i < 1000; ++i) expect(random.between(0, last));
    for (int multiple = last / units * units, i = 0; i < 100; ++i, multiple -= units)
      for (int of = multiple - 1; of <= multiple + 1 && of <= last; ++of) expect(of);
  }
}

/// A decode launch over sequences with pages of 64 tokens, one unit each.
struct DecodeLaunch {
  std::vector<SequenceState> states;
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> indptr = {0};
  AttendArguments arguments{};

  DecodeLaunch(const std::vector<std::int64_t>& lengths, int kv_heads, int gqa_ratio, int queries) {
    LayerView& layer = arguments.layer;
    layer.kv_heads = kv_heads;
    layer.page_tokens = 64;
    layer.sink_tokens = 4;
    for (const std::int64_t length : lengths) {
      slots.push_back(static_cast<std::int32_t>(states.size()));
      SequenceState state{};
      state.length = length;
      state.tail_start = 4;
      while (length - state.tail_start > 192) {
        state.tail_start += 64;
        ++state.page_end;
      }
      states.push_back(state);
    }
    layer.states = states.data();
    arguments.batch = {slots.data(), static_cast<int>(slots.size())};
    arguments.rows.each = queries;
    arguments.gqa_ratio = gqa_ratio;
    arguments.query_heads = gqa_ratio * kv_heads;
    arguments.rules.end_position = std::numeric_limits<std::int64_t>::max();
  }
  /// Gives each sequence 0 to `most` rows.
  void make_ragged(Random& random, int most) {
    for (std::size_t i = 0; i < slots.size(); ++i)
      indptr.push_back(indptr.back() + random.below(most + 1));
    arguments.rows.indptr = indptr.data();
    arguments.row_count = indptr.back();
  }
  [[nodiscard]] int items(int sequence) const {
    return arguments.layer.kv_heads * row_tiles(arguments, sequence);
  }
  [[nodiscard]] int units(int sequence) const {
    return count_units(arguments.layer, states[static_cast<std::size_t>(sequence)], 1).total();
  }
};

TEST(AttendSegment, PagesThatNoQuerySeesAreNoUnits) {
  Random random(3);
  for (int round = 0; round < 2000; ++round) {
    // Truncation has shortened some pages.
    std::vector<PageSlot> table(static_cast<std::size_t>(random.between(1, 12)));
    std::int64_t position = 4;
    for (PageSlot& slot : table) {
      slot.first_position = position;
      slot.tokens = random.chance(3) ? random.between(1, 64) : 64;
      position += slot.tokens;
    }
    SequenceState state{};
    state.first_page = random.below(static_cast<int>(table.size()));
    state.page_end = static_cast<std::int32_t>(table.size());
    state.tail_start = position;
    state.length = position + random.below(100);
    std::int32_t slot = 0;
    AttendArguments arguments{};
    arguments.layer.states = &state;
    arguments.layer.tables = table.data();
    arguments.layer.window = random.chance(2) ? 0 : 300;
    std::uint32_t arrivals = 0;
    const bool imported = random.chance(3);
    if (!imported) arguments.layer.arrivals = &arrivals;
    arguments.batch = {&slot, 1};
    const int queries = random.between(1, 9);
    AttendRules& rules = arguments.rules;
    rules.window = random.chance(2) ? arguments.layer.window : random.between(1, 300);
    rules.first_position = random.chance(2) ? 0 : random.below(700);
    rules.end_position = random.chance(2) ? std::numeric_limits<std::int64_t>::max()
                                          : rules.first_position + random.below(300);

    SequenceState part = state;
    drop_unseen(arguments, queries, 0, part);
    // The cache's own window needs no search: its pages have been freed already.
    const bool narrower = rules.window > 0 && (imported || rules.window != arguments.layer.window);
    const std::int64_t from =
        std::max(rules.first_position, narrower ? state.length - queries - rules.window + 1 : 0);
    if (from >= rules.end_position) continue;
    for (std::int32_t i = state.first_page; i < state.page_end; ++i) {
      const PageSlot& page = table[static_cast<std::size_t>(i)];
      const bool seen = page.first_position < rules.end_position && end_of(page) > from;
      EXPECT_EQ(i >= part.first_page && i < part.page_end, seen) << round << ": page " << i;
    }
    EXPECT_LE(part.first_page, part.page_end);
    EXPECT_EQ(part.length, state.length);
  }
}

/// What the blocks of a launch do, each planned in turn.
struct DecodeCover {
  std::set<std::tuple<int, int, int, int>> seen;  // sequence, kv head, first row, unit
  int blocks = 0;                                 // with work to do
  int most = 0;                                   // units of the block with the most
  int least = 0;
  int most_items = 0;  // of one block
  int set = 0;         // blocks whose first segment took no search

  DecodeCover(const DecodeLaunch& launch, int block_count, int warps) {
    const int count = launch.arguments.batch.count;
    const std::size_t shared = sizeof(BlockWork) + static_cast<std::size_t>(count + 1) * 4;
    test::emulate(block_count, 32 * warps, shared, [&](EmulatedThreads& threads) {
      BlockWork& work = *reinterpret_cast<BlockWork*>(threads.shared());
      int* starts = reinterpret_cast<int*>(threads.shared() + sizeof(BlockWork));
      SeenSequence own{};
      for (int i = threads.thread(); i < count; i += threads.thread_count()) {
        own = SeenSequence::of(launch.arguments, i, 1);
        starts[i + 1] = own.counts.total();
      }
      threads.sync();
      if (threads.warp() != 0) return;
      const WorkLine line = plan_line(threads, launch.arguments, starts);
      if (threads.lane() == 0) work.begin(line, threads.block());
      threads.sync_warp();
      if (count <= warp_lanes) work.set_first<Traits>(threads, launch.arguments, starts, line, own);
      threads.sync_warp();
      if (threads.lane() == 0 && threads.block() < line.blocks) {
        if (work.segments[0].exists()) {
          ++set;
          expect_found(launch, starts, work, threads.block());
        }
        walk(launch, starts, work, threads.block());
      }
    });
  }

 private:
  using Traits = PageTraits<4, 2, 64>;

  /// The precomputed first segment equals the one that the search finds.
  static void expect_found(const DecodeLaunch& launch, const int* starts, const BlockWork& work,
                           int block) {
    BlockWork searched{};
    searched.begin(work.line, block);
    searched.find_segments<Traits>(launch.arguments, starts, block, 0);
    const Segment& first = work.segments[0];
    const Segment& found = searched.segments[0];
    EXPECT_EQ(first.slot, found.slot);
    EXPECT_EQ(first.item_start, found.item_start);
    EXPECT_EQ(first.item_end, found.item_end);
    EXPECT_EQ(first.first, found.first);
    EXPECT_EQ(first.last, found.last);
    EXPECT_EQ(first.sequence.length, found.sequence.length);
    EXPECT_EQ(first.sequence.page_end, found.sequence.page_end);
    EXPECT_EQ(first.counts.total(), found.counts.total());
    EXPECT_EQ(first.rows.kv_head, found.rows.kv_head);
    EXPECT_EQ(first.rows.first_row, found.rows.first_row);
    EXPECT_EQ(first.rows.first_token, found.rows.first_token);
    EXPECT_EQ(first.rows.length, found.rows.length);
  }

  void walk(const DecodeLaunch& launch, const int* starts, BlockWork& work, int block) {
    int units = 0;
    int items = 0;
    const int end = work.line.start(block + 1);
    for (int turn = 0;; ++turn, ++items) {
      work.find_segments<Traits>(launch.arguments, starts, block, turn);
      const Segment& segment = work.segments[turn % 2];
      if (!segment.exists()) break;
      EXPECT_GE(segment.item_start + segment.first, work.line.start(block));
      EXPECT_LE(segment.item_start + segment.last, end);
      const BatchRows& rows = launch.arguments.rows;
      EXPECT_EQ(segment.rows.queries, rows.count(segment.slot));
      EXPECT_EQ(segment.rows.first_token, rows.first(segment.slot));
      EXPECT_EQ(segment.counts.total(), launch.units(segment.slot));
      for (int i = segment.first; i < segment.last; ++i, ++units)
        EXPECT_TRUE(
            seen.emplace(segment.slot, segment.rows.kv_head, segment.rows.first_row, i).second)
            << "unit " << i << " twice";
    }
    if (items == 0) return;
    least = blocks == 0 || units < least ? units : least;
    most = units > most ? units : most;
    most_items = items > most_items ? items : most_items;
    ++blocks;
  }
};

TEST(AttendSegmentRandom, BlocksShareOutEveryUnitOnce) {
  Random random(2);
  for (int round = 0; round < 100; ++round) {
    std::vector<std::int64_t> lengths;
    const int count = random.chance(4) ? random.between(33, 80) : random.between(1, 12);
    for (int i = 0; i < count; ++i)
      lengths.push_back(random.chance(4) ? 0 : random.below(random.chance(3) ? 9000 : 400));
    DecodeLaunch launch(lengths, random.between(1, 4), random.between(1, 12), random.between(1, 3));
    if (random.chance(2)) launch.make_ragged(random, random.between(1, 9));
    const DecodeCover cover(launch, random.between(1, 40), random.between(1, 4));
    std::size_t expected = 0;
    for (int i = 0; i < count; ++i)
      expected +=
          static_cast<std::size_t>(launch.units(i)) * static_cast<std::size_t>(launch.items(i));
    EXPECT_EQ(cover.seen.size(), expected) << "round " << round;
  }
}

TEST(AttendSegment, LittleWorkIsCutIntoWholeChunks) {
  // 1 sink tile, 12 of the tail, 13 pages: 26 units for each of 8 heads.
  const DecodeLaunch launch({1024}, 8, 4, 1);
  ASSERT_EQ(launch.units(0), 26);
  const DecodeCover wide(launch, 264, 4);
  EXPECT_EQ(wide.blocks, 8 * 7) << "a unit for each warp";
  EXPECT_EQ(wide.most, 4);
  EXPECT_EQ(wide.most_items, 1);
  EXPECT_EQ(wide.set, wide.blocks);
  const DecodeCover narrow(launch, 20, 4);
  EXPECT_EQ(narrow.blocks, 8 * 2) << "a third of a head for each would be 24 blocks";
  EXPECT_EQ(narrow.most, 16);
  EXPECT_EQ(narrow.most_items, 1);
}

TEST(AttendSegment, FewHeadsAreNotCutIntoMorePartsThanAreWorthMerging) {
  // One head, 131,072 tokens: 264 blocks could have 2 pages a warp, but one would merge 257 parts.
  const DecodeLaunch launch({131072}, 1, 4, 1);
  const DecodeCover cover(launch, 264, 4);
  EXPECT_EQ(cover.most, 7 * 4);
  EXPECT_EQ(cover.blocks, 74);
  EXPECT_EQ(cover.most_items, 1);
  // Of two sequences the longer one sets the cut.
  const DecodeCover ragged(DecodeLaunch({131072, 1024}, 1, 4, 1), 264, 4);
  EXPECT_EQ(ragged.most, 7 * 4);
  EXPECT_EQ(ragged.blocks, 74 + 1);
}

TEST(AttendSegment, MuchWorkIsCutEvenly) {
  const DecodeLaunch launch(std::vector<std::int64_t>(16, 32768), 8, 4, 1);
  const DecodeCover cover(launch, 264, 4);
  EXPECT_EQ(cover.blocks, 264);
  EXPECT_LE(cover.most - cover.least, compiled_machine.attend_item_units + 1)
      << "but for what an item costs";
}

TEST(AttendSegment, SequencesOfMoreRowsHaveMoreOfTheLine) {
  DecodeLaunch launch({1024, 1024}, 8, 4, 1);
  launch.indptr = {0, 1, 6};  // 4 and 20 rows: 1 and 3 items for each head, of 7 parts
  launch.arguments.rows.indptr = launch.indptr.data();
  launch.arguments.row_count = 6;
  const DecodeCover cover(launch, 264, 4);
  EXPECT_EQ(cover.blocks, 8 * 4 * 7);
  EXPECT_EQ(cover.most_items, 1);
}

TEST(AttendSegment, NothingToDoIsNoLine) {
  const DecodeLaunch launch({0, 0}, 2, 1, 1);
  EXPECT_EQ(DecodeCover(launch, 5, 2).blocks, 0);
}

}  // namespace
}  // namespace kvtilt::cuda
