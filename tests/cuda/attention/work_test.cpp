// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/work.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::Random;

// --- Units of a sequence -----------------------------------------------------------------------

/// A layer of two sequences whose blocks are only addresses.
struct Layer {
  std::vector<std::byte> memory;
  LayerView view{};

  explicit Layer(Random& random) : memory(1000) {
    view.page_tokens = 32 << random.below(3);
    view.sink_tokens = random.chance(3) ? 0 : random.between(1, 70);
    view.ring_blocks = random.between(3, 6);
    view.pool[static_cast<int>(PageKind::Sinks)] = memory.data();
    view.pool[static_cast<int>(PageKind::Tail)] = memory.data() + 100;
    view.block_bytes[static_cast<int>(PageKind::Sinks)] = 3;
    view.block_bytes[static_cast<int>(PageKind::Tail)] = 7;
  }
};

SequenceState random_state(Random& random, const LayerView& layer) {
  SequenceState state{};
  state.length = random.chance(3) ? random.below(40) : random.between(40, 3000);
  state.tail_start = layer.sink_tokens;
  state.ring_head = random.below(layer.ring_blocks);
  state.first_page = random.below(3);
  state.page_end = state.first_page;
  // The tail takes at most all blocks of the ring but one.
  while (state.length - state.tail_start > (layer.ring_blocks - 1) * layer.page_tokens) {
    state.tail_start += layer.page_tokens;
    ++state.page_end;
  }
  return state;
}

TEST(AttendWork, TilesHoldEverySinkAndTailTokenOnce) {
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    const Layer layer(random);
    const SequenceState state = random_state(random, layer.view);
    const int page_units = random.chance(2) ? 1 : layer.view.page_tokens / tile_extent;
    const UnitCounts counts = count_units(layer.view, state, page_units);
    EXPECT_EQ(counts.page_units, (state.page_end - state.first_page) * page_units);
    EXPECT_EQ(counts.total(), counts.tiles() + counts.page_units);

    std::set<std::int64_t> seen;
    for (int unit = 0; unit < counts.tiles(); ++unit) {
      const TokenTile tile = half_tile(layer.view, layer.view.page_tokens, 1, state, counts, unit);
      ASSERT_GE(tile.tokens, 1);
      ASSERT_LE(tile.tokens, tile_extent);
      for (int slot = 0; slot < tile.tokens; ++slot) {
        const std::int64_t position = tile.first_position + slot;
        EXPECT_TRUE(seen.insert(position).second) << position;
        const bool sink = position < layer.view.sink_tokens;
        EXPECT_EQ(tile.sink, sink);
        const std::int64_t token = sink ? position : position - state.tail_start;
        const int block = static_cast<int>(token / layer.view.page_tokens);
        EXPECT_EQ(tile.block,
                  sink ? layer.view.sinks(1) : layer.view.tail(1, state.ring_head, block));
        const std::int64_t in_block = sink ? token : token % layer.view.page_tokens;
        EXPECT_EQ(tile.index * tile_extent + slot, in_block);
      }
    }
    for (std::int64_t position = 0; position < state.length; ++position)
      EXPECT_EQ(seen.count(position),
                position < layer.view.sink_tokens || position >= state.tail_start ? 1u : 0u);
    EXPECT_TRUE(seen.empty() || *seen.rbegin() < state.length);
  }
}

// --- The line ----------------------------------------------------------------------------------

TEST(AttendWork, StretchesCoverTheLineEvenly) {
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    const int total = random.chance(2) ? random.between(1, 30) : random.between(1, 5000);
    const int blocks = random.between(1, 400);
    const WorkLine line = WorkLine::make(total, blocks);
    ASSERT_GE(line.blocks, 1);
    EXPECT_LE(line.blocks, blocks);
    EXPECT_LE(line.blocks, total) << "a unit for each block";
    EXPECT_EQ(line.start(0), 0);
    EXPECT_EQ(line.start(line.blocks), total);
    for (int block = 0; block < line.blocks; ++block) {
      const int size = line.start(block + 1) - line.start(block);
      EXPECT_TRUE(size == total / line.blocks || size == total / line.blocks + 1) << size;
      EXPECT_GE(size, 1);
      for (int unit = line.start(block); unit < line.start(block + 1); ++unit)
        EXPECT_EQ(line.block_of(unit), block);
    }
  }
}

TEST(AttendWork, LineOfThirtyTwoBitsReachesFar) {
  const int total = 2'000'000'000;
  const WorkLine line = WorkLine::make(total, 396);
  EXPECT_EQ(line.start(line.blocks), total);
  EXPECT_EQ(line.block_of(total - 1), line.blocks - 1);
}

/// Items of random lengths on the line, cut as blocks cut them.
TEST(AttendWork, PartsOfItemsHaveSlotsOfTheirOwn) {
  Random random(3);
  for (int round = 0; round < 1000; ++round) {
    std::vector<int> starts = {0};
    std::vector<int> ends;
    const int items = random.between(1, 60);
    const int padding = random.chance(2) ? 0 : random.between(1, 20);
    for (int i = 0; i < items; ++i) {
      ends.push_back(starts.back() +
                     (random.chance(4) ? random.between(1, 300) : random.between(1, 9)));
      starts.push_back(ends.back() + padding);
    }
    const WorkLine line = WorkLine::make(starts.back(), random.between(1, 150));
    std::map<int, int> owner;    // item by slot
    std::map<int, int> counter;  // item by the block whose counter it uses
    std::vector<int> parts_of_block(static_cast<std::size_t>(line.blocks));
    for (int item = 0; item < items; ++item) {
      const int start = starts[static_cast<std::size_t>(item)];
      const int end = ends[static_cast<std::size_t>(item)];
      const ItemParts parts = ItemParts::of(line, start, end - start);
      EXPECT_EQ(parts.first, line.block_of(start));
      EXPECT_EQ(parts.last, line.block_of(end - 1));
      if (parts.first == parts.last) continue;
      EXPECT_TRUE(counter.emplace(parts.first, item).second)
          << "items " << counter[parts.first] << " and " << item << " count in one place";
      for (int block = parts.first; block <= parts.last; ++block) {
        const int slot = parts.slot(block);
        EXPECT_GE(slot, 0);
        EXPECT_LT(slot, 2 * line.blocks) << "workspace_bytes() counts on it";
        EXPECT_TRUE(owner.emplace(slot, item).second)
            << "slot " << slot << " of items " << owner[slot] << " and " << item;
        ++parts_of_block[static_cast<std::size_t>(block)];
      }
    }
    for (const int parts : parts_of_block) EXPECT_LE(parts, 2);
  }
}

}  // namespace
}  // namespace kvtilt::cuda
