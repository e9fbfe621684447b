// SPDX-License-Identifier: MIT
/// What a block has to do: its stretch of the line of units (work.hpp), item by item.
#pragma once

#include <kvtilt/cuda/attention/query.hpp>
#include <kvtilt/cuda/attention/work.hpp>
#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>
#include <kvtilt/cuda/machine.hpp>

#include <cstdint>

namespace kvtilt::cuda {

/// Units of a sealed page.
template <class Traits>
KVTILT_HD int units_of_page(const LayerStorage& layer) {
  if constexpr (Traits::generic)
    return layer.page_tokens / tile_extent;
  else
    return Traits::page_units;
}

/// Items of one sequence and kv head.
KVTILT_HD inline int row_tiles(const AttendArguments& arguments, int sequence) {
  return ceil_div(arguments.ratio * arguments.queries(sequence), item_rows);
}

/// Takes the pages that none of a sequence's queries may see out of its state, where options are narrower
/// than what the layer keeps: parts of a context, other windows.
KVTILT_HD inline void drop_unseen(const AttendArguments& arguments, int queries, int slot,
                                  SequenceState& state) {
  const AttendRules& rules = arguments.rules;
  std::int64_t from = rules.first_position;
  if (rules.window > 0 && rules.window != arguments.layer.window) {
    const std::int64_t oldest = state.length - queries - rules.window + 1;
    if (oldest > from) from = oldest;
  }
  if (from > 0 || rules.end_position < state.tail_start)
    keep_pages(state, arguments.layer.table(slot), from, rules.end_position);
}

/// Sequences up to which chunks are looked for: more of them fill the GPU either way.
inline constexpr int max_chunked_sequences = 64;

/// Whole chunks of an item that a block can take. A division would be 30 instructions, one after the
/// other.
struct Chunk {
  int units;
  float inverse;

  KVTILT_HD explicit Chunk(int units_)
      : units(units_), inverse(1.0f / static_cast<float>(units_)) {}

  /// ceil(of / units), exact below 2^21 with chunks of up to 128.
  [[nodiscard]] KVTILT_HD int count(int of) const {
    return static_cast<int>((static_cast<float>(of + units - 1) + 0.5f) * inverse);
  }
};

/// The chunk, a multiple of `warps`, that takes the least time of those for which there is a block for
/// each of an item's `units`, [sequences]: units of a warp one after the other, then the parts of the
/// longest item, which one block merges. 0 if there is none. One warp. What Chunk does not count
/// exactly is more than there are blocks, whatever the last digit.
template <class Threads>
KVTILT_HD int find_chunk(Threads& threads, const AttendArguments& arguments, const int* units,
                         int warps) {
  const int count = arguments.batch.count;
  const int heads = arguments.layer.kv_heads;
  const int blocks = threads.block_count();
  if (count > max_chunked_sequences || count * heads > blocks) return 0;
  const Chunk own((threads.lane() + 1) * warps);
  std::uint32_t chunks = 0;
  int most = 0;
  for (int i = 0; i < count; ++i) {
    const int parts = own.count(units[i]);
    chunks += static_cast<std::uint32_t>(parts * row_tiles(arguments, i));
    most = parts > most ? parts : most;
  }
  constexpr std::uint32_t none = 0xffffffffu;
  const int time = (threads.lane() + 1) * compiled_machine.attend_merged_parts + most;
  const std::uint32_t least = threads.min_over_warp(
      chunks * static_cast<std::uint32_t>(heads) <= static_cast<std::uint32_t>(blocks)
          ? static_cast<std::uint32_t>(time * warp_lanes + threads.lane())
          : none);
  return least == none ? 0 : (static_cast<int>(least % warp_lanes) + 1) * warps;
}

/// The line of a launch, planned anew by each block, and units before each sequence of the batch, of
/// one kv head, padding included. No units, and starts[sequences] is -1, where the rows cannot be
/// meant: the record tells. One warp; `starts`, shared, [sequences + 1], holds the units of an item of
/// each sequence from index 1 on.
///
/// An item costs its block some microseconds however short it is. So where there is little to do,
/// blocks get whole chunks of an item: no block has parts of two. Where there is much, they get equal
/// stretches whatever item they end in.
template <class Threads>
KVTILT_HD WorkLine plan_line(Threads& threads, const AttendArguments& arguments, int* starts) {
  const LayerStorage& layer = arguments.layer;
  const int count = arguments.batch.count;
  if (!rows_are_sound(threads, layer, arguments.batch, arguments.rows, arguments.row_count,
                      DeviceCall::Attend)) {
    if (threads.lane() == 0) starts[count] = -1;
    return {};
  }
  const int warps = threads.thread_count() / warp_lanes;
  const int found = find_chunk(threads, arguments, starts + 1, warps);
  const Chunk chunk(found > 0 ? found : 1);
  threads.sync_warp();
  KVTILT_DEVICE_LOOP
  for (int i = threads.lane() + 1; i <= count; i += warp_lanes) {
    const int units = starts[i];
    const int padded = units == 0  ? 0
                       : found > 0 ? chunk.count(units) * chunk.units
                                   : units + compiled_machine.attend_item_units;
    starts[i] = padded * row_tiles(arguments, i - 1);
  }
  threads.sync_warp();
  sum_up(threads, starts, count);
  threads.sync_warp();
  const int total = starts[count] * layer.kv_heads;
  if (total == 0) return {};
  if (found > 0) return {chunk.count(starts[count]) * layer.kv_heads, chunk.units, 0};
  return WorkLine::make(total, threads.block_count());
}

/// A block's share of one item.
struct Segment {
  ItemRows rows;
  int item_start;  ///< on the line
  int item_end;    ///< with its padding
  int first;       ///< unit of the item
  int last;        ///< one past
  int slot;        ///< of the sequence
  SequenceState sequence;
  UnitCounts counts;
  // Where heads have recipes of their own:
  int kind;                   ///< of MixedTraits
  std::uint64_t head_offset;  ///< in a sealed page

  [[nodiscard]] KVTILT_HD bool exists() const { return first < last; }
};

/// Rows of item `item` of a sequence; their length is for the caller to fill in.
KVTILT_HD inline ItemRows item_rows_of(const AttendArguments& arguments, int sequence, int item) {
  ItemRows rows{};
  rows.queries = arguments.queries(sequence);
  rows.first_token = arguments.rows.first(sequence);
  rows.seen = arguments.rules.seen_rows(rows.queries);
  const int tiles = row_tiles(arguments, sequence);
  rows.kv_head = tiles == 1 ? item : item / tiles;
  rows.first_row = (item - rows.kv_head * tiles) * item_rows;
  const int left = arguments.ratio * rows.queries - rows.first_row;
  rows.rows = left < item_rows ? left : item_rows;
  return rows;
}

/// The first segment with a unit of the stretch from `unit` of the line to `end`. None: an empty one
/// that ends there.
KVTILT_HD inline Segment find_segment(const AttendArguments& arguments, const int* starts,
                                      int page_units, int unit, int end) {
  const int heads = arguments.layer.kv_heads;
  Segment segment{};
  segment.item_end = end;
  KVTILT_DEVICE_LOOP
  while (unit < end && !segment.exists()) {
    const int sequence = last_not_above(starts, arguments.batch.count, heads, unit);
    segment.slot = arguments.batch.slots[sequence];
    segment.sequence = arguments.layer.state(segment.slot);
    const int tiles = row_tiles(arguments, sequence);
    drop_unseen(arguments, arguments.queries(sequence), segment.slot, segment.sequence);
    int item_units = starts[sequence + 1] - starts[sequence];
    if (tiles > 1) item_units /= tiles;
    const int sequence_start = starts[sequence] * heads;
    const int item = (unit - sequence_start) / item_units;
    segment.item_start = sequence_start + item * item_units;
    segment.item_end = segment.item_start + item_units;
    segment.first = unit - segment.item_start;
    segment.rows = item_rows_of(arguments, sequence, item);
    segment.rows.length = segment.sequence.length;
    segment.counts = count_units(arguments.layer, segment.sequence, page_units);
    segment.last = end - segment.item_start;
    if (segment.last > segment.counts.total()) segment.last = segment.counts.total();
    unit = segment.item_end;
  }
  return segment;
}

/// What the threads of a block have to know: in shared memory, registers are for sums.
struct BlockWork {
  WorkLine line;
  Segment segments[2];  ///< the one of a turn, and the one of the next

  /// Before a turn, by one thread, then sync(): what comes behind the segment of that turn. Before
  /// turn 0 that one, too.
  template <class Traits>
  KVTILT_HD void find_segments(const AttendArguments& arguments, const int* starts, int block,
                               int turn) {
    const LayerStorage& layer = arguments.layer;
    const int end = block < line.blocks ? line.start(block + 1) : 0;
    KVTILT_DEVICE_LOOP
    for (int i = turn == 0 ? 0 : turn + 1; i < turn + 2; ++i) {
      Segment& segment = segments[i % 2];
      segment = find_segment(arguments, starts, units_of_page<Traits>(layer),
                             i == 0 ? line.start(block) : segments[(i + 1) % 2].item_end, end);
      if constexpr (Traits::mixed) {
        const HeadLayout& head = layer.head(PageKind::Sealed, segment.rows.kv_head);
        segment.kind = Traits::kind_of(head);
        segment.head_offset = head.offset;
      }
    }
  }
};

}  // namespace kvtilt::cuda
