// SPDX-License-Identifier: MIT
/// What a block has to do: its stretch of the line of units (work.hpp), item by item.
#pragma once

#include <kvtilt/cuda/attention/query.hpp>
#include <kvtilt/cuda/attention/work.hpp>
#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>
#include <kvtilt/cuda/half2.hpp>
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

/// A sequence of a batch, as far as its queries see it.
struct SeenSequence {
  int slot;
  SequenceState state;  ///< without pages that none of them may see
  UnitCounts counts;

  KVTILT_HD static SeenSequence of(const AttendArguments& arguments, int index, int page_units) {
    SeenSequence sequence;
    sequence.slot = arguments.batch.slots[index];
    sequence.state = arguments.layer.state(sequence.slot);
    drop_unseen(arguments, arguments.queries(index), sequence.slot, sequence.state);
    sequence.counts = count_units(arguments.layer, sequence.state, page_units);
    return sequence;
  }
};

/// Sequences up to which chunks are looked for: more of them fill the GPU either way.
inline constexpr int max_chunked_sequences = 64;

/// Whole chunks of an item that a block can take. A division would be 30 instructions, one after the
/// other.
struct Chunk {
  int units;
  float inverse;

  KVTILT_HD explicit Chunk(int units_)
      : units(units_), inverse(reciprocal_fast(static_cast<float>(units_))) {}

  /// ceil(of / units), exact below 2^21 with chunks of up to 128: the half is more than what the inverse
  /// and the product may be off by, 2^-23 and 2^-24 of the quotient.
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
  const int of_a_head = sum_up(threads, starts, count, [&](int i) {
    const int units = starts[i + 1];
    const int padded =
        found > 0 ? chunk.count(units) * found : units + compiled_machine.attend_item_units;
    return (units == 0 ? 0 : padded) * row_tiles(arguments, i);
  });
  threads.sync_warp();
  const int total = of_a_head * layer.kv_heads;
  if (total == 0) return {};
  if (found > 0) return {chunk.count(of_a_head) * layer.kv_heads, chunk.units, 0};
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
  rows.kv_head = tiles == 1 ? item : quotient(item, tiles);
  rows.first_row = (item - rows.kv_head * tiles) * item_rows;
  const int left = arguments.ratio * rows.queries - rows.first_row;
  rows.rows = left < item_rows ? left : item_rows;
  return rows;
}

/// The part from `unit` of the line on, or to `end`, of the item that holds the unit: `sequence` is the
/// `index`-th of the batch, and that item's. None where there is only padding.
KVTILT_HD inline void set_segment(Segment& segment, const AttendArguments& arguments,
                                  const int* starts, const SeenSequence& sequence, int index,
                                  int unit, int end) {
  const int heads = arguments.layer.kv_heads;
  const int tiles = row_tiles(arguments, index);
  int item_units = starts[index + 1] - starts[index];
  if (tiles > 1) item_units = quotient(item_units, tiles);
  const int sequence_start = starts[index] * heads;
  const int item = quotient(unit - sequence_start, item_units);
  segment.slot = sequence.slot;
  segment.sequence = sequence.state;
  segment.counts = sequence.counts;
  segment.item_start = sequence_start + item * item_units;
  segment.item_end = segment.item_start + item_units;
  segment.first = unit - segment.item_start;
  segment.rows = item_rows_of(arguments, index, item);
  segment.rows.length = sequence.state.length;
  segment.last = end - segment.item_start;
  if (segment.last > sequence.counts.total()) segment.last = sequence.counts.total();
}

/// The first segment with a unit of the stretch from `unit` of the line to `end`. None: an empty one
/// that ends there, and holds nothing else.
KVTILT_HD inline void find_segment(Segment& segment, const AttendArguments& arguments,
                                   const int* starts, int page_units, int unit, int end) {
  segment.first = segment.last = 0;
  segment.item_end = end;
  KVTILT_DEVICE_LOOP
  while (unit < end && !segment.exists()) {
    const int index = last_not_above(starts, arguments.batch.count, arguments.layer.kv_heads, unit);
    set_segment(segment, arguments, starts, SeenSequence::of(arguments, index, page_units), index,
                unit, end);
    unit = segment.item_end;
  }
}

/// What the threads of a block have to know: in shared memory, registers are for sums.
struct BlockWork {
  WorkLine line;
  Segment segments[2];  ///< the one of a turn, and the one of the next

  /// Before all else, by one thread: an empty segment ends where the block's stretch starts.
  KVTILT_HD void begin(const WorkLine& of_all, int block) {
    line = of_all;
    segments[0].first = segments[0].last = 0;
    segments[0].item_end = line.start(block);
  }

  /// After begin() and sync_warp(), by the warp that does all this, whose lanes each know the sequence of
  /// their number in the batch, if it has that many. So the first segment takes neither a search nor
  /// loads. Then sync_warp().
  template <class Traits, class Threads>
  KVTILT_HD void set_first(const Threads& threads, const AttendArguments& arguments,
                           const int* starts, const WorkLine& of_all, const SeenSequence& own) {
    const int count = arguments.batch.count;
    const int heads = arguments.layer.kv_heads;
    const int index = threads.lane();
    const int block = threads.block();
    const int unit = of_all.start(block);
    const int known = index < count ? index : count - 1;
    const int from = starts[known] * heads;
    const int to = starts[known + 1] * heads;
    // One branch: each costs as much as five other instructions.
    const int outside = (block >= of_all.blocks ? 1 : 0) | (index >= count ? 1 : 0) |
                        (unit < from ? 1 : 0) | (unit >= to ? 1 : 0);
    if (outside != 0) return;
    set_segment(segments[0], arguments, starts, own, index, unit, of_all.start(block + 1));
    set_kind<Traits>(arguments.layer, segments[0]);
  }

  /// Before a turn, by one thread, then sync(): what comes behind the segment of that turn. Before
  /// turn 0 that one, too, unless it is set.
  template <class Traits>
  KVTILT_HD void find_segments(const AttendArguments& arguments, const int* starts, int block,
                               int turn) {
    const int end = block < line.blocks ? line.start(block + 1) : 0;
    KVTILT_DEVICE_LOOP
    for (int i = turn == 0 && !segments[0].exists() ? 0 : turn + 1; i < turn + 2; ++i) {
      Segment& segment = segments[i % 2];
      find_segment(segment, arguments, starts, units_of_page<Traits>(arguments.layer),
                   segments[i == 0 ? 0 : (i + 1) % 2].item_end, end);
      if (segment.exists()) set_kind<Traits>(arguments.layer, segment);
    }
  }

 private:
  template <class Traits>
  KVTILT_HD static void set_kind(const LayerStorage& layer, Segment& segment) {
    if constexpr (Traits::mixed) {
      const HeadLayout& head = layer.head(PageKind::Sealed, segment.rows.kv_head);
      segment.kind = Traits::kind_of(head);
      segment.head_offset = head.offset;
    }
  }
};

}  // namespace kvtilt::cuda
