// SPDX-License-Identifier: MIT
/// Divides a launch's work among its blocks. An item is 8 query rows of one sequence and kv head.
/// It is a list of units, each about as much work for a warp: tiles of 16 tokens in 16 bits (of the
/// sinks, the first tokens; of the tail, the newest ones), then sealed pages. The units of all
/// items lie on one line, of which every block gets an equal stretch (stream-K): ragged batches
/// balance whatever their lengths. Lengths are read from device memory, so a captured graph plans
/// anew at each replay.
#pragma once

#include <kvtilt/cuda/attention/arguments.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/unroll.hpp>

#include <cstdint>

namespace kvtilt::cuda {

/// Query rows of an item: the columns of an mma.
inline constexpr int item_rows = 8;

/// Floats from row to row of outputs in shared memory, padded: rows start in different banks.
KVTILT_HD constexpr int output_stride(int value_dim) { return value_dim + 4; }
/// Bytes of one warp's outputs of an item.
KVTILT_HD constexpr std::uint32_t output_bytes(int value_dim) {
  return static_cast<std::uint32_t>(item_rows * output_stride(value_dim) * 4);
}

/// The last i < count with starts[i] * factor <= at. `starts`: [count + 1], ascending from 0.
KVTILT_HD constexpr int last_not_above(const int* starts, int count, int factor, int at) {
  int found = 0;
  KVTILT_DEVICE_LOOP
  for (int beyond = count; beyond - found > 1;) {
    const int middle = (found + beyond) / 2;
    (starts[middle] * factor <= at ? found : beyond) = middle;
  }
  return found;
}

/// Prefix sum by one warp: sets starts[i] to the sum of number(0) to number(i - 1), for i from 0 to
/// `count`, and returns the total. Each i is passed to `number` by one lane.
template <class Threads, class Number>
KVTILT_HD int sum_up(Threads& threads, int* starts, int count, const Number& number) {
  int before = 0;
  KVTILT_DEVICE_LOOP
  for (int first = 0; first < count; first += warp_lanes) {
    const int i = first + threads.lane();
    int sum = i < count ? number(i) : 0;
    KVTILT_DEVICE_LOOP
    for (int distance = 1; distance < warp_lanes && distance < count; distance *= 2) {
      const int other = threads.shuffle(sum, threads.lane() - distance);
      if (threads.lane() >= distance) sum += other;
    }
    if (i < count) starts[i + 1] = before + sum;
    const int last = count - first < warp_lanes ? count - first : warp_lanes;
    before += threads.shuffle(sum, last - 1);
  }
  if (threads.lane() == 0) starts[0] = 0;
  return before;
}
/// The same in place, of the numbers starts[1] to starts[count].
template <class Threads>
KVTILT_HD void sum_up(Threads& threads, int* starts, int count) {
  sum_up(threads, starts, count, [&](int i) { return starts[i + 1]; });
}

/// For numbers that are not negative: takes fewer instructions than a signed division.
KVTILT_HD constexpr int quotient(int value, int divisor) {
  return static_cast<int>(static_cast<std::uint32_t>(value) / static_cast<std::uint32_t>(divisor));
}
KVTILT_HD constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

/// Units of each item of a sequence, by kind.
struct UnitCounts {
  int sink_tiles = 0;
  int tail_tiles = 0;
  int page_units = 0;

  [[nodiscard]] KVTILT_HD int tiles() const { return sink_tiles + tail_tiles; }
  [[nodiscard]] KVTILT_HD int total() const { return tiles() + page_units; }
};

/// page_units  units per sealed page
KVTILT_HD inline UnitCounts count_units(const LayerView& layer, const SequenceState& state,
                                        int page_units) {
  UnitCounts counts;
  const std::int64_t sinks = state.length < layer.sink_tokens ? state.length : layer.sink_tokens;
  const std::int64_t tail = state.length - state.tail_start;
  counts.sink_tiles = ceil_div(static_cast<int>(sinks), tile_extent);
  counts.tail_tiles = tail <= 0 ? 0 : ceil_div(static_cast<int>(tail), tile_extent);
  counts.page_units = (state.page_end - state.first_page) * page_units;
  return counts;
}

/// Prefetches into L2 one of `parts` equal parts of a block's 128-byte lines.
template <class Threads>
KVTILT_HD void prefetch_part(const Threads& threads, const std::byte* block, int bytes, int part,
                             int parts) {
  constexpr int line = 128;
  KVTILT_DEVICE_LOOP
  for (int at = (threads.lane() * parts + part) * line; at < bytes; at += warp_lanes * parts * line)
    threads.prefetch(block + at);
}

/// Bytes of 16 tokens of one head's keys or values in 16 bits.
KVTILT_HD constexpr std::uint32_t half_tile_bytes(int dim) {
  return static_cast<std::uint32_t>(dim / tile_extent * fragment_tile_bytes);
}

/// How many of a page's `slots` slots from `first` on hold tokens.
KVTILT_HD constexpr int tokens_in(const PageSlot& page, int first, int slots) {
  const int held = page.tokens - first;
  return held < 0 ? 0 : held < slots ? held : slots;
}

/// A tile: 16 tokens of a block of sinks, of a tail or of a sealed page.
struct TokenTile {
  const std::byte* block;       ///< with all kv heads
  std::int64_t first_position;  ///< of the tile's slot 0
  int index;                    ///< of the tile in its block
  int block_tiles;              ///< in that block
  int tokens;                   ///< slots that hold tokens
  bool sink;
};

/// Finds 16-bit tile `unit` of a sequence: sinks come first, then the tail.
///
/// page_tokens  the layer's; where it is a constant, the compiler needs no division
KVTILT_HD inline TokenTile half_tile(const LayerView& layer, int page_tokens, int sequence,
                                     const SequenceState& state, const UnitCounts& counts,
                                     int unit) {
  const bool sink = unit < counts.sink_tiles;
  const int tile = sink ? unit : unit - counts.sink_tiles;
  const std::int64_t start = sink ? 0 : state.tail_start;
  const std::int64_t sink_end = state.length < layer.sink_tokens ? state.length : layer.sink_tokens;
  const std::int64_t end = sink ? sink_end : state.length;
  const std::int64_t first = start + tile * tile_extent;
  const int tiles_in_block = page_tokens / tile_extent;
  TokenTile found;
  found.first_position = first;
  found.tokens = end - first < tile_extent ? static_cast<int>(end - first) : tile_extent;
  found.sink = sink;
  found.block_tiles = sink ? ceil_div(layer.sink_tokens, tile_extent) : tiles_in_block;
  found.index = sink ? tile : tile % tiles_in_block;
  found.block =
      sink ? layer.sinks(sequence) : layer.tail(sequence, state.ring_head, tile / tiles_in_block);
  return found;
}

/// Finds tile `index` of a sealed page.
KVTILT_HD inline TokenTile sealed_tile(const LayerView& layer, const PageSlot& slot, int index) {
  TokenTile found;
  found.index = index;
  found.first_position = slot.first_position + found.index * tile_extent;
  found.tokens = tokens_in(slot, found.index * tile_extent, tile_extent);
  found.sink = false;
  found.block = layer.block(PageKind::Sealed, slot.page);
  return found;
}
/// Finds the tile of unit `unit` of the pages in a table.
KVTILT_HD inline TokenTile sealed_tile(const LayerView& layer, const PageSlot* table, int unit,
                                       int page_units) {
  return sealed_tile(layer, table[unit / page_units], unit % page_units);
}

/// The line of all units, cut into a stretch per block. Its planner keeps its length below 2^31.
struct WorkLine {
  int blocks;  ///< that have a unit at least; later blocks have nothing to do
  int each;    ///< units of a block
  int longer;  ///< this many blocks, the first ones, have one unit more

  [[nodiscard]] KVTILT_HD static WorkLine make(int total, int blocks) {
    WorkLine line;
    line.blocks = total < blocks ? total : blocks;
    line.each = quotient(total, line.blocks);
    line.longer = total - line.each * line.blocks;
    return line;
  }
  [[nodiscard]] KVTILT_HD int start(int block) const {
    return block * each + (block < longer ? block : longer);
  }
  /// The block whose stretch holds a unit. Divides once, without a branch, so that the divisions for
  /// two units overlap.
  [[nodiscard]] KVTILT_HD int block_of(int unit) const {
    const int beyond = unit - longer * (each + 1);
    const bool late = beyond >= 0;
    return (late ? longer : 0) + quotient(late ? beyond : unit, late ? each : each + 1);
  }
};

/// The blocks that share an item, and the workspace slot of each one's part. A block has at most two
/// unfinished items, at the start and at the end of its stretch.
struct ItemParts {
  int first;  ///< block
  int last;
  int first_slot;

  [[nodiscard]] KVTILT_HD static ItemParts of(const WorkLine& line, int item_start,
                                              int item_units) {
    const int first = line.block_of(item_start);
    return {first, line.block_of(item_start + item_units - 1),
            2 * first + (line.start(first) < item_start ? 1 : 0)};
  }
  [[nodiscard]] KVTILT_HD int slot(int block) const {
    return block == first ? first_slot : 2 * block;
  }
};

}  // namespace kvtilt::cuda
