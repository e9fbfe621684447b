// SPDX-License-Identifier: MIT
/// Plans a decode launch on the device, and finds a block's segments: its stretch of the line of units
/// (work.hpp), item by item.
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
KVTILT_HD int units_of_page(const LayerView& layer) {
  if constexpr (Traits::generic)
    return layer.page_tokens / tile_extent;
  else
    return Traits::page_units;
}

/// Items of one sequence and kv head.
KVTILT_HD inline int row_tiles(const AttendArguments& arguments, int sequence) {
  return ceil_div(arguments.gqa_ratio * arguments.queries(sequence), item_rows);
}

/// The oldest position that any of a sequence's queries may see, under a window.
KVTILT_HD inline std::int64_t oldest_in_window(const AttendRules& rules, int new_tokens,
                                               const SequenceState& state) {
  const std::int64_t oldest = state.next_position() - new_tokens - rules.window + 1;
  return oldest < rules.first_position ? rules.first_position : oldest;
}

/// Removes from a sequence's state the pages that none of its queries may see, where the layer keeps
/// more: options name a part of the positions or a smaller window, or the pages are an engine's own.
/// The cache itself frees what its window has left behind.
KVTILT_HD inline void drop_unseen(const AttendArguments& arguments, int new_tokens, int slot,
                                  SequenceState& state) {
  const AttendRules& rules = arguments.rules;
  const bool narrower =
      rules.window > 0 && (rules.window != arguments.layer.window || arguments.layer.imported());
  const std::int64_t from =
      narrower ? oldest_in_window(rules, new_tokens, state) : rules.first_position;
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
    drop_unseen(arguments, arguments.new_tokens(index), sequence.slot, sequence.state);
    sequence.counts = count_units(arguments.layer, sequence.state, page_units);
    return sequence;
  }
};

/// Most sequences for which find_chunk() searches: more of them fill the GPU in any case.
inline constexpr int max_chunked_sequences = 64;

/// Units that a block takes of an item where items are cut into equal chunks. Counts chunks with the
/// inverse: an integer division would be 30 dependent instructions.
struct Chunk {
  int units;
  float inverse;

  KVTILT_HD explicit Chunk(int units_)
      : units(units_), inverse(reciprocal_fast(static_cast<float>(units_))) {}

  /// ceil(of / units), exact below 2^21 with chunks of up to 128 units: the added half outweighs the
  /// errors of the inverse and of the product, 2^-23 and 2^-24 of the quotient.
  [[nodiscard]] KVTILT_HD int count(int of) const {
    return static_cast<int>((static_cast<float>(of + units - 1) + 0.5f) * inverse);
  }
};

/// Returns the chunk, a multiple of `warps`, with the shortest time among those that leave a block for
/// every chunk, or 0 if there is none. The time: a warp's units, one after the other, then the merge
/// of the longest item's parts by one block. Called by one warp. Counts beyond Chunk's exact range
/// exceed the number of blocks, whatever their last digit.
///
/// units  [sequences]: units of an item of each
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

/// Plans the line of a launch; each block does so anew, by one warp. If the rows are invalid, there are
/// no units, starts[sequences] is -1, and the layer's record reports it.
///
/// starts  shared, [sequences + 1]; in: units of an item of each sequence, from index 1 on; out: units
///         of one kv head before each sequence, padding included
///
/// An item costs its block some microseconds, however short it is. So where work is little, blocks get
/// whole chunks of an item, and no block has parts of two. Where work is plenty, they get equal
/// stretches, whatever items these end in.
template <class Threads>
KVTILT_HD WorkLine plan_line(Threads& threads, const AttendArguments& arguments, int* starts) {
  const LayerView& layer = arguments.layer;
  const int count = arguments.batch.count;
  if (!rows_are_sound(threads, layer, arguments.batch, arguments.rows, arguments.row_count,
                      DeviceFault::BadAttendRows)) {
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

/// A block's part of one item.
struct Segment {
  ItemRows rows;
  int item_start;  ///< on the line
  int item_end;    ///< with its padding
  int first;       ///< unit of the item
  int last;        ///< one past
  int slot;        ///< of the sequence in the cache
  SequenceState sequence;
  UnitCounts counts;
  // Where heads have recipes of their own:
  int kind;                   ///< of MixedTraits
  std::uint64_t head_offset;  ///< in a sealed page

  [[nodiscard]] KVTILT_HD bool exists() const { return first < last; }
};

/// Rows of item `item` of a sequence; the caller sets their length.
KVTILT_HD inline ItemRows item_rows_of(const AttendArguments& arguments, int sequence, int item) {
  ItemRows rows{};
  rows.queries = arguments.queries(sequence);
  rows.new_tokens = arguments.new_tokens(sequence);
  rows.first_token = arguments.rows.first(sequence);
  rows.seen = arguments.rules.seen_rows(rows.queries);
  const int tiles = row_tiles(arguments, sequence);
  rows.kv_head = tiles == 1 ? item : quotient(item, tiles);
  rows.first_row = (item - rows.kv_head * tiles) * item_rows;
  const int left = arguments.gqa_ratio * rows.queries - rows.first_row;
  rows.rows = left < item_rows ? left : item_rows;
  return rows;
}

/// Sets the segment that begins at `unit` of the line, and ends at `end` or with the unit's item. The
/// item is of `sequence`, number `index` of the batch. Empty if only padding is left.
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
  segment.rows.length = sequence.state.next_position();
  segment.last = end - segment.item_start;
  if (segment.last > sequence.counts.total()) segment.last = sequence.counts.total();
}

/// Finds the first segment that is not empty in the stretch from `unit` of the line to `end`. If there
/// is none, exists() is false, item_end is not below `end`, and the rest means nothing.
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

/// A block's work, in shared memory to save registers. A turn is the work on one segment.
struct BlockWork {
  WorkLine line;
  Segment segments[2];  ///< turn t's is [t % 2]; the other is the next turn's

  /// Called first, by one thread. The segment before the first is empty and ends where the block's
  /// stretch starts.
  KVTILT_HD void begin(const WorkLine& of_all, int block) {
    line = of_all;
    segments[0].first = segments[0].last = 0;
    segments[0].item_end = line.start(block);
  }

  /// Sets the first segment without a search or loads. Called by the warp that plans, between
  /// sync_warp()s after begin(): lane i passes sequence i of the batch, if there is one, and the lane
  /// whose sequence holds the block's first unit sets the segment.
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
    // One branch for all conditions: each branch costs as much as five other instructions.
    const int outside = (block >= of_all.blocks ? 1 : 0) | (index >= count ? 1 : 0) |
                        (unit < from ? 1 : 0) | (unit >= to ? 1 : 0);
    if (outside != 0) return;
    set_segment(segments[0], arguments, starts, own, index, unit, of_all.start(block + 1));
    set_kind<Traits>(arguments.layer, segments[0]);
  }

  /// Finds the segment after that of a turn; before turn 0 that turn's as well, unless it is set.
  /// Called by one thread before the turn, and followed by sync().
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
  KVTILT_HD static void set_kind(const LayerView& layer, Segment& segment) {
    if constexpr (Traits::mixed) {
      const HeadLayout& head = layer.head(PageKind::Sealed, segment.rows.kv_head);
      segment.kind = Traits::kind_of(head);
      segment.head_offset = head.offset;
    }
  }
};

}  // namespace kvtilt::cuda
